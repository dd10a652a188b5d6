import fc from 'fast-check'
import t from 'tap'

import { IndexSample } from '../../../src/model/index-sample.js'
import { seededRandom } from '../../harness/seeded-random.js'

const runsOf = fc.array(fc.record({ gap: fc.nat(50), count: fc.integer({ min: 1, max: 400 }) }), { maxLength: 20 })

t.test('a sample holds distinct indexes of the runs, all of them where there are few', async () => {
  fc.assert(
    fc.property(runsOf, fc.nat(40), fc.nat(), (runs, size, seed) => {
      const sample = new IndexSample(size, seededRandom(seed))
      const offered = new Set<number>()
      let at = 0
      for (const { gap, count } of runs) {
        at += gap
        sample.add(at, count)
        for (let i = 0; i < count; i++) offered.add(at + i)
        at += count
      }

      const kept = [...sample.indexes()]

      if (kept.length !== Math.min(size, offered.size)) throw new Error(`${kept.length} kept`)
      if (new Set(kept).size !== kept.length) throw new Error('twice')
      if (kept.some(index => !offered.has(index))) throw new Error('not offered')
      if (kept.some((index, i) => i > 0 && index < kept[i - 1]!)) throw new Error('not ascending')
    }),
    { numRuns: 500 },
  )
})

t.test('every index has the same chance, however it is offered', async t => {
  const counts = new Array<number>(100).fill(0)
  const rounds = 20_000

  for (let seed = 0; seed < rounds; seed++) {
    const sample = new IndexSample(5, seededRandom(seed))
    sample.add(0, 1)
    sample.add(1, 60)
    for (let i = 61; i < 100; i++) sample.add(i, 1)
    for (const index of sample.indexes()) counts[index]!++
  }

  // 1,000 each are expected, with a standard deviation of 31.
  t.ok(
    counts.every(count => Math.abs(count - rounds / 20) < 160),
    counts.join(' '),
  )
})
