/*
 * A gc, and a point that is forgotten, at every single moment of a verify:
 * before each of its looks at the disk. Verify holds no lease, so that a long
 * one keeps no gc waiting; it must know a pack that was taken away by right
 * from one that is lost.
 */
import t from 'tap'

import type { Clock } from '../../src/base/clock.js'
import type { DurableFs } from '../../src/base/durable-fs.js'
import { GcJob } from '../../src/jobs/gc-job.js'
import { SILENT_PROGRESS } from '../../src/jobs/progress.js'
import { VerifyJob, type VerifyResult } from '../../src/jobs/verify-job.js'
import type { RecoveryPoint } from '../../src/model/recovery-point.js'
import { MemoryIndex } from '../../src/store/memory-index.js'
import { Store } from '../../src/store/store.js'
import { copyOf, providerOf } from '../fakes/metered-index.js'
import { SimulatedFs } from '../fakes/simulated-fs.js'
import { CHUNK, never, pull } from './harness.js'

const ROOT = '/store'
const geometry = { size: 140 * CHUNK, chunkSize: CHUNK }
const stillClock: Clock = { now: () => 1_800_000_000_000, monotonic: () => 0, sleep: () => Promise.resolve() }
t.setTimeout(300_000)

/** `disk`, and `before` is called ahead of every read. */
function watched(disk: SimulatedFs, before: () => Promise<void>): DurableFs {
  return {
    makeDirectory: path => disk.makeDirectory(path),
    createFile: path => disk.createFile(path),
    renameNoReplace: (from, to) => disk.renameNoReplace(from, to),
    renameReplace: (from, to) => disk.renameReplace(from, to),
    remove: path => disk.remove(path),
    syncDirectory: path => disk.syncDirectory(path),
    lock: (path, mode) => disk.lock(path, mode),
    readWhole: path => before().then(() => disk.readWhole(path)),
    fileSize: path => before().then(() => disk.fileSize(path)),
    list: path => before().then(() => disk.list(path)),
    openFile: async path => {
      await before()
      const file = await disk.openFile(path)
      return {
        size: file.size,
        read: (into, offset) => before().then(() => file.read(into, offset)),
        close: () => file.close(),
      }
    },
  }
}

/** Four points that share chunks; the second is forgotten already, so that a gc has packs to rewrite. */
async function made(): Promise<{ readonly fs: SimulatedFs; readonly index: MemoryIndex }> {
  const fs = new SimulatedFs()
  const index = new MemoryIndex()
  await Store.init(ROOT, { fs })
  await using store = await Store.open(ROOT, { fs, index: providerOf(index) })
  const points: RecoveryPoint[] = []
  for (const change of [
    [
      [0, 1],
      [1, 2],
      [130, 3],
    ],
    [
      [0, 4],
      [131, 5],
    ],
    [
      [1, 6],
      [139, 7],
    ],
    [[2, 8]],
  ] as const) {
    points.push((await pull(store, geometry, change, points.at(-1))).point)
  }
  await store.points.remove(points[1]!)
  return { fs, index }
}

async function forgetAndCollect(disk: SimulatedFs, index: MemoryIndex, forgets: boolean): Promise<void> {
  await using store = await Store.open(ROOT, { fs: disk, index: providerOf(index) })
  const [oldest] = await store.points.list()
  if (forgets) await store.points.remove(oldest!)
  const ports = { collector: store.collector(), progress: SILENT_PROGRESS, clock: stillClock }
  await new GcJob({ ...ports, confirmMuch: () => Promise.resolve() }).run({ threshold: 1 }, never)
}

for (const forgets of [false, true]) {
  const what = forgets ? 'a point forgotten and a gc' : 'a gc that moves what is needed'
  t.test(`${what} at any moment of verify is no damage`, async t => {
    const base = await made()
    let moments = 0
    for (let at = 0; ; at++) {
      const disk = base.fs.afterPowerCut('nothing')
      const index = await copyOf(base.index)
      let looks = 0
      const fs = watched(disk, async () => {
        if (looks++ === at) await forgetAndCollect(disk, index, forgets)
      })
      const result = await verify(fs, index).catch((error: unknown) => error)
      const { hurt, lostIds, unreadable, damagedPacks } = result as VerifyResult
      if (result instanceof Error) t.error(result, `moment ${at}`)
      else if (hurt.length + lostIds + unreadable.length + damagedPacks.length > 0) {
        t.strictSame([hurt, lostIds, unreadable, damagedPacks], [[], 0, [], []], `moment ${at}`)
      }
      if (disk.files().has(`${ROOT}/jobs/damage.set`)) t.fail(`moment ${at}: damage is remembered`)
      if (looks <= at) break
      moments++
    }
    t.ok(moments > 20, `at ${moments} moments`)
  })
}

async function verify(fs: DurableFs, index: MemoryIndex): Promise<VerifyResult> {
  await using store = await Store.open(ROOT, { fs, index: providerOf(index) })
  const ports = { points: store.points, verifier: store.verifier(), progress: SILENT_PROGRESS, clock: stillClock }
  return await new VerifyJob(ports).run({ level: 'data', isMeant: () => true }, never)
}
