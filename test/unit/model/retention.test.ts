import fc from 'fast-check'
import t from 'tap'

import { DAY_MS, HOUR_MS } from '../../../src/model/duration.js'
import type { RetainedPoint, RetentionPolicy } from '../../../src/model/retention.js'
import { evenTimes, planRetention, planRetentionByDomain, simulateRetention } from '../../../src/model/retention.js'

const BERLIN = 'Europe/Berlin'

function point(sequence: number, time: string | number, more: Partial<RetainedPoint> = {}): RetainedPoint {
  const id = sequence.toString(16).padStart(7, '0').padEnd(32, 'f')
  return { id, sequence, time: typeof time === 'number' ? time : Date.parse(time), tags: [], ...more }
}

function kept(points: readonly RetainedPoint[], policy: RetentionPolicy, now = '2030-01-01T00:00:00Z'): number[] {
  const plan = planRetention(points, policy, { now: Date.parse(now), timeZone: BERLIN })
  return plan.decisions.filter(one => one.action === 'keep').map(one => one.point.sequence)
}

t.test('the first point of a day is the daily one, and stays it when the day goes on', async t => {
  const morning = [point(1, '2026-11-19T01:00:00Z'), point(2, '2026-11-20T01:00:00Z')]
  const evening = [...morning, point(3, '2026-11-20T20:00:00Z'), point(4, '2026-11-20T21:00:00Z')]

  t.strictSame(kept(morning, { daily: 2 }), [2, 1])
  t.strictSame(kept(evening, { daily: 2 }), [4, 2, 1])
})

t.test('every point says which rules keep it, or why none does', async t => {
  const points = [
    point(1, '2026-11-09T01:00:00Z'),
    point(2, '2026-11-17T01:00:00Z'),
    point(3, '2026-11-17T05:00:00Z'),
    point(4, '2026-11-20T01:00:00Z'),
  ]

  const { decisions } = planRetention(points, { daily: 1, weekly: 4 }, { now: points[3]!.time, timeZone: BERLIN })

  t.strictSame(
    decisions.map(one => `${one.action} ${one.point.sequence} ${one.reason}`),
    [
      'keep 4 daily 1/1',
      'expire 3 no rule left (daily full, weekly has @0000002)',
      'keep 2 weekly 1/4',
      'keep 1 weekly 2/4',
    ],
  )
  t.strictSame(decisions[0]?.keptBy, ['daily'])
})

t.test(
  'both hours that October shows as 02 are kept as hours, and the missing one of March leaves no hole',
  async t => {
    const october = [0, 1, 2, 3].map(at => point(at + 1, Date.parse('2026-10-24T23:00:00Z') + at * HOUR_MS))
    const march = [0, 1, 2, 3].map(at => point(at + 1, Date.parse('2026-03-28T23:30:00Z') + at * HOUR_MS))

    t.strictSame(kept(october, { hourly: 4 }), [4, 3, 2, 1])
    t.strictSame(kept(march, { hourly: 3 }), [4, 3, 2])
  },
)

t.test('the day is that of the configured zone', async t => {
  const points = [point(1, '2026-11-20T22:30:00Z'), point(2, '2026-11-20T23:30:00Z')]
  const options = { now: points[1]!.time }

  const berlin = planRetention(points, { daily: 2 }, { ...options, timeZone: BERLIN })
  const utc = planRetention(points, { daily: 2 }, { ...options, timeZone: 'UTC' })

  t.strictSame(
    berlin.decisions.map(one => one.reason),
    ['daily 1/2', 'daily 2/2'],
  )
  t.strictSame(
    utc.decisions.map(one => one.reason),
    ['newest point', 'daily 1/2'],
  )
})

t.test('the 29th of February is a day like any other', async t => {
  const leap = [...evenTimes(Date.parse('2024-02-27T12:00:00Z'), 4, DAY_MS)].map((time, at) => point(at + 1, time))

  t.strictSame(kept(leap, { daily: 4 }), [4, 3, 2, 1])
  t.strictSame(kept(leap, { monthly: 2 }), [4, 1])
})

t.test('a hold and a tag keep what no rule keeps, until the hold ends', async t => {
  const points = [
    point(1, '2026-01-01T00:00:00Z', { hold: { until: Date.parse('2027-01-01T00:00:00Z') } }),
    point(2, '2026-01-02T00:00:00Z', { hold: {} }),
    point(3, '2026-01-03T00:00:00Z', { tags: ['pre-upgrade'] }),
    point(4, '2026-11-20T00:00:00Z'),
  ]
  const policy = { last: 1, tags: ['pre-upgrade'] }

  const { decisions } = planRetention(points, policy, { now: points[3]!.time, timeZone: BERLIN })

  t.strictSame(
    decisions.map(one => one.reason),
    ['last 1/1', 'tag pre-upgrade', 'hold', 'hold until 2027-01-01'],
  )
  t.strictSame(kept(points, policy, '2027-01-02T00:00:00Z'), [4, 3, 2])
})

t.test('a star keeps for ever', async t => {
  const points = [...evenTimes(Date.parse('2000-06-01T00:00:00Z'), 9000, 365 * DAY_MS)].map((time, at) =>
    point(at + 1, time),
  )

  t.equal(kept(points, { yearly: '*' }).length, points.length)
})

t.test('within counts back from the newest point: a host that was off for months loses nothing', async t => {
  const points = [0, 1, 10, 20, 31].map(day => point(day + 1, Date.parse('2026-01-01T00:00:00Z') + day * DAY_MS))

  t.strictSame(kept(points, { within: 30 * DAY_MS }, '2026-11-01T00:00:00Z'), [32, 21, 11])
})

t.test('without any rule nothing expires', async t => {
  const points = [point(1, '2020-01-01T00:00:00Z'), point(2, '2026-01-01T00:00:00Z')]

  t.strictSame(kept(points, {}), [2, 1])
  t.strictSame(kept(points, { daily: 0, last: 0, within: 0 }), [2, 1])
})

t.test('a point from the future stops the plan; forced, it is kept and takes nobody’s slot', async t => {
  const points = [
    point(1, '2026-11-18T01:00:00Z'),
    point(2, '2031-01-01T01:00:00Z'),
    point(3, '2026-11-19T01:00:00Z'),
    point(4, '2026-11-20T01:00:00Z'),
  ]
  const options = { now: Date.parse('2026-11-20T02:00:00Z'), timeZone: BERLIN }

  const plan = planRetention(points, { daily: 2 }, options)
  const forced = planRetention(points, { daily: 2 }, { ...options, force: true })

  t.match(plan.refused, /@0000002 is dated .* in the future/)
  t.ok(plan.decisions.every(one => one.action === 'keep'))
  t.strictSame(
    forced.decisions.map(one => `${one.point.sequence} ${one.reason}`),
    ['4 daily 1/2', '3 daily 2/2', '2 dated in the future', '1 no rule left (daily full)'],
  )
})

t.test('beside a point from the future the newest real one is kept all the same', async t => {
  const points = [point(1, '2026-11-20T01:00:00Z'), point(2, '2026-11-20T01:30:00Z'), point(3, '2031-01-01T01:00:00Z')]
  const options = { now: Date.parse('2026-11-20T02:00:00Z'), timeZone: BERLIN, force: true }

  t.strictSame(
    planRetention(points, { hourly: 1 }, options).decisions.map(one => one.reason),
    ['dated in the future', 'newest point', 'hourly 1/1'],
  )
})

t.test('a clock that went back by years refuses to plan, one that is five minutes off does not', async t => {
  const points = [point(1, '2026-11-19T01:00:00Z'), point(2, '2026-11-20T01:00:00Z')]
  const at = (now: string) => planRetention(points, { last: 1 }, { now: Date.parse(now), timeZone: BERLIN })

  t.ok(at('1970-01-01T00:00:00Z').refused)
  t.ok(at('2026-11-20T00:54:59Z').refused)
  t.equal(at('2026-11-20T00:55:00Z').refused, undefined)
})

t.test('a clock that jumped ahead by years does not let "within" expire the history', async t => {
  const points = [point(1, '2026-11-19T01:00:00Z'), point(2, '2026-11-20T01:00:00Z'), point(3, '2040-01-01T00:00:00Z')]
  const options = { now: Date.parse('2040-01-01T00:00:00Z'), timeZone: BERLIN }

  t.match(planRetention(points, { within: 30 * DAY_MS }, options).refused, /clock may have jumped/)
  t.equal(planRetention(points, { last: 2 }, options).refused, undefined)
})

t.test('newest and first go by sequence where the clock ran backwards', async t => {
  const points = [point(1, '2026-11-20T03:00:00Z'), point(2, '2026-11-20T01:00:00Z')]

  const { decisions } = planRetention(points, { daily: 1 }, { now: points[0]!.time, timeZone: BERLIN })

  t.strictSame(
    decisions.map(one => `${one.point.sequence} ${one.reason}`),
    ['2 newest point', '1 daily 1/1'],
  )
})

t.test('each domain and group is planned for itself', async t => {
  const of = (name: string, group: string, sequence: number) => ({
    ...point(sequence, Date.parse('2026-11-20T00:00:00Z') + sequence),
    domain: { uuid: `uuid-${name}`, name },
    group,
  })
  const points = [of('b', 'prod', 1), of('a', 'prod', 2), of('a', 'prod', 3), of('a', 'lab', 4)]

  const options = { now: Date.parse('2026-11-21T00:00:00Z'), timeZone: BERLIN }
  const plans = planRetentionByDomain(points, (_, group) => ({ last: group === 'lab' ? 5 : 1 }), options)

  t.strictSame(
    plans.map(plan => [plan.group, plan.domain.name, plan.decisions.map(one => one.action).join(' ')]),
    [
      ['lab', 'a', 'keep'],
      ['prod', 'a', 'keep expire'],
      ['prod', 'b', 'keep'],
    ],
  )
})

t.test('400 days of hourly backups come down to what the policy says', async t => {
  const policy: RetentionPolicy = { last: 2, hourly: 24, daily: 7, weekly: 4, monthly: 12, yearly: '*' }
  const times = evenTimes(Date.parse('2026-01-01T00:00:00Z'), 400, HOUR_MS)

  const { kept: left, backups, peak } = simulateRetention(times, policy, { timeZone: BERLIN })

  t.equal(backups, 9600)
  t.ok(peak <= 2 + 24 + 7 + 4 + 12 + 2, `${peak} at once`)
  const count = (rule: string) => left.filter(one => one.keptBy.includes(rule)).length
  t.strictSame(['last', 'hourly', 'daily', 'weekly', 'monthly', 'yearly'].map(count), [2, 24, 7, 4, 12, 2])
})

t.test('a simulation begins with the points that exist', async t => {
  const old = point(9, '2026-01-01T00:00:00Z', { hold: {} })

  const { kept: left } = simulateRetention(
    [Date.parse('2026-02-01T00:00:00Z')],
    { last: 1 },
    { timeZone: 'UTC', points: [old] },
  )

  t.strictSame(
    left.map(one => one.point.sequence),
    [10, 9],
  )
})

// Times jump to and fro: every property but those about the refusal must hold whatever the clocks did.
const START = Date.parse('2026-01-01T00:00:00Z')
const count = fc.oneof(fc.nat(5), fc.constant('*' as const), fc.constant(undefined))
const policies: fc.Arbitrary<RetentionPolicy> = fc.record({
  last: count,
  hourly: count,
  daily: count,
  weekly: count,
  monthly: count,
  yearly: count,
  within: fc.option(fc.integer({ min: 0, max: 40 * DAY_MS }), { nil: undefined }),
})
const histories = fc
  .array(fc.integer({ min: -3 * HOUR_MS, max: 9 * DAY_MS }), { minLength: 1, maxLength: 40 })
  .map(steps => {
    let time = START
    return steps.map((step, at) => point(at + 1, (time += step)))
  })
const NOW = START + 3000 * DAY_MS
const options = { now: NOW, timeZone: BERLIN, force: true }
const keptOf = (points: readonly RetainedPoint[], policy: RetentionPolicy) =>
  planRetention(points, policy, options).decisions.filter(one => one.action === 'keep')

t.test('no rule keeps more points than it asks for', async () => {
  fc.assert(
    fc.property(histories, policies, (points, policy) => {
      const left = keptOf(points, policy)
      return (['last', 'hourly', 'daily', 'weekly', 'monthly', 'yearly'] as const).every(rule => {
        const asked = policy[rule]
        return asked === '*' || left.filter(one => one.keptBy.includes(rule)).length <= (asked ?? 0)
      })
    }),
  )
})

t.test('the newest point is always kept', async () => {
  fc.assert(
    fc.property(histories, policies, (points, policy) => keptOf(points, policy)[0]?.point.sequence === points.length),
  )
})

t.test('planning again after the deletion keeps exactly the same', async () => {
  fc.assert(
    fc.property(histories, policies, (points, policy) => {
      const once = keptOf(points, policy)
      const twice = keptOf(
        once.map(one => one.point),
        policy,
      )
      return JSON.stringify(once) === JSON.stringify(twice)
    }),
  )
})

t.test('a newer point never brings an expired one back', async () => {
  fc.assert(
    fc.property(histories, policies, fc.integer({ min: -3 * HOUR_MS, max: 50 * DAY_MS }), (points, policy, step) => {
      const before = new Set(keptOf(points, policy).map(one => one.point.sequence))
      const newer = point(points.length + 1, points.at(-1)!.time + step)
      return keptOf([...points, newer], policy).every(
        one => one.point.sequence === newer.sequence || before.has(one.point.sequence),
      )
    }),
  )
})

t.test('the order in which points are listed does not matter', async () => {
  fc.assert(
    fc.property(histories, policies, (points, policy) => {
      return JSON.stringify(keptOf(points, policy)) === JSON.stringify(keptOf(points.toReversed(), policy))
    }),
  )
})
