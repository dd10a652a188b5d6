import fc from 'fast-check'
import t from 'tap'

import { collect } from '../../../src/base/async.js'
import { batchPlan, planChunks, type PlanBasis, type PlannedRun } from '../../../src/model/chunk-plan.js'
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
function naivePlan(states: readonly number[], chunkSize: number, basis: PlanBasis): string[] {
  const kinds: string[] = []
  for (let start = 0; start < states.length; start += chunkSize) {
    const bytes = states.slice(start, start + chunkSize).map(state => BYTE_STATES[state]!)
    const own = bytes.length
    const parents = basis.kind === 'none' ? own : Math.max(0, Math.min(chunkSize, basis.parentSize - start))
    const differs = own !== parents && parents > 0
    const isClean = basis.kind !== 'none' && !differs && bytes.every(byte => !byte.dirty)
    const content = !bytes.every(byte => byte.zero) ? 'read' : bytes.every(byte => byte.hole) ? 'hole' : 'zero'
    if (isClean && basis.kind === 'inherit') kinds.push(content === 'read' ? 'inherit' : 'inherit zero')
    else kinds.push(isClean ? `clean ${content}` : content)
  }
  return kinds
}

const expand = (runs: readonly PlannedRun[]): string[] =>
  runs.flatMap(run => Array<string>(run.count).fill(labelOf(run)))

function labelOf(run: PlannedRun): string {
  if (run.isZero === true) return `${run.kind} zero`
  return run.clean === true ? `clean ${run.kind}` : run.kind
}

const disks = fc.record({
  states: fc.array(fc.nat({ max: BYTE_STATES.length - 1 }), { minLength: 1, maxLength: 60 }),
  chunkSize: fc.constantFrom(1, 2, 4, 8),
  basis: fc.oneof(
    fc.constant<PlanBasis>({ kind: 'none' }),
    fc
      .tuple(fc.constantFrom('inherit', 'audit'), fc.integer({ min: 1, max: 70 }))
      .map(([kind, parentSize]): PlanBasis => ({ kind, parentSize })),
  ),
})

t.test('every chunk gets what its bytes call for, however the extents are cut', async () => {
  await fc.assert(
    fc.asyncProperty(disks, fc.boolean(), async ({ states, chunkSize, basis }, fine) => {
      const extents = fine ? extentsOf(states) : merged(states)

      const runs = await collect(planChunks(extents, { size: states.length, chunkSize }, basis))

      const expected = naivePlan(states, chunkSize, basis)
      if (JSON.stringify(expand(runs)) !== JSON.stringify(expected)) throw new Error(expand(runs).join())
      for (const [i, run] of runs.entries()) {
        if (i > 0 && labelOf(runs[i - 1]!) === labelOf(run)) throw new Error('neighbours of one kind')
        if (run.first !== (i === 0 ? 0 : runs[i - 1]!.first + runs[i - 1]!.count)) throw new Error('a gap')
      }
    }),
    { numRuns: 2000 },
  )
})

t.test('batches hold the same runs in the same order, none too big', async () => {
  await fc.assert(
    fc.asyncProperty(disks, fc.integer({ min: 1, max: 5 }), async ({ states, chunkSize, basis }, perBatch) => {
      const geometry = { size: states.length, chunkSize }
      const limits = { bytes: perBatch * chunkSize, items: 3 }

      const batches = await collect(batchPlan(planChunks(merged(states), geometry, basis), geometry, limits))

      const planned = naivePlan(states, chunkSize, basis).map(kind =>
        kind.replace(' zero', kind.startsWith('inherit') ? '' : ' zero'),
      )
      const seen = Array<string>(planned.length).fill('inherit')
      let last = -1
      for (const batch of batches) {
        if (batch.bytes > limits.bytes || batch.items.length > limits.items) throw new Error('too big')
        let bytes = 0
        for (const item of batch.items) {
          const { kind, first, count } = item
          if (first <= last) throw new Error('out of order')
          last = first + count - 1
          seen.fill(labelOf(item), first, first + count)
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

  await t.rejects(collect(planChunks(gap(), { size: 12, chunkSize: 4 }, { kind: 'none' })), /I6/)
})

t.test('extents that end before the disk are a bug', async t => {
  async function* short(): AsyncGenerator<Extent> {
    yield { offset: 0, length: 4, dirty: true, zero: false, hole: false }
  }

  await t.rejects(collect(planChunks(short(), { size: 12, chunkSize: 4 }, { kind: 'none' })), /I6/)
})
