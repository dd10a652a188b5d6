import t, { type Test } from 'tap'

import { type MissReason, Scheduler, type SchedulerLimits } from '../../../src/daemon/scheduler.js'
import type { TaskMemory } from '../../../src/daemon/task-memory.js'
import type { PullTask, RunOrder, RunOutcome, StoreTask, Task } from '../../../src/daemon/task.js'
import { completeSettings } from '../../../src/config/settings.js'
import { formatLocal, calendarIn } from '../../../src/model/calendar.js'
import { DAY_MS, HOUR_MS, MINUTE_MS } from '../../../src/model/duration.js'
import { planRetention, type RetainedPoint, simulateRetention } from '../../../src/model/retention.js'
import { parseSchedule, parseWindow } from '../../../src/model/schedule.js'
import { DrivenClock } from '../../fakes/driven-clock.js'

const ZONE = 'Europe/Berlin'
const GOOD: RunOutcome = { status: 'success', warnings: [], figures: {}, log: [] }
const BAD: RunOutcome = { ...GOOD, status: 'failed', error: { code: 'E_AGENT', message: 'no answer' } }
const LIMITS: SchedulerLimits = { host: 3, ofTarget: () => 2, retry: { attempts: 0, delay: 5 * MINUTE_MS } }

interface PullWish extends Partial<Omit<PullTask, 'schedule' | 'domain' | 'verb'>> {
  readonly name?: string
  readonly cron?: string
  readonly zone?: string
}

function pull({ name = 'db01', cron = '0 2 * * *', zone = ZONE, ...rest }: PullWish = {}): PullTask {
  const domain = { uuid: name, name }
  const target = rest.target ?? 'nas'
  return {
    id: `pull/${name}/prod/${target}`,
    verb: 'pull',
    domain,
    group: 'prod',
    together: `pull/${name}/prod`,
    job: {
      id: 'prod',
      domain,
      group: 'prod',
      description: undefined,
      settings: { ...completeSettings({}), timeZone: zone },
      originOf: () => undefined,
    },
    target,
    schedule: parseSchedule(cron, zone),
    jitterMs: 0,
    catchUp: true,
    window: undefined,
    priority: 0,
    paused: false,
    ...rest,
  }
}

function storeTask(verb: StoreTask['verb'], cron: string): StoreTask {
  return {
    id: `${verb}/nas`,
    verb,
    target: 'nas',
    schedule: parseSchedule(cron, ZONE),
    jitterMs: 0,
    catchUp: true,
    window: undefined,
    priority: 0,
    paused: false,
  }
}

interface Missed {
  readonly task: string
  readonly times: readonly number[]
  readonly reason: MissReason
  readonly isMadeUp: boolean
}

/** A scheduler with everything that it did. */
class Bench {
  readonly clock: DrivenClock
  readonly orders: RunOrder[] = []
  /** Task ids of each run. */
  readonly together: string[][] = []
  /** Whether anything was busy still, asked as each one was told. */
  readonly busyAfter: boolean[] = []
  readonly missed: Missed[] = []
  readonly stale: string[] = []
  readonly scheduler: Scheduler
  canRun = true
  work: (order: RunOrder, signal: AbortSignal) => Promise<RunOutcome> = () => Promise.resolve(GOOD)
  #ending = new AbortController()
  #loop: Promise<void> | undefined

  constructor(start: string | DrivenClock, limits: SchedulerLimits = LIMITS) {
    this.clock = typeof start === 'string' ? new DrivenClock(Date.parse(start)) : start
    this.scheduler = new Scheduler(
      {
        clock: this.clock,
        run: async (orders, signal) => {
          this.orders.push(...orders)
          this.together.push(orders.map(({ task }) => task.id))
          const outcomes = await Promise.all(orders.map(order => this.work(order, signal)))
          for (const [i, order] of orders.entries()) {
            order.settle(outcomes[i]!)
            this.busyAfter.push(this.scheduler.isBusy(() => true))
          }
        },
        onMissed: (task, missed) => this.missed.push({ task: task.id, ...missed }),
        onStale: task => this.stale.push(task.id),
        canRun: () => this.canRun,
        onChange: () => undefined,
        newRunId: () => `run${this.orders.length}`,
      },
      limits,
    )
  }

  start(tasks: readonly Task[], memories: ReadonlyMap<string, TaskMemory> = new Map()): void {
    this.scheduler.restore(memories)
    this.scheduler.setTasks(tasks)
    this.#loop = this.scheduler.run(this.#ending.signal)
  }

  async stop(): Promise<void> {
    this.#ending.abort()
    await this.#loop
  }

  started(): readonly string[] {
    return this.orders.map(order => local(order.started))
  }
}

const local = (time: number): string => formatLocal(calendarIn(ZONE).localTime(time)).slice(0, 16)

t.test('a task runs at its time, each day once', async t => {
  const bench = new Bench('2026-06-01T00:30:00Z')
  bench.start([pull()])

  await bench.clock.advance(3 * DAY_MS)
  await bench.stop()

  t.strictSame(bench.started(), ['2026-06-02T02:00', '2026-06-03T02:00', '2026-06-04T02:00'])
  t.strictSame([bench.missed, bench.stale], [[], []])
})

for (const [season, start, times] of [
  ['spring', '2026-03-28T00:00:00Z', ['2026-03-28T02:30', '2026-03-29T03:00', '2026-03-30T02:30']],
  ['autumn', '2026-10-24T00:00:00Z', ['2026-10-24T02:30', '2026-10-25T02:30', '2026-10-26T02:30']],
] as const) {
  t.test(`the night in which the clocks change in ${season} has one run`, async t => {
    const bench = new Bench(start)
    bench.start([pull({ cron: '30 2 * * *' })])

    await bench.clock.advance(3 * DAY_MS)
    await bench.stop()

    t.strictSame(bench.started(), times)
  })
}

t.test('after downtime one run makes up for all that were missed, which are told', async t => {
  const first = new Bench('2026-06-01T00:30:00Z')
  first.start([pull()])
  await first.clock.advance(DAY_MS)
  await first.stop()
  first.clock.jump(5 * DAY_MS)

  const second = new Bench(first.clock)
  second.start([pull()], first.scheduler.memories())
  await second.clock.advance(HOUR_MS)
  await second.stop()

  t.strictSame(
    second.orders.map(({ trigger }) => trigger),
    ['catch-up'],
  )
  t.match(second.missed, [{ reason: 'down', isMadeUp: true, times: { length: 4 } }])
  t.strictSame(second.started(), ['2026-06-07T02:30'])
})

t.test('without catch_up what was missed stays missed, and the job is stale until it runs', async t => {
  const task = pull({ catchUp: false })
  const memories = new Map([
    [task.id, { accountedUntil: Date.parse('2026-06-01T00:00:00Z'), firstSeen: Date.parse('2026-05-01T00:00:00Z') }],
  ])
  const bench = new Bench('2026-06-03T10:00:00Z')
  bench.start([task], memories)

  await bench.clock.advance(HOUR_MS)
  t.match(bench.missed, [{ reason: 'down', isMadeUp: false, times: { length: 2 } }])
  t.strictSame(bench.orders, [])
  t.strictSame(bench.stale, [task.id], 'told once')
  t.equal(bench.scheduler.views()[0]?.staleSince, Date.parse('2026-06-03T00:00:00Z'))

  await bench.clock.advance(DAY_MS)
  t.equal(bench.scheduler.views()[0]?.staleSince, undefined)
  await bench.stop()
  t.strictSame(bench.started(), ['2026-06-04T02:00'])
})

t.test('a job that cannot be begun is stale two hours after its time, and runs once it can', async t => {
  const bench = new Bench('2026-06-01T00:30:00Z')
  bench.canRun = false
  bench.start([pull()])

  await bench.clock.advance(DAY_MS + HOUR_MS)
  t.strictSame([bench.orders, bench.stale], [[], []])
  await bench.clock.advance(2 * HOUR_MS)
  t.strictSame(bench.stale, ['pull/db01/prod/nas'])
  bench.canRun = true
  await bench.clock.advance(5 * MINUTE_MS)
  await bench.stop()

  t.strictSame(
    bench.orders.map(({ trigger }) => trigger),
    ['catch-up'],
  )
  t.strictSame(bench.stale, ['pull/db01/prod/nas'])
})

t.test('a failure is tried again with growing pauses, and given up', async t => {
  const bench = new Bench('2026-06-01T00:30:00Z', { ...LIMITS, retry: { attempts: 3, delay: 5 * MINUTE_MS } })
  bench.work = () => Promise.resolve(BAD)
  bench.start([pull()])

  await bench.clock.advance(DAY_MS + 2 * HOUR_MS)
  await bench.stop()

  t.strictSame(bench.started(), ['2026-06-02T02:00', '2026-06-02T02:05', '2026-06-02T02:15', '2026-06-02T02:35'])
  t.strictSame(
    bench.orders.map(({ attempt }) => attempt),
    [1, 2, 3, 4],
  )
})

t.test('what cannot get better by itself is not tried again', async t => {
  const bench = new Bench('2026-06-01T00:30:00Z', { ...LIMITS, retry: { attempts: 3, delay: 5 * MINUTE_MS } })
  bench.work = () => Promise.resolve({ ...BAD, error: { code: 'E_KEY', message: 'wrong passphrase' } })
  bench.start([pull()])

  await bench.clock.advance(DAY_MS + 2 * HOUR_MS)
  await bench.stop()

  t.equal(bench.orders.length, 1)
})

t.test('outside its window a job waits for it to open', async t => {
  const bench = new Bench('2026-06-01T00:30:00Z')
  bench.start([pull({ cron: '0 12 * * *', window: parseWindow('22:00-06:00') })])

  await bench.clock.advance(2 * DAY_MS)
  await bench.stop()

  t.strictSame(bench.started(), ['2026-06-01T22:00', '2026-06-02T22:00'])
})

t.test('limits of host, target and domain hold, and the higher priority goes first', async t => {
  const bench = new Bench('2026-06-01T23:00:00Z')
  const now = new Set<RunOrder>()
  const peaks = { host: 0, nas: 0, domain: 0 }
  bench.work = async order => {
    now.add(order)
    const all = [...now]
    const name = order.task.verb === 'pull' ? order.task.domain.name : ''
    peaks.host = Math.max(peaks.host, all.length)
    peaks.nas = Math.max(peaks.nas, all.filter(({ task }) => task.target === 'nas').length)
    const same = all.filter(({ task }) => task.verb === 'pull' && task.domain.name === name)
    peaks.domain = Math.max(peaks.domain, same.length)
    await bench.clock.sleep(10 * MINUTE_MS)
    now.delete(order)
    return GOOD
  }
  const names = Array.from({ length: 10 }, (_, at) => `vm${at}`)
  bench.start([
    ...names.map(name => pull({ name, priority: name === 'vm7' ? 5 : 0 })),
    ...names.map(name => pull({ name, target: 'offsite', together: `pull/${name}/other` })),
  ])

  await bench.clock.advance(4 * HOUR_MS)
  await bench.stop()

  t.equal(bench.orders.length, 20)
  t.strictSame(peaks, { host: 3, nas: 2, domain: 1 })
  t.equal(bench.orders.find(({ task }) => task.target === 'nas')?.task.id, 'pull/vm7/prod/nas')
})

t.test('the targets of a job that are due together are one run, also when they are tried again', async t => {
  const bench = new Bench('2026-06-01T23:00:00Z', { ...LIMITS, retry: { attempts: 1, delay: MINUTE_MS } })
  bench.work = order => Promise.resolve(order.task.target === 'nas' || order.attempt > 1 ? GOOD : BAD)
  const targets = ['nas', 'offsite', 'third']
  bench.start(targets.map(target => pull({ target })))

  await bench.clock.advance(2 * HOUR_MS)
  bench.scheduler.runNow(['pull/db01/prod/third', 'pull/db01/prod/nas'])
  await bench.clock.advance(1)
  await bench.stop()

  t.strictSame(bench.together, [
    ['pull/db01/prod/nas', 'pull/db01/prod/offsite', 'pull/db01/prod/third'],
    ['pull/db01/prod/offsite', 'pull/db01/prod/third'],
    ['pull/db01/prod/third', 'pull/db01/prod/nas'],
  ])
})

t.test('the last of a run into several targets knows that it is the last', async t => {
  const bench = new Bench('2026-06-01T23:00:00Z')
  bench.start(['nas', 'offsite'].map(target => pull({ target })))

  await bench.clock.advance(2 * HOUR_MS)
  await bench.stop()

  t.strictSame(bench.busyAfter, [true, false])
})

t.test('a run into several targets takes a turn at each of them', async t => {
  const bench = new Bench('2026-06-01T23:00:00Z', { ...LIMITS, host: 9, ofTarget: () => 1 })
  let running = 0
  let peak = 0
  bench.work = async () => {
    peak = Math.max(peak, ++running)
    await bench.clock.sleep(MINUTE_MS)
    running--
    return GOOD
  }
  const names = ['a', 'b', 'c', 'd']
  bench.start(
    names.flatMap((name, i) => (i % 2 ? ['nas', 'offsite'] : ['offsite', 'nas']).map(target => pull({ name, target }))),
  )

  await bench.clock.advance(2 * HOUR_MS)
  await bench.stop()

  t.equal(bench.orders.length, 8, 'nobody waits in a circle')
  t.equal(peak, 2, 'one domain at a time, with both its targets')
})

t.test('prune, gc and verify of a store that are due together run in this order, beside pulls', async t => {
  const bench = new Bench('2026-06-01T23:00:00Z')
  bench.work = async () => {
    await bench.clock.sleep(MINUTE_MS)
    return GOOD
  }
  bench.start([storeTask('verify', '0 2 * * *'), storeTask('gc', '0 2 * * *'), storeTask('prune', '0 2 * * *')])

  await bench.clock.advance(3 * HOUR_MS)
  await bench.stop()

  // The first one found idle begins at once; the others by rank.
  t.strictSame(bench.orders.map(({ task }) => task.verb).slice(1), ['prune', 'gc'])
})

t.test('times that pass while a run is still going are told as overrun, and one run follows', async t => {
  const bench = new Bench('2026-06-01T00:30:00Z')
  bench.work = async () => {
    await bench.clock.sleep(200 * MINUTE_MS)
    return GOOD
  }
  bench.start([pull({ cron: '0 * * * *' })])

  await bench.clock.advance(4 * HOUR_MS)
  await bench.stop()

  t.equal(bench.orders.length, 2)
  t.match(bench.missed, [{ reason: 'overrun', isMadeUp: true, times: { length: 2 } }])
})

t.test('a clock that goes back neither repeats a run nor stops the job', async t => {
  const bench = new Bench('2026-06-01T00:30:00Z')
  bench.start([pull({ cron: '0 * * * *' })])
  await bench.clock.advance(2 * HOUR_MS)
  const before = bench.orders.length
  bench.clock.jump(-10 * DAY_MS)

  await bench.clock.advance(3 * HOUR_MS)
  await bench.stop()

  t.equal(bench.orders.length - before, 3)
})

t.test('new tasks wait for their time; removed, paused and rescheduled ones obey at once', async t => {
  const bench = new Bench('2026-06-01T00:30:00Z')
  bench.start([pull({ name: 'a' }), pull({ name: 'b' })])
  await bench.clock.advance(HOUR_MS)

  bench.scheduler.setTasks([
    pull({ name: 'b', paused: true }),
    pull({ name: 'c' }),
    pull({ name: 'd', cron: '0 5 * * *' }),
  ])
  await bench.clock.advance(DAY_MS)
  await bench.stop()

  t.strictSame(bench.orders.map(({ task }) => task.id).sort(), ['pull/c/prod/nas', 'pull/d/prod/nas'])
})

t.test('a task that runs already is not begun again by hand', async t => {
  const bench = new Bench('2026-06-01T00:30:00Z')
  bench.work = async () => {
    await bench.clock.sleep(HOUR_MS)
    return GOOD
  }
  const task = pull()
  bench.start([task])

  t.strictSame(bench.scheduler.runNow([task.id, 'pull/nobody']), [task.id])
  t.strictSame(bench.scheduler.runNow([task.id]), [])
  await bench.clock.advance(2 * HOUR_MS)
  await bench.stop()

  t.match(bench.orders, [{ trigger: 'manual', due: undefined }])
})

t.test('draining waits for what runs, aborts it at the limit, and begins nothing', async t => {
  const bench = new Bench('2026-06-01T23:50:00Z', { ...LIMITS, host: 1 })
  let aborted = 0
  bench.work = async (_, signal) => {
    await bench.clock.sleep(DAY_MS, signal).catch(() => aborted++)
    return BAD
  }
  bench.start([pull({ name: 'a' }), pull({ name: 'b' })])
  await bench.clock.advance(HOUR_MS)

  await bench.stop()
  const drained = bench.scheduler.drain(10 * MINUTE_MS)
  await bench.clock.advance(11 * MINUTE_MS)
  await drained

  t.equal(bench.orders.length, 1)
  t.equal(aborted, 1)
  const owed = bench.scheduler.memories().get('pull/b/prod/nas')?.accountedUntil ?? 0
  t.ok(owed < Date.parse('2026-06-02T00:00:00Z'), 'what was not begun is still owed')
})

t.test('a year of nights with downtime keeps the points that the policy promises', async t => {
  await simulateYear(t, ['2026-04-10', '2026-08-01', '2026-11-24'])
})

async function simulateYear(t: Test, downs: readonly string[]): Promise<void> {
  const policy = { hourly: 0, daily: 7, weekly: 4, monthly: 12, yearly: '*' } as const
  const clock = new DrivenClock(Date.parse('2026-01-01T12:00:00Z'))
  const end = clock.now() + 365 * DAY_MS
  const times: number[] = []
  let points: readonly RetainedPoint[] = []
  let memories: ReadonlyMap<string, TaskMemory> = new Map()
  const missed: number[] = []
  for (const stop of [...downs.map(day => Date.parse(`${day}T12:00:00Z`)), end]) {
    const bench = new Bench(clock, { ...LIMITS, lookEveryMs: HOUR_MS })
    bench.work = () => {
      const now = clock.now()
      times.push(now)
      const added = { id: String(times.length).padStart(32, '0'), time: now, sequence: times.length, tags: [] }
      const plan = planRetention([...points, added], policy, { now, timeZone: ZONE })
      points = plan.decisions.flatMap(({ action, point }) => (action === 'keep' ? [point] : []))
      return Promise.resolve(GOOD)
    }
    bench.start([pull({ cron: '30 2 * * *', jitterMs: 7 * MINUTE_MS })], memories)
    await clock.advance(stop - clock.now())
    await bench.stop()
    missed.push(...bench.missed.flatMap(one => one.times))
    memories = bench.scheduler.memories()
    // The host is off for three nights.
    if (stop < end) clock.jump(3.25 * DAY_MS)
  }

  // Of three missed nights two are lost, and the last is made up for on the evening after.
  const nights = 365 - 2 * downs.length
  t.equal(times.length, nights, 'each night that the host was up has one point, the last missed one is made up for')
  t.equal(missed.length, 2 * downs.length, 'the others are told')
  const days = new Set(times.map(time => local(time).slice(0, 10)))
  t.equal(days.size, times.length, 'no day has two, not the ones of 25 or 23 hours either')
  const expected = simulateRetention(times, policy, { timeZone: ZONE }).kept
  t.strictSame(
    points.map(({ time }) => time),
    expected.map(({ point }) => point.time),
  )
  const months = new Set(points.map(({ time }) => local(time).slice(0, 7)))
  t.equal(months.size, 13, 'twelve by month, and the January before them by year')
  const lastSeven = points.slice(0, 7).map(({ time }) => Math.round((end - time) / DAY_MS))
  t.strictSame(lastSeven, [0, 1, 2, 3, 4, 5, 6], 'the last seven nights')
}
