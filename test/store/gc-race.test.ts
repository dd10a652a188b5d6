import t from 'tap'

import type { Clock } from '../../src/base/clock.js'
import { errorCodeOf } from '../../src/base/errors.js'
import { GcJob } from '../../src/jobs/gc-job.js'
import { SILENT_PROGRESS } from '../../src/jobs/progress.js'
import { Store } from '../../src/store/store.js'
import type { CollectorPort, GcSurvey } from '../../src/store/store-types.js'
import { ActorFs, type ActorHooks, Killed } from '../fakes/actor-fs.js'
import { MemoryProvider } from '../fakes/memory-provider.js'
import { SimulatedFs } from '../fakes/simulated-fs.js'
import { CHUNK, contentsOf, type Disk, diskBytes, never, pull, putDisk, readDisk, sideOf } from './harness.js'

/*
 * The race of reliability-tools/mc.py, played with the real code: a chunk lies
 * in the store and no point names it; two pulls want it, one inherits it from
 * the other's point, that point is forgotten, a gc takes the chunk away, and
 * dies on the way. A seed decides who goes on next and where the gc is killed.
 */

const ROOT = '/store'
const geometry = { size: 8 * CHUNK, chunkSize: CHUNK }
const SCHEDULES = Number(process.env['GC_RACE_SCHEDULES'] ?? 120)
t.setTimeout(600_000)

type Mutant = 'none' | 'no consult' | 'no drain' | 'no relist' | 'no tombstone'

/** A small generator, so that a failure can be run again. */
function numbers(seed: number): (choices: number) => number {
  let state = (seed * 2654435761 + 12345) >>> 0
  const next = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state
  }
  for (let warm = 0; warm < 8; warm++) next()
  return choices => Math.floor((next() / 2 ** 32) * choices)
}

/** Lets exactly one actor run at a time, from one gate to the next. */
class Schedule {
  readonly #waiting = new Map<string, () => void>()
  readonly #running = new Set<string>()
  #onQuiet: (() => void) | undefined

  start(name: string, work: (gate: () => Promise<void>) => Promise<void>): Promise<void> {
    this.#running.add(name)
    const gate = () =>
      new Promise<void>(go => {
        this.#waiting.set(name, go)
        this.#settle(name)
      })
    return gate()
      .then(() => work(gate))
      .finally(() => this.#settle(name))
  }

  async play(next: (waiting: readonly string[]) => string): Promise<void> {
    while (this.#waiting.size > 0) {
      const name = next([...this.#waiting.keys()].sort())
      const go = this.#waiting.get(name)!
      this.#waiting.delete(name)
      this.#running.add(name)
      const quiet = new Promise<void>(done => (this.#onQuiet = done))
      go()
      await quiet
    }
  }

  #settle(name: string): void {
    this.#running.delete(name)
    if (this.#running.size === 0) this.#onQuiet?.()
  }
}

type Actor = 'pull0' | 'pull1' | 'prune' | 'gc0' | 'gc1'

interface Order {
  readonly actors: ReadonlySet<Actor>
  /** Who goes on, of those who wait. */
  readonly next: (waiting: readonly string[]) => string
  /** Change to the disk before which gc0 is killed. */
  readonly killAt: number | undefined
}

function randomOrder(seed: number): Order {
  const choose = numbers(seed)
  const killAt = choose(3) === 0 ? choose(24) : undefined
  const actors = new Set<Actor>(['pull0', 'gc0'])
  if (choose(4) > 0) actors.add('pull1')
  if (choose(3) > 0) actors.add('prune')
  if (choose(3) === 0) actors.add('gc1')
  return { actors, killAt, next: waiting => waiting[choose(waiting.length)]! }
}

/** `pull0*4 gc0*2`: so many steps of each, then everybody in turn until all are done. */
function writtenOrder(text: string): Order {
  const steps = text.split(' ').flatMap(part => {
    const [name = '', count = '1'] = part.split('*')
    return Array.from({ length: Number(count) }, () => name)
  })
  let turn = 0
  const next = (waiting: readonly string[]) => {
    const wanted = steps.shift()
    return wanted !== undefined && waiting.includes(wanted) ? wanted : waiting[turn++ % waiting.length]!
  }
  return { actors: new Set(steps as Actor[]), killAt: undefined, next }
}

/** `undefined` where every listed point is whole at the end. */
async function race(order: Order, mutant: Mutant): Promise<string | undefined> {
  const disk = new SimulatedFs()
  const provider = new MemoryProvider()
  const contents = new Map<string, Disk>()
  await Store.init(ROOT, { fs: disk })
  const open = (hooks: ActorHooks = {}) => {
    const fs = new ActorFs(disk, hooks)
    return Store.open(ROOT, { fs, index: provider }).then(store => ({ fs, store }))
  }
  {
    const { store } = await open()
    const anchor = await pull(store, geometry, [[7, 9]])
    contents.set(anchor.point.id, new Map([[7, 9]]))
    // The chunk with seed 1 in a pack of its own, the one with seed 5 beside one that stays.
    await store.points.remove((await pull(store, geometry, [[0, 1]])).point)
    await store.points.remove(
      (
        await pull(store, geometry, [
          [7, 9],
          [1, 5],
          [2, 6],
        ])
      ).point,
    )
    const beside = await pull(store, geometry, [[2, 6]])
    contents.set(beside.point.id, new Map([[2, 6]]))
  }

  const schedule = new Schedule()
  const noConsult: ActorHooks =
    mutant === 'no consult' ? { readWhole: path => (path.endsWith('condemned.set') ? undefined : 'as it is') } : {}
  const noTombstone: ActorHooks =
    mutant === 'no tombstone' ? { freeLock: (path, mode) => path.endsWith('gc.lock') && mode === 'shared' } : {}
  const writer = (name: string, chunks: Disk, inherits: boolean) =>
    schedule.start(name, async gate => {
      const { store } = await open(noConsult)
      await using run = await store.runs.begin('pull')
      await gate()
      const latest = inherits ? (await store.points.list()).at(-1) : undefined
      await gate()
      await using draft = await store.draft(run)
      await gate()
      const { root } = await putDisk(draft, geometry, chunks, latest === undefined ? undefined : sideOf(latest))
      await gate()
      const whole = new Map([...(latest === undefined ? [] : contents.get(latest.id)!), ...chunks])
      const point = await draft.commit(contentsOf(geometry, root, latest)).catch((error: unknown) => {
        // A pull that fails loudly loses nothing.
        if (errorCodeOf(error) === 'E_DAMAGED') return undefined
        throw error
      })
      if (point !== undefined) contents.set(point.id, whole)
      await gate()
      await run.finish()
    })
  const startPruner = () =>
    schedule.start('prune', async gate => {
      const { store } = await open(noTombstone)
      for (let round = 0; round < 4; round++) {
        const victim = (await store.points.list()).find(point => contents.get(point.id)?.has(0))
        await gate()
        if (victim !== undefined) return store.points.remove(victim)
      }
    })
  const collector = (cycle: number) =>
    schedule.start(`gc${cycle}`, async gate => {
      let changes = 0
      const { fs, store } = await open({
        before: async (kind, path) => {
          if (cycle === 0 && changes++ === order.killAt) await fs.kill()
          if (kind === 'remove' && path.endsWith('.pack')) await gate()
        },
      })
      const job = new GcJob({
        collector: gated(store.collector(), gate, mutant),
        progress: SILENT_PROGRESS,
        clock: pollingClock(gate),
        confirmMuch: () => Promise.resolve(),
      })
      await job.run({}, never).catch((error: unknown) => {
        if (!(error instanceof Killed) && errorCodeOf(error) !== 'E_LOCKED' && !isSuppressed(error)) throw error
      })
      await fs.kill()
    })
  const starts: Record<Actor, () => Promise<void>> = {
    pull0: () =>
      writer(
        'pull0',
        new Map([
          [0, 1],
          [1, 5],
        ]),
        false,
      ),
    pull1: () => writer('pull1', new Map([[3, 1]]), true),
    prune: startPruner,
    gc0: () => collector(0),
    gc1: () => collector(1),
  }
  const actors = [...order.actors].map(name => starts[name]())
  for (const actor of actors) actor.catch(() => undefined)
  await schedule.play(order.next)
  await Promise.all(actors)

  for (const index of [provider, new MemoryProvider()]) {
    const store = await Store.open(ROOT, { fs: disk, index: index })
    for (const point of await store.points.list()) {
      const bytes = await readDisk(store, sideOf(point)).catch((error: unknown) => errorCodeOf(error))
      if (typeof bytes === 'string') return `point ${contents.get(point.id)?.size ?? 0} chunks: ${bytes}`
      if (!bytes.equals(diskBytes(geometry, contents.get(point.id)!))) return 'a point has other bytes'
    }
  }
  return undefined
}

function gated(collector: CollectorPort, gate: () => Promise<void>, mutant: Mutant): CollectorPort {
  const before =
    <In extends unknown[], Out>(work: (...input: In) => Promise<Out>) =>
    async (...input: In) => {
      await gate()
      return work(...input)
    }
  return {
    lock: before(() => collector.lock()),
    tidy: before(signal => collector.tidy(signal)),
    survey: before(async signal => gatedSurvey(await collector.survey(signal), gate, mutant)),
    condemn: before(packs => collector.condemn(packs)),
    pardon: before(() => collector.pardon()),
    liveRuns: before(() => (mutant === 'no drain' ? Promise.resolve([]) : collector.liveRuns())),
  }
}

function gatedSurvey(survey: GcSurvey, gate: () => Promise<void>, mutant: Mutant): GcSurvey {
  return {
    get use() {
      return survey.use
    },
    relist: async signal => {
      await gate()
      if (mutant !== 'no relist') await survey.relist(signal)
    },
    sweep: async (work, signal) => {
      await gate()
      return survey.sweep(work, signal)
    },
    [Symbol.asyncDispose]: () => survey[Symbol.asyncDispose](),
  }
}

function pollingClock(gate: () => Promise<void>): Clock {
  let now = 0
  return { now: () => now, monotonic: () => now++, sleep: () => gate() }
}

function isSuppressed(error: unknown): boolean {
  return error instanceof Error && error.name === 'SuppressedError'
}

t.test(
  `in ${SCHEDULES} orders of two pulls, a prune and two gcs, some of them killed, no point loses a chunk`,
  async t => {
    for (let seed = 0; seed < SCHEDULES; seed++) {
      const lost = await race(randomOrder(seed), 'none')
      if (lost !== undefined) t.fail(`seed ${seed}: ${lost}`)
    }
    t.pass()
  },
)

/** Each order is harmless, and loses a chunk as soon as one rule of the protocol is left out. */
const TRAPS: readonly (readonly [mutant: Mutant, order: string])[] = [
  ['no consult', 'gc0*6 pull0*4 gc0*1 pull0*1 gc0*9 pull0*9'],
  ['no drain', 'gc0*4 pull0*4 gc0*3 pull0*1 gc0*9 pull0*9'],
  ['no relist', 'gc0*4 pull0*6 gc0*9'],
  ['no tombstone', 'pull0*4 gc0*7 pull0*2 pull1*4 prune*2 gc0*3 pull1*2 gc0*9'],
]

for (const [mutant, order] of TRAPS) {
  t.test(`with ${mutant}, an order that is harmless otherwise loses a chunk: this test can fail`, async t => {
    t.equal(await race(writtenOrder(order), 'none'), undefined)
    t.ok(await race(writtenOrder(order), mutant))
  })
}
