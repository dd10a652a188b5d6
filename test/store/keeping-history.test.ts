import fc from 'fast-check'
import t from 'tap'

import type { Clock } from '../../src/base/clock.js'
import { errorCodeOf } from '../../src/base/errors.js'
import { GcJob } from '../../src/jobs/gc-job.js'
import { executePrune, planPrune, readPruned } from '../../src/jobs/prune-job.js'
import { SILENT_PROGRESS } from '../../src/jobs/progress.js'
import { VerifyJob } from '../../src/jobs/verify-job.js'
import type { RecoveryPoint } from '../../src/model/recovery-point.js'
import { Store } from '../../src/store/store.js'
import { MemoryProvider } from '../fakes/memory-provider.js'
import { SimulatedFs } from '../fakes/simulated-fs.js'
import { CHUNK, contentsOf, type Disk, diskBytes, never, putDisk, readDisk, sideOf } from './harness.js'

const ROOT = '/store'
const CHUNKS = 140
const geometry = { size: CHUNKS * CHUNK, chunkSize: CHUNK }
const RUNS = Number(process.env['HISTORY_RUNS'] ?? 40)
t.setTimeout(600_000)

type Step =
  | { readonly kind: 'pull'; readonly changes: readonly (readonly [number, number])[]; readonly inherits: boolean }
  | { readonly kind: 'forget'; readonly which: number }
  | { readonly kind: 'prune'; readonly last: number }
  | { readonly kind: 'gc'; readonly threshold: number }
  | { readonly kind: 'rebuild' }

/** A step, and the change to the disk before which the power goes, with what is then lost. */
interface Event {
  readonly step: Step
  readonly cut: number | undefined
  readonly loss: number
}

const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 5,
    arbitrary: fc.record({
      kind: fc.constant('pull' as const),
      // Few seeds: so that chunks are shared, die, and come back.
      changes: fc.array(fc.tuple(fc.constantFrom(0, 1, 2, 127, 128, 139), fc.integer({ min: -1, max: 6 })), {
        maxLength: 6,
      }),
      inherits: fc.boolean(),
    }),
  },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('forget' as const), which: fc.nat(10) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('prune' as const), last: fc.integer({ min: 1, max: 3 }) }) },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant('gc' as const), threshold: fc.constantFrom(0, 0.6, 1) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('rebuild' as const) }) },
)
const event: fc.Arbitrary<Event> = fc.record({
  step,
  cut: fc.option(fc.nat(40), { nil: undefined, freq: 3 }),
  loss: fc.nat(1000),
})

class World {
  fs = new SimulatedFs()
  provider = new MemoryProvider()
  /** Points that must be there, with what their disk holds. */
  readonly points = new Map<string, Disk>()
  /** Content of a pull that the power cut: it may have been committed. */
  attempted: Disk | undefined
  /** Points whose deletion the power cut: they may be gone. */
  readonly doubtful = new Set<string>()

  open(): Promise<Store> {
    return Store.open(ROOT, { fs: this.fs, index: this.provider })
  }

  async take({ step, cut, loss }: Event): Promise<void> {
    const first = this.fs.operations
    this.attempted = undefined
    this.doubtful.clear()
    this.fs.onOperation = ({ count }) => {
      if (cut !== undefined && count >= first + cut) this.fs.powerOff()
      return undefined
    }
    try {
      await this.#do(step)
      this.fs.onOperation = undefined
    } catch (error) {
      if (cut === undefined) throw error
      this.fs = this.fs.afterPowerCut(
        loss % 3 === 0 ? 'everything' : loss % 3 === 1 ? 'nothing' : choices => loss % choices,
      )
      // LevelDB comes back as it was, or empty.
      if (loss % 2 === 0) this.provider = new MemoryProvider()
    }
    await this.#settle()
  }

  async #do(step: Step): Promise<void> {
    await using store = await this.open()
    switch (step.kind) {
      case 'pull': {
        const latest = step.inherits ? (await store.points.list()).at(-1) : undefined
        await this.#pull(store, new Map(step.changes), latest)
        break
      }
      case 'forget': {
        const points = await store.points.list()
        const victim = points[step.which % Math.max(1, points.length)]
        if (victim !== undefined && points.length > 1)
          await this.#forget([victim.id], () => store.points.remove(victim))
        break
      }
      case 'prune': {
        const found = await readPruned(store.points, () => true)
        const options = { now: 1_800_000_000_000, timeZone: 'UTC' }
        const plan = planPrune(found, () => ({ group: undefined, policy: { last: step.last } }), options)
        const gone = plan.flatMap(one =>
          one.decisions.filter(({ action }) => action === 'expire').map(one => one.point.id),
        )
        await this.#forget(gone, () => executePrune(store.points, plan, options.now, never))
        break
      }
      case 'gc': {
        const job = new GcJob({
          collector: store.collector(),
          progress: SILENT_PROGRESS,
          clock: stillClock,
          confirmMuch: () => Promise.resolve(),
        })
        await job.run({ threshold: step.threshold }, never).catch((error: unknown) => {
          if (errorCodeOf(error) !== 'E_REFUSED') throw error
        })
        break
      }
      case 'rebuild':
        this.provider = new MemoryProvider()
    }
  }

  async #pull(store: Store, changes: Disk, latest: RecoveryPoint | undefined): Promise<void> {
    const disk = new Map([...(latest === undefined ? [] : this.points.get(latest.id)!), ...changes])
    this.attempted = disk
    await using run = await store.runs.begin('pull')
    await using draft = await store.draft(run)
    const { root } = await putDisk(draft, geometry, changes, latest === undefined ? undefined : sideOf(latest))
    const point = await draft.commit(contentsOf(geometry, root, latest))
    this.points.set(point.id, disk)
    await run.finish()
  }

  async #forget(ids: readonly string[], work: () => Promise<unknown>): Promise<void> {
    for (const id of ids) this.doubtful.add(id)
    await work()
    for (const id of ids) this.points.delete(id)
    this.doubtful.clear()
  }

  /** Takes note of how an interrupted step ended. */
  async #settle(): Promise<void> {
    await using store = await this.open()
    const listed = new Set((await store.points.list()).map(({ id }) => id))
    for (const id of this.doubtful) if (!listed.has(id)) this.points.delete(id)
    for (const id of listed)
      if (!this.points.has(id) && this.attempted !== undefined) this.points.set(id, this.attempted)
    for (const run of await store.runs.dead()) await run.remove()
  }

  async check(): Promise<void> {
    await using store = await this.open()
    const listed = await store.points.list()
    if (listed.length !== this.points.size)
      throw new Error(`${listed.length} points where ${this.points.size} should be`)
    for (const point of listed) {
      const bytes = await readDisk(store, sideOf(point))
      if (!bytes.equals(diskBytes(geometry, this.points.get(point.id)!))) throw new Error('a point has other bytes')
    }
    const verify = new VerifyJob({
      points: store.points,
      verifier: store.verifier(),
      progress: SILENT_PROGRESS,
      clock: stillClock,
    })
    const { hurt, lostIds, unreadable } = await verify.run({ level: 'data', isMeant: () => true }, never)
    if (hurt.length + lostIds + unreadable.length > 0) throw new Error('verify sees damage where there is none')
  }
}

const stillClock: Clock = { now: () => 1_800_000_000_000, monotonic: () => 0, sleep: () => Promise.resolve() }

t.test('whatever pulls, prunes, gcs, power cuts and index rebuilds do, every point keeps its bytes', async t => {
  await fc.assert(
    fc.asyncProperty(fc.array(event, { minLength: 4, maxLength: 14 }), async events => {
      const world = new World()
      await Store.init(ROOT, { fs: world.fs })
      for (const event of events) await world.take(event)
      await world.check()
      world.provider = new MemoryProvider()
      await world.check()
    }),
    { numRuns: RUNS, interruptAfterTimeLimit: 300_000 },
  )
  t.pass()
})

t.test('a gc after everything but one point is forgotten leaves what that point needs, and little else', async t => {
  const world = new World()
  await Store.init(ROOT, { fs: world.fs })
  const pull = (changes: readonly (readonly [number, number])[], inherits: boolean): Event => ({
    step: { kind: 'pull', changes, inherits },
    cut: undefined,
    loss: 0,
  })
  for (let round = 0; round < 12; round++) await world.take(pull([[round, round + 1]], true))
  await world.take({ step: { kind: 'prune', last: 1 }, cut: undefined, loss: 0 })
  await world.take({ step: { kind: 'gc', threshold: 1 }, cut: undefined, loss: 0 })
  await world.check()

  const packs = [...world.fs.files().keys()].filter(name => name.endsWith('.pack'))
  t.ok(packs.length <= 14, `${packs.length} packs`)
  t.equal(world.points.size, 1)
})
