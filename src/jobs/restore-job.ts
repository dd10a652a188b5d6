import { dirname, extname, join } from 'node:path'

import { forEachLimited } from '../base/async.js'
import type { Clock } from '../base/clock.js'
import { errorCodeOf } from '../base/errors.js'
import type { Pace } from '../base/pace.js'
import type { ImageFactory, SideFile } from '../image/image-factory.js'
import type { ImagePiece, ImageWriter } from '../image/image-writer.js'
import type { DiskGeometry } from '../model/disk-tree.js'
import type { PointDisk } from '../model/recovery-point.js'
import type { StorePort } from '../store/store-types.js'
import type { Progress } from './progress.js'
import { damagedDisk, LostRanges } from './restore-damage.js'
import { restoreDisk } from './restore-disk.js'
import type { PlannedDisk, RestorePlan } from './restore-plan.js'

/** Each has a window's buffers (four of 8 MiB) and keeps the native threads busy on its own. */
const DISKS_AT_ONCE = 2

export interface RestorePorts {
  readonly store: Pick<StorePort, 'chunkSize' | 'walkTree' | 'chunks' | 'readBlob'>
  readonly images: ImageFactory
  readonly progress: Progress
  readonly clock: Clock
  /** Of the store: for images that an interrupted restore has left. */
  readonly identify?: StorePort['identify'] | undefined
  /** Of all disks together. */
  readonly pace?: Pace | undefined
}

/** Bytes. */
export interface RestoredDisk {
  readonly target: string
  /** Final path, device or export. */
  readonly image: string
  readonly size: number
  readonly dataBytes: number
  readonly fileBytes: number
  readonly durationMs: number
  /** What the store could not give back, as zeros in the image; empty unless damage was to be kept. */
  readonly lost: readonly ImagePiece[]
  /** Where the lost ranges are listed. */
  readonly map?: string | undefined
  readonly notes: readonly string[]
}

export interface RestoreResult {
  /** damaged means exit code 7. */
  readonly status: 'complete' | 'damaged'
  readonly disks: readonly RestoredDisk[]
  /** Paths of domain XML, NVRAM and the like. */
  readonly files: readonly string[]
  /** Names of such files that the store could not give back; empty unless damage was to be kept. */
  readonly lostFiles: readonly string[]
  readonly dataBytes: number
  readonly durationMs: number
}

/** What a dry run tells of one disk, in bytes. */
export interface MeasuredDisk {
  readonly target: string
  readonly size: number
  /** To be read from the store and written. */
  readonly dataBytes: number
}

interface OpenDisk {
  readonly planned: PlannedDisk
  readonly image: ImageWriter
  readonly lost: LostRanges
  map?: SideFile
  durationMs: number
}

/**
 * Gives disks of a recovery point back as images.
 *
 * All or nothing: images get their final names after every disk is complete
 * and sound, and on any failure or abort all that was created is removed, but
 * for images with a partial name when it is aborted, or had been before: those can
 * be gone on with. What
 * a restore to devices or exports has written stays there, incomplete. The
 * domain's XML is written beside, never defined.
 */
export class RestoreJob {
  readonly #ports: RestorePorts

  constructor(ports: RestorePorts) {
    this.#ports = ports
  }

  /** Says how many bytes a plan moves, by walking the trees; reads no data and writes nothing. */
  async measure(plan: RestorePlan, signal: AbortSignal): Promise<readonly MeasuredDisk[]> {
    const measured: MeasuredDisk[] = []
    for (const { disk } of plan.disks) {
      const geometry = this.#geometry(disk)
      let dataBytes = 0
      for await (const run of this.#ports.store.walkTree(disk.root, geometry)) {
        signal.throwIfAborted()
        if (run.kind !== 'data') continue
        const start = run.first * geometry.chunkSize
        dataBytes += Math.min(run.count * geometry.chunkSize, geometry.size - start)
      }
      measured.push({ target: disk.target, size: disk.size, dataBytes })
    }
    return measured
  }

  /**
   * Rejects with E_DAMAGED (naming point, disk and ranges), E_EXISTS, E_REFUSED,
   * E_NO_SPACE, E_IO, E_INTERRUPTED, E_UNSUPPORTED.
   */
  async run(plan: RestorePlan, signal: AbortSignal): Promise<RestoreResult> {
    const { clock, progress } = this.#ports
    const subject = plan.point.domain.name
    const started = clock.monotonic()
    const failed = new AbortController()
    const either = AbortSignal.any([signal, failed.signal])
    const undo: AsyncDisposable[] = []
    const disks: OpenDisk[] = []
    progress.report({ kind: 'started', subject, verb: 'restore', facts: [['point', plan.point.id.slice(0, 7)]] })
    try {
      const files = await this.#openFiles(plan, undo)
      await this.#openDisks(plan, { undo, disks }, either)
      await forEachLimited(disks, DISKS_AT_ONCE, async disk => {
        try {
          await this.#copy(plan, disk, either)
        } catch (error) {
          // The other disks need not go on; the first failure is the one that counts.
          failed.abort(error)
          throw error
        }
      })
      const result = await this.#commit(disks, files, either)
      const durationMs = clock.monotonic() - started
      progress.report({
        kind: 'finished',
        subject,
        status: result.status === 'complete' ? 'success' : 'partial',
        readBytes: result.dataBytes,
        point: plan.point.id,
      })
      return { ...result, durationMs }
    } catch (error) {
      const reason: unknown = failed.signal.aborted ? failed.signal.reason : error
      const message = reason instanceof Error ? reason.message : String(reason)
      progress.report({ kind: 'finished', subject, status: 'failed', error: { code: errorCodeOf(reason), message } })
      for (const { image } of disks) {
        // What took hours once is not thrown away because going on with it failed.
        if (signal.aborted || image.resume?.isAdopted === true) await image.resume?.keep()
      }
      throw reason
    } finally {
      for (const thing of undo.reverse()) await thing[Symbol.asyncDispose]()
    }
  }

  async #openFiles(plan: RestorePlan, undo: AsyncDisposable[]): Promise<OpenFiles> {
    const files: SideFile[] = []
    const lost: string[] = []
    for (const { blob, path } of plan.files) {
      try {
        const bytes = await this.#ports.store.readBlob(blob)
        const file = await this.#ports.images.createFile({ path, bytes, force: plan.force })
        undo.push(file)
        files.push(file)
      } catch (error) {
        if (plan.onDamage === 'stop' || errorCodeOf(error) !== 'E_DAMAGED') throw error
        lost.push(blob.name)
      }
    }
    return { files, lost }
  }

  async #openDisks(
    plan: RestorePlan,
    { undo, disks }: { readonly undo: AsyncDisposable[]; readonly disks: OpenDisk[] },
    signal: AbortSignal,
  ): Promise<void> {
    for (const planned of plan.disks) {
      const image = await this.#ports.images.create(planned.spec, signal)
      undo.push(image)
      disks.push({ planned, image, lost: new LostRanges(), durationMs: 0 })
    }
  }

  async #copy(plan: RestorePlan, open: OpenDisk, signal: AbortSignal): Promise<void> {
    const { store, clock, progress } = this.#ports
    const { disk } = open.planned
    const started = clock.monotonic()
    let newBytes = 0
    const report = (doneBytes: number) => {
      const subject = plan.point.domain.name
      progress.report({ kind: 'disk', subject, target: disk.target, totalBytes: disk.size, doneBytes, newBytes })
    }
    try {
      await restoreDisk(
        {
          store,
          root: disk.root,
          geometry: this.#geometry(disk),
          image: open.image,
          identify: this.#ports.identify,
          below: open.planned.below,
          pace: this.#ports.pace,
          onDamage: plan.onDamage,
          onLost: range => open.lost.add(range),
          onProgress: (passed, written) => {
            newBytes = written
            report(passed)
          },
        },
        signal,
      )
    } catch (cause) {
      if (open.lost.isEmpty || errorCodeOf(cause) !== 'E_DAMAGED') throw cause
      throw damagedDisk(plan.point, disk.target, { ranges: open.lost.list(), cause })
    }
    report(disk.size)
    open.durationMs = clock.monotonic() - started
  }

  /** Final names: maps of lost ranges first, so that no damaged image is without one; then images, then files. */
  async #commit(
    disks: readonly OpenDisk[],
    side: OpenFiles,
    signal: AbortSignal,
  ): Promise<Omit<RestoreResult, 'durationMs'>> {
    const restored: RestoredDisk[] = []
    for (const open of disks) restored.push(await this.#commitDisk(open, signal))
    for (const file of side.files) await file.commit()
    const isDamaged = side.lost.length > 0 || restored.some(disk => disk.lost.length > 0)
    return {
      status: isDamaged ? 'damaged' : 'complete',
      disks: restored,
      files: side.files.map(file => file.path),
      lostFiles: side.lost,
      dataBytes: restored.reduce((sum, disk) => sum + disk.dataBytes, 0),
    }
  }

  async #commitDisk(open: OpenDisk, signal: AbortSignal): Promise<RestoredDisk> {
    const { image, planned } = open
    const lost = open.lost.list()
    const map = lost.length > 0 ? await this.#writeMap(open, lost) : undefined
    const outcome = await image.commit(signal)
    return {
      target: planned.disk.target,
      image: image.name,
      size: planned.disk.size,
      ...outcome,
      durationMs: open.durationMs,
      lost,
      map,
      notes: planned.notes,
    }
  }

  /** Marks the image, and lists the ranges in a file beside it where the image is a file. */
  async #writeMap({ planned, image }: OpenDisk, lost: readonly ImagePiece[]): Promise<string | undefined> {
    await image.markDamaged()
    if (planned.spec.kind !== 'qcow2' && planned.spec.kind !== 'raw') return undefined
    const name = image.name.slice(0, image.name.length - extname(image.name).length)
    const path = join(dirname(image.name), `${name.slice(name.lastIndexOf('/') + 1)}.map.json`)
    const map = { disk: planned.disk.target, size: planned.disk.size, lost }
    const bytes = Buffer.from(`${JSON.stringify(map, undefined, 2)}\n`)
    await using file = await this.#ports.images.createFile({ path, bytes, force: planned.spec.force })
    await file.commit()
    return path
  }

  #geometry(disk: PointDisk): DiskGeometry {
    return { size: disk.size, chunkSize: this.#ports.store.chunkSize }
  }
}

interface OpenFiles {
  readonly files: readonly SideFile[]
  readonly lost: readonly string[]
}
