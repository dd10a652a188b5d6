import t from 'tap'

import { BackupError } from '../../../src/base/errors.js'
import { History, type HistoryOptions } from '../../../src/daemon/history.js'
import type { HistoryEntry, RunEntry, StartEntry } from '../../../src/daemon/history-entry.js'
import { decodeMemory, encodeMemory, MemoryFile } from '../../../src/daemon/memory-file.js'
import { SimulatedFs } from '../../fakes/simulated-fs.js'

const T0 = Date.parse('2026-11-20T01:00:00Z')

function run(n: number, change: Partial<RunEntry> = {}): RunEntry {
  return {
    kind: 'run',
    id: `run${n}`,
    task: 'pull/u1/prod/nas',
    verb: 'pull',
    target: 'nas',
    domain: { uuid: 'u1', name: 'db01' },
    group: 'prod',
    job: 'prod',
    trigger: 'schedule',
    attempt: 1,
    due: T0 + n,
    started: T0 + n,
    ended: T0 + n + 500,
    status: 'success',
    error: undefined,
    warnings: [{ code: 'W_CHAIN', message: 'bitmap lost' }],
    point: 'ab'.repeat(16),
    figures: { read_bytes: 10, frozen_seconds: 0.11 },
    log: ['checkpoint', 'commit'],
    retryAt: undefined,
    ...change,
  }
}

function begun(n: number, id = `run${n}`): StartEntry {
  const { task, verb, target, domain, group, job, trigger, attempt, due, started } = run(n)
  return { kind: 'start', id, task, verb, target, domain, group, job, trigger, attempt, due, started }
}

async function openHistory(fs: SimulatedFs, options: Partial<HistoryOptions> = {}): Promise<History> {
  let names = 0
  const random = () => Uint8Array.of(0, 0, 0, names++)
  return await History.open({ fs, directory: '/state/history', now: () => T0, random, ...options })
}

async function newFs(): Promise<SimulatedFs> {
  const fs = new SimulatedFs()
  await fs.makeDirectory('/state')
  await fs.syncDirectory('/')
  return fs
}

t.test('every kind of entry is read as it was written', async t => {
  const start = begun(1)
  const { domain, ...ofStore } = {
    task: 'gc/nas',
    verb: 'gc' as const,
    target: 'nas',
    group: undefined,
    job: undefined,
    domain: undefined,
  }
  const entries: HistoryEntry[] = [
    start,
    run(2, { status: 'failed', error: { code: 'E_AGENT', message: 'no answer' }, retryAt: T0 + 9, point: undefined }),
    { kind: 'missed', ...ofStore, domain, at: T0 + 600, times: [T0, T0 + 1], reason: 'down', isMadeUp: true },
    { kind: 'event', at: T0 + 700, level: 'warning', message: 'libvirt is gone' },
  ]
  await using history = await openHistory(await newFs())

  for (const entry of entries) await history.append(entry)

  t.strictSame(await history.read(), entries)
})

t.test('queries choose by time, domain, status and number', async t => {
  await using history = await openHistory(await newFs())
  for (let n = 0; n < 5; n++) await history.append(run(n * 1000, { status: n === 3 ? 'failed' : 'success' }))
  await history.append({ kind: 'event', at: T0 + 9000, level: 'info', message: 'hello' })

  const ids = async (query: Parameters<History['read']>[0]) =>
    (await history.read(query)).map(entry => (entry.kind === 'run' ? entry.id : entry.kind))
  t.strictSame(await ids({ since: T0 + 3000 }), ['run3000', 'run4000', 'event'])
  t.strictSame(await ids({ domain: 'db01', limit: 1 }), ['run4000'])
  t.strictSame(await ids({ statuses: ['failed'] }), ['run3000'])
  t.strictSame(await ids({ domain: 'web' }), [])
})

t.test('after a power cut everything is there whose append had resolved, and a torn line hurts none', async t => {
  const fs = await newFs()
  const history = await openHistory(fs)
  for (let n = 0; n < 3; n++) await history.append(run(n))
  const after = fs.afterPowerCut('everything')
  const [path = ''] = [...after.files().keys()].filter(name => name.endsWith('.ndjson'))
  after.tamper(path, bytes => Buffer.concat([bytes, Buffer.from('{"kind":"run","id')]))

  await using again = await openHistory(after)

  t.strictSame(
    (await again.read()).map(entry => entry.kind === 'run' && entry.id),
    ['run0', 'run1', 'run2'],
  )
})

t.test('files of processes that are gone are taken in; the file of a living one is left', async t => {
  const fs = await newFs()
  for (const seed of [1, 2, 3]) {
    await using gone = await openHistory(fs, { random: () => Uint8Array.of(1, 0, 0, seed) })
    await gone.append(run(seed))
  }
  await using alive = await openHistory(fs, { random: () => Uint8Array.of(2, 0, 0, 0) })
  await alive.append(run(4))

  await using mine = await openHistory(fs)
  await mine.tidy()
  await mine.append(run(5))

  t.equal((await fs.list('/state/history')).length, 2)
  t.strictSame(
    (await mine.read()).map(entry => entry.kind === 'run' && entry.id),
    ['run1', 'run2', 'run3', 'run4', 'run5'],
  )
})

t.test('files end at their limit, and the oldest go when all are too large', async t => {
  const fs = await newFs()
  let now = T0
  await using history = await openHistory(fs, { maxFileBytes: 2000, maxTotalBytes: 6000, now: () => now++ })

  for (let n = 0; n < 40; n++) await history.append(run(n))

  const files = await fs.list('/state/history')
  const sizes = await Promise.all(files.map(name => fs.fileSize(`/state/history/${name}`)))
  t.ok(sizes.every(size => (size ?? 0) <= 2000))
  t.ok(sizes.reduce<number>((sum, size) => sum + (size ?? 0), 0) <= 8000)
  const ids = (await history.read()).map(entry => entry.kind === 'run' && entry.id)
  t.equal(ids.at(-1), 'run39')
  t.equal(ids[0], `run${40 - ids.length}`, 'what is kept is the newest, without holes')
})

t.test('a run whose process died is known; one of a living process is not called dead', async t => {
  const fs = await newFs()
  const dead = await openHistory(fs, { random: () => Uint8Array.of(1, 0, 0, 0) })
  await dead.append(begun(1))
  await dead.append(begun(1, 'finished'))
  await dead.append(run(2, { id: 'finished' }))
  await dead[Symbol.asyncDispose]()
  await using alive = await openHistory(fs, { random: () => Uint8Array.of(2, 0, 0, 0) })
  await alive.append(begun(1, 'alive'))

  await using mine = await openHistory(fs)

  t.strictSame(
    (await mine.died()).map(({ id }) => id),
    ['run1'],
  )
})

t.test('a full disk fails the append, and the next one goes on in a new file', async t => {
  const fs = await newFs()
  await using history = await openHistory(fs)
  await history.append(run(1))
  let isFull = true
  fs.onOperation = () => (isFull ? new BackupError('E_NO_SPACE', 'full') : undefined)

  await t.rejects(history.append(run(2)), { code: 'E_NO_SPACE' })
  isFull = false
  await history.append(run(3))

  t.strictSame(
    (await history.read()).map(entry => entry.kind === 'run' && entry.id),
    ['run1', 'run3'],
  )
})

t.test('what the scheduler remembers survives, and nonsense is no memory', async t => {
  const fs = await newFs()
  const file = new MemoryFile(fs, '/state')
  const last = { id: 'r', started: 1, ended: 2, due: undefined, status: 'partial', attempt: 2 } as const
  const contents = new Map([
    ['gc/nas', { accountedUntil: 5, firstSeen: 1, last, lastSuccess: 1, lastSkip: 3, toldStale: undefined }],
  ])

  t.strictSame(await file.read(), new Map())
  file.save(
    () => contents,
    error => t.fail(String(error)),
  )
  await file.settled()

  t.strictSame(await new MemoryFile(fs.afterPowerCut('everything'), '/state').read(), contents)
  for (const value of [null, 7, {}, { version: 2 }, { version: 1, tasks: { a: 1, b: { firstSeen: 'x' } } }]) {
    t.strictSame(decodeMemory(value), new Map())
  }
  t.strictSame(decodeMemory(JSON.parse(JSON.stringify(encodeMemory(contents)))), contents)
})
