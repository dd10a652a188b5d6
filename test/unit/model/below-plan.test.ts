import fc from 'fast-check'
import t from 'tap'

import { collect } from '../../../src/base/async.js'
import { planOverBelow } from '../../../src/model/below-plan.js'
import type { PlannedRun } from '../../../src/model/chunk-plan.js'
import type { Extent } from '../../../src/model/extent.js'

const CHUNK = 65536

async function* each<T>(list: readonly T[]): AsyncGenerator<T> {
  for (const one of list) {
    await Promise.resolve()
    yield one
  }
}

/** Extents of a disk whose sectors hold data where the flag is set; 512 bytes each. */
function extentsOf(sectors: readonly boolean[]): Extent[] {
  return sectors.map((hasData, i) => ({ offset: i * 4096, length: 4096, dirty: true, zero: !hasData, hole: !hasData }))
}

const KINDS = ['read', 'zero', 'hole', 'inherit'] as const

t.test('what is zero in both is as below, what is zero in the disk alone is read, all else stays', async t => {
  const runs = fc
    .array(fc.tuple(fc.constantFrom(...KINDS), fc.integer({ min: 1, max: 5 })), { minLength: 1, maxLength: 8 })
    .map(list => {
      let first = 0
      return list.map(([kind, count]): PlannedRun => {
        const run = { kind, first, count }
        first += count
        return run
      })
    })
  // Pages of 4 KiB; the images may be shorter or longer than the disk.
  const below = fc.array(fc.oneof({ weight: 9, arbitrary: fc.constant(false) }, fc.boolean()), { maxLength: 700 })

  await fc.assert(
    fc.asyncProperty(runs, below, async (plan, pages) => {
      const map = { size: pages.length * 4096, extents: each(extentsOf(pages)) }
      const got = await collect(planOverBelow(each(plan), map, { size: 1 << 30, chunkSize: CHUNK }))

      const kinds: string[] = []
      for (const { kind, first, count } of got) {
        if (first !== kinds.length) throw new Error('runs do not follow one another')
        for (let i = 0; i < count; i++) kinds.push(kind)
      }
      const wanted = plan.flatMap(({ kind, first, count }) =>
        Array.from({ length: count }, (_, i) => {
          if (kind === 'read' || kind === 'inherit') return kind
          return pages.slice((first + i) * 16, (first + i + 1) * 16).some(Boolean) ? 'read' : 'below'
        }),
      )
      if (kinds.join() !== wanted.join()) throw new Error(`${kinds.join()} is not ${wanted.join()}`)
    }),
    { numRuns: 300 },
  )
  t.pass()
})
