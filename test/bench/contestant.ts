/**
 * One process of ours per run, so that its start, CPU time and memory are
 * measured as those of the peers are. Without libvirt: it reads an NBD export
 * that somebody serves, which is what makes it comparable with nbdcopy.
 *
 *     contestant.js init STORE [chunk size] [level]
 *     contestant.js pull STORE SOCKET EXPORT [domain uuid]
 *     contestant.js again STORE SOCKET EXPORT
 *     contestant.js restore STORE FOLDER qcow2|raw [point, from the oldest]
 *     contestant.js layout FOLDER level|packs MIB
 *     contestant.js all STORE SOCKET EXPORT FOLDER
 *
 * $BENCH_WITHOUT leaves safety out, to see what it costs: verify, sums, sync, canaries.
 */
import { randomFillSync } from 'node:crypto'
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'

import { Level } from 'level'

import { BufferPool } from '../../src/base/buffer-pool.js'
import { systemClock } from '../../src/base/clock.js'
import { type DurableFs, localFs } from '../../src/base/durable-fs.js'
import { LocalImages } from '../../src/image/local-images.js'
import { SILENT_PROGRESS } from '../../src/jobs/progress.js'
import { BATCH_BYTES, type DiskExport, pullDisk } from '../../src/jobs/pull-disk.js'
import { CANARIES, POOL_BUFFERS } from '../../src/jobs/pull-disks.js'
import { RestoreJob } from '../../src/jobs/restore-job.js'
import { planRestore } from '../../src/jobs/restore-plan.js'
import type { RecoveryPoint } from '../../src/model/recovery-point.js'
import { native } from '../../src/native/binding.js'
import { ExportReader } from '../../src/nbd/export-reader.js'
import { Store } from '../../src/store/store.js'
import { onlyDisk } from '../harness/only-disk.js'
import { contentsOf } from '../store/harness.js'

const CONNECTIONS = 2
const TIMEOUT_MS = 120_000
const CHUNK = 65_536
/** Chunks of one step of `layout`. */
const STEP = 128
const never = new AbortController().signal
const without = new Set(process.env['BENCH_WITHOUT']?.split(',') ?? [])

export async function main([verb, location = '', ...rest]: readonly string[]): Promise<void> {
  switch (verb) {
    case 'init':
      return await init(location, Number(rest[0] ?? 65_536), Number(rest[1] ?? 1))
    case 'pull':
      return await pull(location, { socket: rest[0] ?? '', exportName: rest[1] ?? '' }, 'nothing')
    case 'again':
      return await pull(location, { socket: rest[0] ?? '', exportName: rest[1] ?? '' }, 'newest point')
    case 'restore':
      return await restore(location, rest[0] ?? '', rest[1] === 'raw' ? 'raw' : 'qcow2', Number(rest[2] ?? -1))
    case 'layout':
      return await (rest[0] === 'level' ? fillLevel(location, Number(rest[1])) : fillPacks(location, Number(rest[1])))
    case 'all':
      // One process that runs all of it: what compiled code is made of.
      await init(location, CHUNK, 1)
      await pull(location, { socket: rest[0] ?? '', exportName: rest[1] ?? '' }, 'nothing')
      await pull(location, { socket: rest[0] ?? '', exportName: rest[1] ?? '' }, 'nothing')
      await mkdir(rest[2] ?? '')
      return await restore(location, rest[2] ?? '', 'qcow2', -1)
    case undefined:
    default:
      throw new Error(`bug: no verb ${String(verb)}`)
  }
}

async function init(store: string, chunkSize: number, level: number): Promise<void> {
  await mkdir(join(store, '..'), { recursive: true })
  await Store.init(store, { chunkSize, level })
}

/**
 * On nothing: everything that the server does not call zero is read. On the
 * newest point: nothing has changed since, and only the canaries are read.
 */
async function pull(
  at: string,
  from: { readonly socket: string; readonly exportName: string },
  basis: 'nothing' | 'newest point',
): Promise<void> {
  leaveOut()
  await using store = await Store.open(at, {
    fs: without.has('sync') ? unsynced(localFs(native())) : localFs(native()),
  })
  await using run = await store.runs.begin('bench')
  const started = performance.now()
  await using draft = await store.draft(run)
  await using source = await ExportReader.open(
    { socket: from.socket, connectTimeoutMs: TIMEOUT_MS },
    { exportName: from.exportName, connections: CONNECTIONS, requestTimeoutMs: TIMEOUT_MS },
    never,
  )
  const geometry = { size: source.size, chunkSize: store.chunkSize }
  const newest = basis === 'nothing' ? undefined : (await store.points.list()).at(-1)?.disks[0]
  if (basis !== 'nothing' && newest === undefined) throw new Error('the store has no point')
  const { root, statistics } = onlyDisk(
    await pullDisk(
      {
        source: newest === undefined ? source : asClean(source),
        geometry,
        sinks: [
          { parent: newest === undefined ? undefined : { root: newest.root, geometry }, isAudit: false, store, draft },
        ],
        canaries: { count: without.has('canaries') ? 0 : CANARIES, random: Math.random },
        pool: new BufferPool(POOL_BUFFERS, Math.max(BATCH_BYTES, store.chunkSize)),
        onProgress: () => undefined,
        onPlanned: () => undefined,
      },
      never,
    ),
  )
  const contents = contentsOf(geometry, root)
  await draft.commit({ ...contents, durationMs: Math.round(performance.now() - started) })
  await run.finish()
  console.log(JSON.stringify(statistics))
}

/** As a dirty bitmap without a bit makes it look. */
function asClean(source: ExportReader): DiskExport {
  return {
    size: source.size,
    read: (pieces, buffer, signal) => source.read(pieces, buffer, signal),
    async *extents(signal) {
      for await (const extent of source.extents(signal)) yield { ...extent, dirty: false }
    },
  }
}

async function restore(at: string, out: string, format: 'qcow2' | 'raw', index: number): Promise<void> {
  await using store = await Store.open(at)
  const point: RecoveryPoint | undefined = (await store.points.list()).at(index)
  if (point === undefined) throw new Error('the store has no such point')
  const images = new LocalImages({ output: process.stdout, openExport: () => Promise.reject(new Error('none')) })
  const job = new RestoreJob({ store, images, progress: SILENT_PROGRESS, clock: systemClock })
  await job.run(planRestore({ point, destination: { kind: 'directory', path: out, format }, onDamage: 'stop' }), never)
}

function leaveOut(): void {
  const binding = native()
  const encode = binding.encodeRecords.bind(binding)
  Object.assign(binding, {
    encodeRecords: ((bytes, spans, options) =>
      encode(bytes, spans, {
        ...options,
        verify: !without.has('verify'),
        sums: without.has('sums') ? undefined : options.sums,
      })) satisfies typeof binding.encodeRecords,
  })
}

/** Files as they are, without what makes them durable. */
function unsynced(fs: DurableFs): DurableFs {
  return {
    ...fs,
    createFile: async path => {
      const file = await fs.createFile(path)
      return {
        get size() {
          return file.size
        },
        append: bytes => file.append(bytes),
        sync: () => Promise.resolve(),
        close: () => file.close(),
      }
    },
    syncDirectory: () => Promise.resolve(),
  }
}

/** Batches of chunks, each random and unlike all others. */
function* randomBatches(mib: number): Generator<{ readonly bytes: Buffer; readonly first: number }> {
  const bytes = randomFillSync(Buffer.alloc(STEP * CHUNK))
  const chunks = (mib * 1024 * 1024) / CHUNK
  for (let first = 0; first < chunks; first += STEP) {
    for (let at = 0; at < STEP; at++) bytes.writeUInt32LE(first + at, at * CHUNK)
    yield { bytes, first }
  }
}

/** Named by the same hash as in a store, since any store must name them. */
async function fillLevel(folder: string, mib: number): Promise<void> {
  const database = new Level<Uint8Array, Uint8Array>(folder, {
    keyEncoding: 'view',
    valueEncoding: 'view',
    compression: false,
  })
  const spans = Uint32Array.from({ length: 2 * STEP }, (_, at) => (at % 2 === 0 ? (at / 2) * CHUNK : CHUNK))
  for (const { bytes } of randomBatches(mib)) {
    const { ids } = await native().hashChunks(bytes, spans, { kind: 1 })
    const keys = Array.from({ length: STEP }, (_, at) => ids.subarray(at * 32, (at + 1) * 32))
    const known = await database.getMany(keys)
    const batch = database.batch()
    for (const [at, key] of keys.entries()) {
      if (known[at] === undefined) batch.put(key, bytes.subarray(at * CHUNK, (at + 1) * CHUNK))
    }
    await batch.write({ sync: true })
  }
  await database.close()
}

async function fillPacks(folder: string, mib: number): Promise<void> {
  const at = join(folder, 'store')
  await Store.init(at, { level: 0 })
  await using store = await Store.open(at)
  await using run = await store.runs.begin('bench')
  await using draft = await store.draft(run)
  const spans = Uint32Array.from({ length: 2 * STEP }, (_, i) => (i % 2 === 0 ? (i / 2) * CHUNK : CHUNK))
  const geometry = { size: mib * 1024 * 1024, chunkSize: CHUNK }
  const tree = draft.tree(geometry, undefined)
  for (const { bytes, first } of randomBatches(mib)) {
    const stored = await draft.storeChunks(bytes, spans, never)
    await tree.putChunks(
      Float64Array.from({ length: STEP }, (_, i) => first + i),
      stored,
    )
  }
  const { root } = await tree.finish()
  await draft.commit(contentsOf(geometry, root))
  await run.finish()
}
