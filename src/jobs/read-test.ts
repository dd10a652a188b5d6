import type { Clock } from '../base/clock.js'
import { errorCodeOf } from '../base/errors.js'
import type { ImageWriter } from '../image/image-writer.js'
import type { RecoveryPoint } from '../model/recovery-point.js'
import type { StorePort } from '../store/store-types.js'
import type { Progress } from './progress.js'
import { LostRanges } from './restore-damage.js'
import { restoreDisk } from './restore-disk.js'
import type { HurtPoint, LostDisk } from './verify-job.js'

export interface ReadTestPorts {
  readonly store: Pick<StorePort, 'chunkSize' | 'walkTree' | 'chunks' | 'readBlob' | 'points'>
  readonly progress: Progress
  readonly clock: Clock
}

export interface ReadTestResult extends HurtPoint {
  readonly ok: boolean
  /** Bytes of data that came back. */
  readonly readBytes: number
  readonly seconds: number
}

/**
 * Restores a point to nowhere: every disk and every file goes the whole way of
 * a restore but for the last write. The outcome is kept with the point.
 * Damage is a result. Rejects with E_IO, E_INTERRUPTED.
 */
export async function testRestore(
  ports: ReadTestPorts,
  point: RecoveryPoint,
  signal: AbortSignal,
): Promise<ReadTestResult> {
  const { store, clock, progress } = ports
  const subject = point.domain.name
  const started = clock.monotonic()
  progress.report({ kind: 'started', subject, verb: 'verify', facts: [['level', 'restore']] })
  const disks: LostDisk[] = []
  let readBytes = 0
  for (const disk of point.disks) {
    const lost = new LostRanges()
    let diskBytes = 0
    await restoreDisk(
      {
        store,
        root: disk.root,
        geometry: { size: disk.size, chunkSize: store.chunkSize },
        image: nowhere(disk.target, disk.size),
        // What the point leaves out is not the store's to give back.
        below: { kind: 'leave' },
        onDamage: 'keep',
        onLost: range => lost.add(range),
        onProgress: (doneBytes, written) => {
          diskBytes = written
          const totals = { totalBytes: disk.size, doneBytes, newBytes: written }
          progress.report({ kind: 'disk', subject, target: disk.target, ...totals })
        },
      },
      signal,
    )
    readBytes += diskBytes
    if (!lost.isEmpty) disks.push({ disk: disk.target, ranges: lost.list() })
  }
  const files = await lostFiles(store, point)
  const ok = disks.length === 0 && files.length === 0
  const seconds = Math.round(clock.monotonic() - started) / 1000
  const detail = ok ? `all read in ${seconds.toFixed(1)} s` : 'parts are lost'
  const notes = await store.points.notes(point)
  await store.points.annotate(point, { ...notes, verified: { level: 'restore', time: clock.now(), ok, detail } })
  progress.report({ kind: 'finished', subject, status: ok ? 'success' : 'failed', readBytes, point: point.id })
  return { point, disks, files, ok, readBytes, seconds }
}

async function lostFiles(store: Pick<StorePort, 'readBlob'>, point: RecoveryPoint): Promise<string[]> {
  const lost: string[] = []
  for (const blob of point.blobs) {
    try {
      await store.readBlob(blob)
    } catch (error) {
      if (errorCodeOf(error) !== 'E_DAMAGED') throw error
      lost.push(blob.name)
    }
  }
  return lost
}

function nowhere(name: string, size: number): ImageWriter {
  return {
    name,
    size,
    startsZeroed: true,
    write: () => Promise.resolve(),
    zero: () => Promise.resolve(),
    markDamaged: () => Promise.resolve(),
    commit: () => Promise.resolve({ dataBytes: 0, fileBytes: 0 }),
    [Symbol.asyncDispose]: () => Promise.resolve(),
  }
}
