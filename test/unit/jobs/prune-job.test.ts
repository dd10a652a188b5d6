import t from 'tap'

import { executePrune, expiredOf, planPrune, readPruned, refuseUnreadable } from '../../../src/jobs/prune-job.js'
import type { PointNotes, RecoveryPoint } from '../../../src/model/recovery-point.js'
import type { PointCatalog } from '../../../src/store/store-types.js'
import { recoveryPoint } from '../../harness/points.js'

const never = new AbortController().signal
const NOW = Date.UTC(2026, 10, 20)
const options = { now: NOW, timeZone: 'UTC' }
const WEB = { uuid: '00000000-0000-4000-8000-000000000001', name: 'web01' }

function point(sequence: number, daysAgo: number, domain = WEB): RecoveryPoint {
  const id = sequence.toString(16).padStart(32, '0')
  return recoveryPoint({ id, sequence, domain, time: NOW - daysAgo * 86_400_000 })
}

/** Points in memory. */
class Shelf implements PointCatalog {
  points: RecoveryPoint[]
  readonly held = new Map<string, PointNotes['hold']>()

  constructor(points: RecoveryPoint[]) {
    this.points = points
  }

  list = () => Promise.resolve(this.points)
  readable = this.list
  unreadable = () => Promise.resolve([])
  latest = () => Promise.resolve(this.points.at(-1))
  get = (id: string) => Promise.resolve(this.points.find(one => one.id === id))
  notes = (one: RecoveryPoint) => Promise.resolve({ tags: one.tags, hold: this.held.get(one.id) })
  annotate = () => Promise.resolve()
  remove = (gone: RecoveryPoint) => {
    this.points = this.points.filter(one => one.id !== gone.id)
    return Promise.resolve()
  }
}

const daily = (count: number) => () => ({ group: 'prod', policy: { daily: count } })

t.test('what no rule keeps is deleted, and a second prune finds nothing', async t => {
  const shelf = new Shelf([point(1, 3), point(2, 2), point(3, 1), point(4, 0)])
  const plan = planPrune(await readPruned(shelf, () => true), daily(2), options)

  const deleted = await executePrune(shelf, plan, NOW, never)

  t.strictSame(
    deleted.map(({ sequence }) => sequence),
    [1, 2],
  )
  const again = planPrune(await readPruned(shelf, () => true), daily(2), options)
  t.strictSame(expiredOf(again), [])
  t.equal(again[0]?.group, 'prod')
})

t.test('a point that is held after the planning stays', async t => {
  const shelf = new Shelf([point(1, 3), point(2, 2), point(3, 1)])
  const plan = planPrune(await readPruned(shelf, () => true), daily(1), options)
  shelf.held.set(point(1, 3).id, { until: undefined })

  await executePrune(shelf, plan, NOW, never)

  t.strictSame(
    shelf.points.map(({ sequence }) => sequence),
    [1, 3],
  )
})

t.test('a domain that was renamed is one domain, pruned by the rules of its newest name', async t => {
  const shelf = new Shelf([point(1, 2, { ...WEB, name: 'old' }), point(2, 1, { ...WEB, name: 'old' }), point(3, 0)])
  const asked: string[] = []
  const policyOf = (domain: { readonly name: string }) => {
    asked.push(domain.name)
    return { group: undefined, policy: { last: 1 } }
  }

  const plan = planPrune(await readPruned(shelf, () => true), policyOf, options)

  t.strictSame(asked, ['web01'])
  t.equal(plan.length, 1)
  t.equal(expiredOf(plan).length, 2)
})

t.test('an interrupted prune deletes no further point', async t => {
  const shelf = new Shelf([point(1, 3), point(2, 2), point(3, 1)])
  const plan = planPrune(await readPruned(shelf, () => true), daily(1), options)

  await t.rejects(executePrune(shelf, plan, NOW, AbortSignal.abort()), { code: 'E_INTERRUPTED' })

  t.equal(shelf.points.length, 3)
})

t.test('points that cannot be read stop it', t => {
  t.throws(() => refuseUnreadable([{ file: 'x', error: new Error('damaged') }]), { code: 'E_DAMAGED' })
  t.doesNotThrow(() => refuseUnreadable([]))
  t.end()
})
