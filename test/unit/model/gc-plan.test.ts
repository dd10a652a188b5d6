import t from 'tap'

import { narrowPlan, type PackUse, planGc, type StoreUse } from '../../../src/model/gc-plan.js'

function pack(id: string, use: Partial<PackUse> = {}): PackUse {
  return {
    id,
    size: 9_000_000,
    state: 'sealed',
    records: 10,
    recordBytes: 1000,
    liveRecords: 10,
    liveBytes: 1000,
    ...use,
  }
}

function store(packs: readonly PackUse[], use: Partial<StoreUse> = {}): StoreUse {
  return { packs, missing: 0, points: 1, liveRuns: 0, ...use }
}

const dead = { liveRecords: 0, liveBytes: 0 }
const idsOf = (packs: readonly PackUse[]) => packs.map(({ id }) => id)

t.test('dead packs go, sparse ones are rewritten, the others stay', t => {
  const plan = planGc(store([pack('a', dead), pack('b', { liveRecords: 1, liveBytes: 100 }), pack('c')]), {
    threshold: 0.6,
  })

  t.strictSame([idsOf(plan.dead), idsOf(plan.rewritten)], [['a'], ['b']])
  t.equal(plan.freedBytes, 9_000_000 + 900)
  t.end()
})

t.test('a pack without a footer goes only where nobody writes and nothing is missing', t => {
  const unsealed = [pack('a', { ...dead, state: 'unsealed' }), pack('b', { ...dead, state: 'stub' })]

  t.strictSame(idsOf(planGc(store(unsealed), { threshold: 0.6 }).dead), ['a', 'b'])
  t.strictSame(idsOf(planGc(store(unsealed, { liveRuns: 1 }), { threshold: 0.6 }).dead), [])
  t.strictSame(idsOf(planGc(store(unsealed, { missing: 1 }), { threshold: 0.6 }).dead), [])
  t.strictSame(idsOf(planGc(store([pack('a', { ...dead, state: 'unreadable' })]), { threshold: 1 }).dead), [])
  t.end()
})

t.test('many small packs are merged', t => {
  const small = Array.from({ length: 64 }, (_, at) => pack(`p${at}`, { size: 1000 }))

  t.equal(planGc(store(small), { threshold: 0.6 }).rewritten.length, 64)
  t.equal(planGc(store(small.slice(1)), { threshold: 0.6 }).rewritten.length, 0)
  t.end()
})

t.test('after the second listing nothing goes that was not condemned, and what came alive stays', t => {
  const before = planGc(store([pack('a', dead), pack('b', dead), pack('c')]), { threshold: 0.6 })
  const now = planGc(store([pack('a'), pack('b', dead), pack('c', dead)]), { threshold: 0.6 })

  t.strictSame(idsOf(narrowPlan(before, now).dead), ['b'])
  t.end()
})
