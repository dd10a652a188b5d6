import { disposeAll } from '../base/async.js'
import { BackupError, errorCodeOf, messageOf } from '../base/errors.js'
import type { Clock } from '../base/clock.js'
import type { Pace } from '../base/pace.js'
import type { ImageWriter } from '../image/image-writer.js'
import type { DomainNow, ImageNow } from '../model/domain-now.js'
import type { Extent } from '../model/extent.js'
import type { DomainRef, PointDisk, RecoveryPoint } from '../model/recovery-point.js'
import type { StorePort, TreeSide } from '../store/store-types.js'
import type { Progress } from './progress.js'
import { refuseLeftOut } from './left-out.js'
import { pointName } from './restore-damage.js'
import { measureRollback, rehearseRollback, type PresentDisk, writeRollback } from './rollback-disk.js'

export interface RollbackPorts {
  readonly store: Pick<StorePort, 'chunkSize' | 'walkTree' | 'diffTrees' | 'chunks' | 'points' | 'runs'>
  readonly host: { look(domain: DomainRef, signal: AbortSignal): Promise<DomainNow> }
  /** Rejects with E_DOMAIN_BUSY where the image is in use, E_TOOL_MISSING, E_NBD. */
  openDisk(disk: DiskToOpen, signal: AbortSignal): Promise<OpenedDisk>
  readonly progress: Progress
  readonly clock: Clock
  /** Of what is read from the store: once to check it, once to write it. */
  readonly pace?: Pace | undefined
}

export interface DiskToOpen {
  readonly domain: DomainRef
  readonly target: string
  readonly image: ImageNow
  readonly bitmap: string | undefined
  readonly writable: boolean
}

/** An image as it is now; nobody else can write to it until it is disposed of. */
export interface OpenedDisk extends AsyncDisposable {
  readonly size: number
  extents(signal: AbortSignal): AsyncIterable<Extent>
  /** undefined where it was not opened for writing. */
  readonly writer: ImageWriter | undefined
  /** Closes the image. Rejects with E_IO where what was written may not be in it. */
  close(): Promise<void>
}

export interface RollbackRequest {
  readonly point: RecoveryPoint
  /** Disk targets; all of the point unless given. */
  readonly disks: readonly string[] | undefined
}

export interface RolledBackDisk {
  readonly target: string
  readonly image: string
  readonly size: number
  /** Bytes written (or to be written) as data and as zeros. */
  readonly dataBytes: number
  readonly zeroBytes: number
  /** The point since which changes were known; undefined: everything is written. */
  readonly since: string | undefined
}

export interface RollbackResult {
  readonly domain: DomainRef
  readonly disks: readonly RolledBackDisk[]
  readonly durationMs: number
}

/**
 * Writes a point back into the disks of its shut-off domain, and only what
 * differs: the difference between the trees of that point and of one whose
 * checkpoint the image still has, and what was written since.
 *
 * All that is needed is read and checked before the first byte is written.
 * Interrupted after that, the disks are a mixture; the same call again
 * finishes, since the writes count in the dirty bitmap like the guest's. For
 * the same reason the next pull may be incremental.
 */
export class RollbackJob {
  readonly #ports: RollbackPorts

  constructor(ports: RollbackPorts) {
    this.#ports = ports
  }

  /** Says what run() would write; writes nothing. Rejects as run() before it writes. */
  async measure(request: RollbackRequest, signal: AbortSignal): Promise<RollbackResult> {
    const { clock } = this.#ports
    const started = clock.monotonic()
    await using opened = await this.#open(request, { writable: false }, signal)
    return { domain: opened.domain, disks: opened.disks.map(resultOf), durationMs: clock.monotonic() - started }
  }

  /**
   * Rejects with E_LOCKED where a pull of the domain runs, E_NOT_FOUND,
   * E_DOMAIN_STATE where it runs or has saved its memory, E_DOMAIN_BUSY where
   * an image is in use, E_NO_DISK, E_UNSUPPORTED, E_REFUSED (another size),
   * E_DAMAGED; then no byte was written. After that with E_NBD, E_NO_SPACE,
   * E_IO, E_INTERRUPTED.
   */
  async run(request: RollbackRequest, signal: AbortSignal): Promise<RollbackResult> {
    const { clock, pace, progress, store } = this.#ports
    const subject = request.point.domain.name
    const started = clock.monotonic()
    progress.report({ kind: 'started', subject, verb: 'restore', facts: [['point', request.point.id.slice(0, 7)]] })
    let isWriting = false
    try {
      await using opened = await this.#open(request, { writable: true }, signal)
      progress.report({ kind: 'phase', subject, phase: 'check' })
      for (const disk of opened.disks) await rehearseRollback({ store, pace, ...disk }, signal)
      progress.report({ kind: 'phase', subject, phase: 'write' })
      isWriting = true
      for (const disk of opened.disks) await this.#write(subject, disk, signal)
      const disks = opened.disks.map(resultOf)
      progress.report({ kind: 'finished', subject, status: 'success', point: request.point.id })
      return { domain: opened.domain, disks, durationMs: clock.monotonic() - started }
    } catch (error) {
      const reason = isWriting ? halfDone(request.point, error) : error
      progress.report({
        kind: 'finished',
        subject,
        status: 'failed',
        error: { code: errorCodeOf(reason), message: messageOf(reason) },
      })
      throw reason
    }
  }

  async #write(subject: string, disk: Rollback, signal: AbortSignal): Promise<void> {
    const { store, progress } = this.#ports
    const { target, opened } = disk
    const image = opened.writer
    if (image === undefined) throw new Error('bug: the disk was opened for reading')
    const totalBytes = disk.dataBytes + disk.zeroBytes
    await writeRollback(
      {
        store,
        pace: this.#ports.pace,
        ...disk,
        image,
        onProgress: (_, written) =>
          progress.report({ kind: 'disk', subject, target, totalBytes, doneBytes: written, newBytes: written }),
      },
      signal,
    )
    await image.commit(signal)
    await opened.close()
  }

  async #open(
    request: RollbackRequest,
    options: { readonly writable: boolean },
    signal: AbortSignal,
  ): Promise<OpenedDomain> {
    const undo: AsyncDisposable[] = []
    try {
      const opened = await this.#openInto(undo, request, options, signal)
      return { ...opened, [Symbol.asyncDispose]: () => disposeAll(undo) }
    } catch (error) {
      await disposeAll(undo)
      throw error
    }
  }

  /** What is opened is in `undo`, also where it rejects. */
  async #openInto(
    undo: AsyncDisposable[],
    { point, disks }: RollbackRequest,
    options: { readonly writable: boolean },
    signal: AbortSignal,
  ): Promise<Omit<OpenedDomain, keyof AsyncDisposable>> {
    const { store, host } = this.#ports
    const chosen = chooseDisks(point, disks)
    refuseLeftOut(point, chosen, 'written back in place')
    undo.push(await store.runs.lockDomain(point.domain.uuid))
    const now = await host.look(point.domain, signal)
    refuseLive(now, point)
    const domain = { uuid: now.uuid, name: now.name }
    const points = (await store.points.list(point.domain.uuid)).toReversed()

    const rollbacks: Rollback[] = []
    for (const disk of chosen) {
      const image = imageOf(now, disk)
      const base = chooseBase(image, disk.target, points)
      const bitmap = base?.checkpoint?.name
      const opened = await this.#ports.openDisk({ domain, target: disk.target, image, bitmap, ...options }, signal)
      undo.push(opened)
      refuseOtherSize(point, disk, opened.size)
      const rollback = {
        wanted: this.#sideOf(disk),
        present: this.#presentDisk(
          opened,
          base?.disks.find(({ target }) => target === disk.target),
        ),
      }
      const size = await measureRollback({ store, ...rollback }, signal)
      rollbacks.push({ ...rollback, ...size, target: disk.target, path: image.path, opened, since: base?.id })
    }
    return { domain, disks: rollbacks }
  }

  #presentDisk(opened: OpenedDisk, base: PointDisk | undefined): PresentDisk {
    return {
      base: base === undefined ? undefined : this.#sideOf(base),
      extents: signal => opened.extents(signal),
    }
  }

  #sideOf({ root, size }: PointDisk): TreeSide {
    return { root, geometry: { size, chunkSize: this.#ports.store.chunkSize } }
  }
}

interface Rollback {
  readonly target: string
  readonly path: string
  readonly opened: OpenedDisk
  readonly wanted: TreeSide
  readonly present: PresentDisk
  readonly dataBytes: number
  readonly zeroBytes: number
  readonly since: string | undefined
}

interface OpenedDomain extends AsyncDisposable {
  readonly domain: DomainRef
  readonly disks: readonly Rollback[]
}

function resultOf({ target, path, wanted, dataBytes, zeroBytes, since }: Rollback): RolledBackDisk {
  return { target, image: path, size: wanted.geometry.size, dataBytes, zeroBytes, since }
}

function chooseDisks(point: RecoveryPoint, wanted: readonly string[] | undefined): readonly PointDisk[] {
  const missing = wanted?.find(target => !point.disks.some(disk => disk.target === target))
  if (missing !== undefined) throw new BackupError('E_NO_DISK', `${pointName(point)} has no disk ${missing}`)
  return wanted === undefined ? point.disks : point.disks.filter(({ target }) => wanted.includes(target))
}

/** The newest point with a checkpoint whose bitmap the image has: names are random, so it is of that very point. */
function chooseBase(
  { bitmaps }: ImageNow,
  target: string,
  points: readonly RecoveryPoint[],
): RecoveryPoint | undefined {
  return points.find(
    ({ checkpoint, disks }) =>
      checkpoint?.disks.includes(target) === true &&
      disks.some(disk => disk.target === target) &&
      bitmaps.some(bitmap => bitmap.isSound && bitmap.name === checkpoint.name),
  )
}

function refuseLive(now: DomainNow, point: RecoveryPoint): void {
  const again = `then again:   virtvault restore ${pointName(point)} --in-place`
  if (!now.isOff) {
    throw new BackupError('E_DOMAIN_STATE', `${now.name} is not shut off`, {
      why: 'its disks cannot be changed below a running guest',
      hints: [`shut it down:   virsh shutdown ${now.name}`, again],
    })
  }
  if (!now.hasManagedSave) return
  throw new BackupError('E_DOMAIN_STATE', `${now.name} has a saved memory state (managed save)`, {
    why: 'that memory would not match the disks of the recovery point, and ruin them at the next start',
    hints: [`drop it:   virsh managedsave-remove ${now.name}`, again],
  })
}

function imageOf(now: DomainNow, { target }: PointDisk): ImageNow {
  const disk = now.disks.find(one => one.target === target)
  if (disk === undefined) {
    throw new BackupError('E_NO_DISK', `${now.name} has no disk ${target} any more`, {
      hints: ['leave it out by naming the others with --disk', 'or restore it as an image with --to DIR'],
    })
  }
  if (disk.obstacle === undefined) return disk
  throw new BackupError('E_UNSUPPORTED', `disk ${target} of ${now.name} cannot be rolled back: ${disk.obstacle}`, {
    hints: ['restore it as an image with --to DIR'],
  })
}

function refuseOtherSize(point: RecoveryPoint, { target, size }: PointDisk, now: number): void {
  if (now === size) return
  throw new BackupError('E_REFUSED', `disk ${target} has ${now} bytes, in ${pointName(point)} it has ${size}`, {
    why: 'it was resized since',
    hints: ['restore it as an image with --to DIR, and let the domain use that'],
  })
}

/** The disks are neither what they were nor what they shall be. */
function halfDone(point: RecoveryPoint, error: unknown): unknown {
  const hint = `the disks are half rolled back: finish before the domain is started:   virtvault restore ${pointName(point)} --in-place`
  const details = error instanceof BackupError ? error : undefined
  return new BackupError(errorCodeOf(error), messageOf(error), {
    why: details?.why,
    hints: [...(details?.hints ?? []), hint],
    cause: error,
  })
}
