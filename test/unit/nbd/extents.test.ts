import fc from 'fast-check'
import t from 'tap'

import { collect } from '../../../src/base/async.js'
import type { Extent } from '../../../src/model/extent.js'
import { coveredBy, joinExtents, mergeContexts } from '../../../src/nbd/extents.js'

const OFFSET = 65536

/** Pairs (length, flags); 0x40 and 0x80000000 are bits that no context defines. */
const list = fc
  .array(fc.tuple(fc.integer({ min: 1, max: 9 }), fc.constantFrom(0, 1, 2, 3, 0x40, 0x43, 0x80000000)), {
    minLength: 1,
    maxLength: 12,
  })
  .map(pairs => Float64Array.from(pairs.flat()))
const maybeList = fc.option(list, { nil: undefined })

/** The flags of every single byte. */
function spread(pairs: Float64Array): number[] {
  const flags: number[] = []
  for (let i = 0; i < pairs.length; i += 2) flags.push(...Array.from({ length: pairs[i]! }, () => pairs[i + 1]!))
  return flags
}

/** The rule of combination, byte by byte. */
function naive(allocation: Float64Array | undefined, dirty: Float64Array | undefined): string[] {
  const states = allocation === undefined ? undefined : spread(allocation)
  const marks = dirty === undefined ? undefined : spread(dirty)
  const length = Math.min(states?.length ?? Infinity, marks?.length ?? Infinity)
  return Array.from({ length }, (_, at) => {
    const state = states?.[at] ?? 0
    const isKnown = state <= 3
    const isDirty = marks === undefined || marks[at] !== 0
    return describe(isDirty, isKnown && (state === 2 || state === 3), isKnown && (state === 1 || state === 3))
  })
}

function describe(dirty: boolean, zero: boolean, hole: boolean): string {
  return `${dirty ? 'dirty' : 'clean'} ${zero ? 'zero' : 'data'} ${hole ? 'hole' : ''}`
}

async function* each(extents: Iterable<Extent>): AsyncGenerator<Extent> {
  yield* extents
}

t.test('merged extents say of every byte what the contexts say', async t => {
  await fc.assert(
    fc.asyncProperty(maybeList, maybeList, async (allocation, dirty) => {
      fc.pre(allocation !== undefined || dirty !== undefined)

      const extents = await collect(joinExtents(each(mergeContexts(OFFSET, { allocation, dirty }))))

      const found: string[] = []
      for (const [index, extent] of extents.entries()) {
        t.equal(extent.offset, OFFSET + found.length)
        const text = describe(extent.dirty, extent.zero, extent.hole)
        if (index > 0) t.not(found.at(-1), text, 'neighbours differ')
        found.push(...Array.from({ length: extent.length }, () => text))
      }
      t.same(found, naive(allocation, dirty))
    }),
    { numRuns: 300 },
  )
})

t.test('an answer covers what its shortest list covers', async t => {
  t.equal(coveredBy([Float64Array.of(10, 0, 5, 1), Float64Array.of(4, 0, 8, 3)]), 12)
})

t.test('a hole of unknown content is data', async t => {
  const [extent] = mergeContexts(0, { allocation: Float64Array.of(8, 1), dirty: undefined })

  t.same(extent, { offset: 0, length: 8, dirty: true, zero: false, hole: true })
})

t.test('neighbours are joined across answers, but never across a gap', async t => {
  const flags = { dirty: true, zero: false, hole: false }

  const joined = await collect(
    joinExtents(
      each([
        { offset: 0, length: 4, ...flags },
        { offset: 4, length: 4, ...flags },
        { offset: 9, length: 1, ...flags },
      ]),
    ),
  )

  t.same(joined, [
    { offset: 0, length: 8, ...flags },
    { offset: 9, length: 1, ...flags },
  ])
})
