import fc from 'fast-check'
import t from 'tap'

import { collect } from '../../../src/base/async.js'
import { batchPlan, planChunks, type PlannedRun } from '../../../src/model/chunk-plan.js'
import type { Extent } from '../../../src/model/extent.js'

const BYTE_STATES = [
  { dirty: false, zero: false, hole: false },
  { dirty: false, zero: true, hole: true },
  { dirty: true, zero: false, hole: false },
  { dirty: true, zero: false, hole: true },
  { dirty: true, zero: true, hole: false },
  { dirty: true, zero: true, hole: true },
] as const

async function* extentsOf(states: readonly number[]): AsyncGenerator<Extent> {
  for (const [offset, state] of states.entries()) yield { offset, length: 1, ...BYTE_STATES[state]! }
}

async function* merged(states: readonly number[]): AsyncGenerator<Extent> {
  let start = 0
  for (let end = 1; end <= states.length; end++) {
    if (end < states.length && states[end] === states[start]) continue
    yield { offset: start, length: end - start, ...BYTE_STATES[states[start]!]! }
    start = end
  }
}

/** The rule, chunk by chunk and byte by byte. */
function naivePlan(states: readonly number[], chunkSize: number, parentSize: number | undefined): string[] {
  const kinds: string[] = []
  for (let start = 0; start < states.length; start += chunkSize) {
    const bytes = states.slice(start, start + chunkSize).map(state => BYTE_STATES[state]!)
    const own = bytes.length
    const parents = parentSize === undefined ? own : Math.max(0, Math.min(chunkSize, parentSize - start))
    const differs = own !== parents && parents > 0
    if (!differs && bytes.every(byte => !byte.dirty)) kinds.push('inherit')
    else if (!bytes.every(byte => byte.zero)) kinds.push('read')
    else kinds.push(bytes.every(byte => byte.hole) ? 'hole' : 'zero')
  }
  return kinds
}

const expand = (runs: readonly PlannedRun[]): string[] => runs.flatMap(run => Array<string>(run.count).fill(run.kind))

const disks = fc.record({
  states: fc.array(fc.nat({ max: BYTE_STATES.length - 1 }), { minLength: 1, maxLength: 60 }),
  chunkSize: fc.constantFrom(1, 2, 4, 8),
  parentSize: fc.option(fc.integer({ min: 1, max: 70 }), { nil: undefined }),
})

t.test('every chunk gets what its bytes call for, however the extents are cut', async () => {
  await fc.assert(
    fc.asyncProperty(disks, fc.boolean(), async ({ states, chunkSize, parentSize }, fine) => {
      const extents = fine ? extentsOf(states) : merged(states)

      const runs = await collect(planChunks(extents, { size: states.length, chunkSize }, parentSize))

      const expected = naivePlan(states, chunkSize, parentSize)
      if (JSON.stringify(expand(runs)) !== JSON.stringify(expected)) throw new Error(expand(runs).join())
      for (const [i, run] of runs.entries()) {
        if (i > 0 && runs[i - 1]!.kind === run.kind) throw new Error('neighbours of one kind')
        if (run.first !== (i === 0 ? 0 : runs[i - 1]!.first + runs[i - 1]!.count)) throw new Error('a gap')
      }
    }),
    { numRuns: 2000 },
  )
})

t.test('batches hold the same runs in the same order, none too big', async () => {
  await fc.assert(
    fc.asyncProperty(disks, fc.integer({ min: 1, max: 5 }), async ({ states, chunkSize }, perBatch) => {
      const geometry = { size: states.length, chunkSize }
      const limits = { bytes: perBatch * chunkSize, items: 3 }

      const batches = await collect(batchPlan(planChunks(merged(states), geometry, undefined), geometry, limits))

      const planned = naivePlan(states, chunkSize, undefined)
      const seen = Array<string>(planned.length).fill('inherit')
      let last = -1
      for (const batch of batches) {
        if (batch.bytes > limits.bytes || batch.items.length > limits.items) throw new Error('too big')
        let bytes = 0
        for (const { kind, first, count } of batch.items) {
          if (first <= last) throw new Error('out of order')
          last = first + count - 1
          seen.fill(kind, first, first + count)
          if (kind === 'read') bytes += Math.min((first + count) * chunkSize, states.length) - first * chunkSize
        }
        if (bytes !== batch.bytes) throw new Error('wrong sum')
      }
      if (seen.join() !== planned.join()) throw new Error(seen.join())
    }),
    { numRuns: 1000 },
  )
})

t.test('a gap between extents is a bug, not an inherited chunk', async t => {
  async function* gap(): AsyncGenerator<Extent> {
    yield { offset: 0, length: 4, dirty: true, zero: false, hole: false }
    yield { offset: 8, length: 4, dirty: true, zero: false, hole: false }
  }

  await t.rejects(collect(planChunks(gap(), { size: 12, chunkSize: 4 }, undefined)), /I6/)
})

t.test('extents that end before the disk are a bug', async t => {
  async function* short(): AsyncGenerator<Extent> {
    yield { offset: 0, length: 4, dirty: true, zero: false, hole: false }
  }

  await t.rejects(collect(planChunks(short(), { size: 12, chunkSize: 4 }, undefined)), /I6/)
})
