/*
 * The power goes at every single moment at which a command makes something
 * durable: before each sync of a file or directory and before each change of
 * the index. POWER_CUT=full cuts before every change to the disk, with more
 * ways to lose what was not synced (npm run test:power-cut).
 */
import t from 'tap'

import type { Clock } from '../../src/base/clock.js'
import { errorCodeOf } from '../../src/base/errors.js'
import { GcJob } from '../../src/jobs/gc-job.js'
import { SILENT_PROGRESS } from '../../src/jobs/progress.js'
import { executePrune, planPrune, readPruned } from '../../src/jobs/prune-job.js'
import { VerifyJob } from '../../src/jobs/verify-job.js'
import type { RecoveryPoint } from '../../src/model/recovery-point.js'
import type { ChunkIndex } from '../../src/store/chunk-index.js'
import { KeyRing } from '../../src/store/key-ring.js'
import { MemoryIndex } from '../../src/store/memory-index.js'
import { Store } from '../../src/store/store.js'
import { MeteredIndex, copyOf, providerOf } from '../fakes/metered-index.js'
import { type Loss, type Operation, PowerCut, SimulatedFs } from '../fakes/simulated-fs.js'
import {
  CHEAP_SCRYPT,
  CHUNK,
  chunkBytes,
  contentsOf,
  type Disk,
  given,
  never,
  pull,
  putDisk,
  sideOf,
} from './harness.js'

const ROOT = '/store'
const geometry = { size: 140 * CHUNK, chunkSize: CHUNK }
const IS_FULL = process.env['POWER_CUT'] === 'full'
const TORN_SEEDS = IS_FULL ? [1, 2, 3, 4, 5, 6, 7, 8, 9] : [0, 1]
const NOW = 1_800_000_000_000
const stillClock: Clock = { now: () => NOW, monotonic: () => 0, sleep: () => Promise.resolve() }
t.setTimeout(IS_FULL ? 3_600_000 : 300_000)

/** A store on its disk, and what must be true of it. */
interface Base {
  readonly fs: SimulatedFs
  readonly index: ChunkIndex
  /** By id of the point. */
  readonly contents: ReadonlyMap<string, Disk>
  /** Points that the command may delete, and has deleted when it is done. */
  readonly going: ReadonlySet<string>
}

interface Command {
  readonly name: string
  readonly base: () => Promise<Base>
  /** May be called again after it was cut off. */
  readonly run: (store: Store, base: Base) => Promise<void>
  /** Undefined where `run` has done all it should. */
  readonly unfinished?: (store: Store, base: Base) => Promise<string | undefined>
}

/** How the disk and the index come back. */
interface Aftermath {
  readonly loss: Loss
  /** kept: LevelDB has all it was told; stale: as before the command; empty: it is gone. */
  readonly index: 'kept' | 'stale' | 'empty'
}

const aftermaths: readonly Aftermath[] = [
  { loss: 'everything', index: 'kept' },
  { loss: 'everything', index: 'stale' },
  { loss: 'nothing', index: 'kept' },
  { loss: 'nothing', index: 'stale' },
  ...TORN_SEEDS.flatMap((seed): Aftermath[] => [
    { loss: numbers(seed), index: (['kept', 'empty', 'stale'] as const)[seed % 3] ?? 'kept' },
  ]),
]

/** Points of several ages: they share chunks, no two share all. */
async function grown(forget: (points: readonly RecoveryPoint[]) => readonly RecoveryPoint[]): Promise<Base> {
  const fs = new SimulatedFs()
  const index = new MemoryIndex()
  const contents = new Map<string, Disk>()
  await Store.init(ROOT, { fs })
  await using store = await Store.open(ROOT, { fs, index: providerOf(index) })
  const points: RecoveryPoint[] = []
  const changes: readonly (readonly [number, number])[][] = [
    [
      [0, 1],
      [1, 2],
      [2, 3],
      [130, 4],
    ],
    [
      [0, 5],
      [131, 6],
    ],
    [
      [1, 7],
      [2, 0],
    ],
    [
      [139, 8],
      [3, 2],
    ],
    [
      [0, 9],
      [130, -1],
    ],
  ]
  let disk: Disk = new Map()
  for (const change of changes) {
    disk = new Map([...disk, ...change])
    const { point } = await pull(store, geometry, change, points.at(-1))
    contents.set(point.id, disk)
    points.push(point)
  }
  await store.points.annotate(points[3]!, { tags: ['kept'] })
  for (const point of forget(points)) {
    await store.points.remove(point)
    contents.delete(point.id)
  }
  return { fs, index, contents, going: new Set() }
}

/** What a killed pull and a gc that broke off leave. */
async function littered(): Promise<Base> {
  const base = await grown(points => points.slice(0, 2))
  const before = base.fs.operations
  base.fs.onOperation = ({ count }) => {
    if (count >= before + 9) base.fs.powerOff()
    return undefined
  }
  const store = await Store.open(ROOT, { fs: base.fs, index: providerOf(base.index) })
  await pull(store, geometry, [[50, 77]]).then(
    () => t.fail('the pull was to be cut off'),
    () => undefined,
  )
  const fs = base.fs.afterPowerCut('nothing')
  // The packs of a gc that died between file and index.
  const reopened = await Store.open(ROOT, { fs, index: providerOf(base.index) })
  await reopened.collector().condemn((await reopened.packs.list()).slice(0, 2))
  return { ...base, fs }
}

async function collect(store: Store): Promise<void> {
  const ports = { collector: store.collector(), progress: SILENT_PROGRESS, clock: stillClock }
  await new GcJob({ ...ports, confirmMuch: () => Promise.resolve() }).run({ threshold: 1 }, never)
}

async function uncollected(store: Store): Promise<string | undefined> {
  const ports = { collector: store.collector(), progress: SILENT_PROGRESS, clock: stillClock }
  const job = new GcJob({ ...ports, confirmMuch: () => Promise.resolve() })
  const { dead, rewritten, doubtful } = await job.plan({ threshold: 1 }, never)
  return dead.length + rewritten.length + doubtful.length === 0 ? undefined : 'gc left packs'
}

async function notForgotten(store: Store, { going }: Base): Promise<string | undefined> {
  const left = (await store.points.list()).filter(({ id }) => going.has(id))
  return left.length === 0 ? undefined : 'a point is still there'
}

async function pruneToOne(store: Store): Promise<void> {
  const found = await readPruned(store.points, () => true)
  const plan = planPrune(found, () => ({ group: undefined, policy: { last: 1 } }), { now: NOW, timeZone: 'UTC' })
  await executePrune(store.points, plan, NOW, never)
}

async function forgetGoing(store: Store, { going }: Base): Promise<void> {
  for (const point of await store.points.list()) if (going.has(point.id)) await store.points.remove(point)
}

/** All but the newest may go. */
async function shrinking(): Promise<Base> {
  const base = await grown(() => [])
  return { ...base, going: new Set([...base.contents.keys()].slice(0, -1)) }
}

const commands: readonly Command[] = [
  { name: 'prune', base: shrinking, run: pruneToOne, unfinished: notForgotten },
  { name: 'forget', base: shrinking, run: forgetGoing, unfinished: notForgotten },
  {
    name: 'forget while a gc is at work',
    base: shrinking,
    run: async (store, base) => {
      await using _gc = await store.runs.lockGc()
      await forgetGoing(store, base)
    },
    unfinished: notForgotten,
  },
  {
    name: 'gc, all points forgotten but one',
    base: () => grown(points => points.slice(0, 4)),
    run: collect,
    unfinished: uncollected,
  },
  {
    name: 'gc, rewriting',
    base: () => grown(points => [points[0]!, points[3]!]),
    run: collect,
    unfinished: uncollected,
  },
  { name: 'gc after a pull and a gc that died', base: littered, run: collect, unfinished: uncollected },
  {
    name: 'rebuild of the index',
    base: () => grown(() => []),
    run: async store => {
      await store.index.rebuild()
    },
    unfinished: async store => {
      const known = await store.index.use(index => index.packs())
      return known.size === (await store.packs.list()).length ? undefined : 'the index lacks packs'
    },
  },
]

/** Counts the moments at which the power may go, and lets it go at one of them. */
class Plug {
  readonly #fs: SimulatedFs
  readonly #cutAt: number
  moments = 0
  isOff = false

  constructor(fs: SimulatedFs, cutAt: number) {
    this.#fs = fs
    this.#cutAt = cutAt
    fs.onOperation = operation => {
      if (isMoment(operation)) this.#pass()
      return undefined
    }
  }

  readonly beforeIndexChange = (): void => {
    this.#pass()
    if (this.isOff) throw new PowerCut()
  }

  #pass(): void {
    if (this.moments++ < this.#cutAt) return
    this.isOff = true
    this.#fs.powerOff()
  }
}

function isMoment({ kind }: Operation): boolean {
  return IS_FULL || kind === 'sync' || kind === 'syncdir'
}

/** Runs `command` until the power goes at moment `cutAt`. */
async function cutOff(
  command: Command,
  base: Base,
  { cutAt, forgets }: { readonly cutAt: number; readonly forgets?: SimulatedFs['forgets'] },
): Promise<{ readonly plug: Plug; readonly fs: SimulatedFs; readonly index: ChunkIndex }> {
  const fs = base.fs.afterPowerCut('nothing')
  fs.forgets = forgets
  const index = await copyOf(base.index)
  const plug = new Plug(fs, cutAt)
  const metered = new MeteredIndex(index, plug.beforeIndexChange)
  try {
    const store = await Store.open(ROOT, { fs, index: providerOf(metered) })
    await command.run(store, base)
    await store[Symbol.asyncDispose]()
  } catch (error) {
    if (!plug.isOff || !isPowerCut(error)) throw error
  }
  return { plug, fs, index }
}

/** Undefined where nothing that was acknowledged is lost and `command` can be finished. */
async function examine(
  command: Command,
  base: Base,
  after: { fs: SimulatedFs; index: ChunkIndex },
): Promise<string | undefined> {
  await using store = await Store.open(ROOT, { fs: after.fs, index: providerOf(after.index) })
  const found = await damageOf(store, base, ['quick', 'data'])
  if (found !== undefined) return found
  await command.run(store, base)
  const unfinished = await command.unfinished?.(store, base)
  if (unfinished !== undefined) return `after the second run: ${unfinished}`
  const later = await damageOf(store, base, ['data'])
  if (later !== undefined) return `after the second run: ${later}`
  const next = await pull(store, geometry, [[7, 70]])
  return (await wrongChunk(store, next.point, new Map([[7, 70]]))) === undefined ? undefined : 'the next pull is wrong'
}

async function damageOf(
  store: Store,
  { contents, going }: Base,
  levels: readonly ('quick' | 'data')[],
): Promise<string | undefined> {
  const points = await store.points.list()
  const listed = new Set(points.map(({ id }) => id))
  for (const id of contents.keys()) if (!listed.has(id) && !going.has(id)) return `point ${id} is lost`
  for (const level of levels) {
    const verify = new VerifyJob({
      points: store.points,
      verifier: store.verifier(),
      progress: SILENT_PROGRESS,
      clock: stillClock,
    })
    const { hurt, unreadable, lostIds } = await verify.run({ level, isMeant: () => true }, never)
    if (hurt.length + unreadable.length + lostIds > 0) return `verify ${level} finds damage`
  }
  for (const point of points) {
    const known = contents.get(point.id)
    if (known === undefined) return `point ${point.id} is back from the dead`
    const wrong = await wrongChunk(store, point, known)
    if (wrong !== undefined) return `point ${point.id} has other bytes at chunk ${wrong}`
  }
  return undefined
}

/** Restores a disk chunk by chunk; undefined where each is as it was backed up. */
async function wrongChunk(store: Store, point: RecoveryPoint, disk: Disk): Promise<number | undefined> {
  let next = 0
  for await (const run of store.walkTree(sideOf(point).root, geometry)) {
    if (run.first !== next) return next
    next += run.count
    const out = Buffer.alloc(run.kind === 'data' ? run.count * CHUNK : 0)
    const spans = Uint32Array.from({ length: 2 * run.count }, (_, at) => (at % 2 === 0 ? (at / 2) * CHUNK : CHUNK))
    if (run.kind === 'data') await store.chunks.read(run.ids, out, spans, never)
    for (let at = 0; at < run.count; at++) {
      const seed = Math.max(0, disk.get(run.first + at) ?? 0)
      if ((run.kind === 'data') !== seed > 0) return run.first + at
      if (seed > 0 && !chunkBytes(seed).equals(out.subarray(at * CHUNK, (at + 1) * CHUNK))) return run.first + at
    }
  }
  return next === geometry.size / CHUNK ? undefined : next
}

for (const command of commands) {
  t.test(`a power cut at any moment of ${command.name} loses nothing, and the next run finishes`, async t => {
    const base = await command.base()
    let cuts = 0
    for (let cutAt = 0; ; cutAt++) {
      const { plug, fs, index: told } = await cutOff(command, base, { cutAt })
      for (const [way, { loss, index }] of aftermaths.entries()) {
        const found = { kept: told, stale: base.index, empty: new MemoryIndex() }[index]
        const after = { fs: fs.afterPowerCut(loss), index: await copyOf(found) }
        const answer = await examine(command, base, after).catch((error: unknown) => error)
        if (answer !== undefined) t.equal(answer, undefined, `cut ${cutAt}, way ${way}`)
      }
      if (!plug.isOff) break
      cuts++
    }
    t.comment(`${cuts} moments, ${aftermaths.length} ways each`)
    t.ok(cuts > 3, `the power went at ${cuts} moments`)
  })
}

t.test('the power cut tests notice where a gc does not sync what it writes', async t => {
  const rewriting = commands.find(({ name }) => name === 'gc, rewriting')!
  const base = await rewriting.base()
  for (const forgotten of ['sync', 'syncdir'] as const) {
    let noticed = 0
    for (let cutAt = 0; ; cutAt++) {
      const { plug, fs } = await cutOff(rewriting, base, {
        cutAt,
        forgets: ({ kind, path }) => kind === forgotten && path.includes('/packs'),
      })
      const after = { fs: fs.afterPowerCut('everything'), index: new MemoryIndex() }
      const answer = await examine(rewriting, base, after).catch((error: unknown) => error)
      if (answer !== undefined) noticed++
      if (!plug.isOff) break
    }
    t.ok(noticed > 0, `${forgotten}: noticed at ${noticed} moments`)
  }
})

const PASSPHRASES = ['first', 'second'] as const
const OPEN_AFTER = { add: [true, true], replace: [false, true], remove: [false, true] } as const
type Change = keyof typeof OPEN_AFTER

t.test('a power cut at any moment of a key change locks nobody out, and the change can be made again', async t => {
  const base = await keyed()
  for (const change of ['add', 'replace', 'remove'] as const) {
    let cuts = 0
    for (let cutAt = 0; ; cutAt++) {
      const fs = base.fs.afterPowerCut('nothing')
      const plug = new Plug(fs, cutAt)
      await changeKeys(fs, change).catch((error: unknown) => {
        if (!plug.isOff || !isPowerCut(error)) throw error
      })
      for (const loss of ['everything', 'nothing', numbers(cutAt)] as const) {
        const after = fs.afterPowerCut(loss)
        const [old, fresh] = await openers(after)
        t.ok(old || fresh, `${change}, cut ${cutAt}: one of the two opens`)
        if (change === 'add' || old) await changeKeys(after, change)
        t.strictSame(await openers(after), OPEN_AFTER[change], `${change}, cut ${cutAt}: made again`)
        t.ok(await isWhole(after, base.disk), `${change}, cut ${cutAt}: the point is whole`)
      }
      if (!plug.isOff) break
      cuts++
    }
    t.ok(cuts > 0, `${change}: the power went at ${cuts} moments`)
  }
})

/** An encrypted store with a point. */
async function keyed(): Promise<{ readonly fs: SimulatedFs; readonly disk: Disk }> {
  const fs = new SimulatedFs()
  const disk: Disk = new Map([
    [0, 1],
    [139, 2],
  ])
  await Store.init(ROOT, { fs, encryption: { passphrase: PASSPHRASES[0], cost: CHEAP_SCRYPT } })
  await using store = await Store.open(ROOT, { fs, index: providerOf(new MemoryIndex()), passphrase: given('first') })
  await using run = await store.runs.begin('pull')
  await using draft = await store.draft(run)
  const { root } = await putDisk(draft, geometry, disk)
  await draft.commit(contentsOf(geometry, root))
  await run.finish()
  return { fs, disk }
}

async function changeKeys(fs: SimulatedFs, change: Change): Promise<void> {
  const [old, fresh] = PASSPHRASES
  await using ring = await KeyRing.of(ROOT, { fs, cost: CHEAP_SCRYPT })
  const opened = await ring.unlock(old)
  switch (change) {
    case 'add':
      await ring.add(fresh, 'ops')
      break
    case 'replace':
      await ring.replace(fresh)
      break
    case 'remove':
      await ring.add(fresh, 'ops')
      await ring.remove(opened!.id)
  }
}

/** Which of the passphrases open the store. */
async function openers(fs: SimulatedFs): Promise<boolean[]> {
  const open = async (passphrase: string) => {
    await using _store = await openWith(fs, passphrase)
    return true
  }
  return await Promise.all(
    PASSPHRASES.map(passphrase =>
      open(passphrase).catch((error: unknown) => {
        if (errorCodeOf(error) === 'E_KEY') return false
        throw error
      }),
    ),
  )
}

async function isWhole(fs: SimulatedFs, disk: Disk): Promise<boolean> {
  await using store = await openWith(fs, PASSPHRASES[1])
  const [point] = await store.points.list()
  return point !== undefined && (await wrongChunk(store, point, disk)) === undefined
}

function openWith(fs: SimulatedFs, passphrase: string): Promise<Store> {
  return Store.open(ROOT, { fs, index: providerOf(new MemoryIndex()), passphrase: given(passphrase) })
}

/** A small generator, so that a failure can be run again. */
function numbers(seed: number): (choices: number) => number {
  let state = seed * 2654435761 + 1
  return choices => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0
    return Math.floor((state / 2 ** 32) * choices)
  }
}

function isPowerCut(error: unknown): boolean {
  return (
    error instanceof PowerCut ||
    (error instanceof Error && error.cause instanceof PowerCut) ||
    (error instanceof Error && error.name === 'SuppressedError')
  )
}
