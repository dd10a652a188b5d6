/**
 * One process of ours per run, so that its start, CPU time and memory are
 * measured as those of the peers are. Without libvirt: it reads an NBD export
 * that somebody serves, which is what makes it comparable with nbdcopy.
 *
 *     contestant.js init STORE [chunk size] [level]
 *     contestant.js pull STORE SOCKET EXPORT [domain uuid]
 *     contestant.js restore STORE FOLDER qcow2|raw [point, from the oldest]
 */
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'

import { BufferPool } from '../../src/base/buffer-pool.js'
import { systemClock } from '../../src/base/clock.js'
import { LocalImages } from '../../src/image/local-images.js'
import { SILENT_PROGRESS } from '../../src/jobs/progress.js'
import { BATCH_BYTES, pullDisk } from '../../src/jobs/pull-disk.js'
import { RestoreJob } from '../../src/jobs/restore-job.js'
import { planRestore } from '../../src/jobs/restore-plan.js'
import type { RecoveryPoint } from '../../src/model/recovery-point.js'
import { ExportReader } from '../../src/nbd/export-reader.js'
import { Store } from '../../src/store/store.js'

const UUID = '6f0c2a1e-8d53-4a97-b1c4-0d6f3e5a7b92'
const POOL_BUFFERS = 8
const CONNECTIONS = 2
const TIMEOUT_MS = 120_000
const never = new AbortController().signal

const [verb, location = '', ...rest] = process.argv.slice(2)
switch (verb) {
  case 'init':
    await init(location, Number(rest[0] ?? 65_536), Number(rest[1] ?? 1))
    break
  case 'pull':
    await pull(location, rest[0] ?? '', rest[1] ?? '')
    break
  case 'restore':
    await restore(location, rest[0] ?? '', rest[1] === 'raw' ? 'raw' : 'qcow2', Number(rest[2] ?? -1))
    break
  default:
    throw new Error(`bug: no verb ${String(verb)}`)
}

async function init(store: string, chunkSize: number, level: number): Promise<void> {
  await mkdir(join(store, '..'), { recursive: true })
  await Store.init(store, { chunkSize, level })
}

/** Full: everything that the server does not call zero is read. */
async function pull(at: string, socketPath: string, exportName: string): Promise<void> {
  await using store = await Store.open(at)
  await using run = await store.runs.begin('bench')
  const started = performance.now()
  await using draft = await store.draft(run)
  await using source = await ExportReader.open(
    { socket: socketPath, connectTimeoutMs: TIMEOUT_MS },
    { exportName, connections: CONNECTIONS, requestTimeoutMs: TIMEOUT_MS },
    never,
  )
  const geometry = { size: source.size, chunkSize: store.chunkSize }
  const { root, statistics } = await pullDisk(
    {
      source,
      geometry,
      parent: undefined,
      isAudit: false,
      canaries: { count: 0, random: Math.random },
      store,
      draft,
      pool: new BufferPool(POOL_BUFFERS, Math.max(BATCH_BYTES, store.chunkSize)),
      onProgress: () => undefined,
      onPlanned: () => undefined,
    },
    never,
  )
  await draft.commit({
    domain: { uuid: UUID, name: 'bench' },
    time: Date.now(),
    mode: 'full',
    consistency: { kind: 'crash' },
    disks: [
      {
        target: 'vda',
        size: source.size,
        root,
        mode: 'full',
        source: { path: '/bench.raw', sourceType: 'file', format: 'raw' },
        statistics,
      },
    ],
    skipped: [],
    blobs: [],
    warnings: [],
    durationMs: Math.round(performance.now() - started),
    tags: [],
    toolVersion: 'bench',
  })
  await run.finish()
  console.log(JSON.stringify(statistics))
}

async function restore(at: string, out: string, format: 'qcow2' | 'raw', index: number): Promise<void> {
  await using store = await Store.open(at)
  const point: RecoveryPoint | undefined = (await store.points.list()).at(index)
  if (point === undefined) throw new Error('the store has no such point')
  const images = new LocalImages({ output: process.stdout, openExport: () => Promise.reject(new Error('none')) })
  const job = new RestoreJob({ store, images, progress: SILENT_PROGRESS, clock: systemClock })
  await job.run(planRestore({ point, destination: { kind: 'directory', path: out, format }, onDamage: 'stop' }), never)
}
