import { BackupError, errorCodeOf, messageOf } from '../base/errors.js'
import { shortId } from '../model/point-ref.js'
import type { PointDisk, RecoveryPoint } from '../model/recovery-point.js'
import type { ServedExport } from '../nbd/served-export.js'
import type { Run, StorePort } from '../store/store-types.js'
import { ChunkCache } from './chunk-cache.js'
import { refuseLeftOut } from './left-out.js'
import type { DiskExport } from './pull-disk.js'
import { pointName } from './restore-damage.js'
import { chooseDisks } from './restore-plan.js'
import { type BelowContent, StoredDisk } from './stored-disk.js'

/** What the job needs of `ExportServer`. */
export interface RunningServer extends AsyncDisposable {
  /** The TCP port that it got; undefined on a unix socket. */
  readonly port: number | undefined
  /** Resolves when clients were served and none is left. Rejects with the signal's reason. */
  untilServed(signal: AbortSignal): Promise<void>
}

export interface ServePorts {
  readonly store: Pick<StorePort, 'chunkSize' | 'walkTree' | 'chunks' | 'runs' | 'points'>
  /** Listening when it resolves; `onReadFailure` is told of reads that a disk could not answer. */
  readonly listen: (exports: readonly ServedExport[], onReadFailure: (error: unknown) => void) => Promise<RunningServer>
  /** Told of the first read that failed. Must not throw. */
  readonly onDamage: (error: BackupError) => void
}

export interface ServeRequest {
  readonly point: RecoveryPoint
  /** Disk targets; all of the point unless given. */
  readonly disks?: readonly string[] | undefined
  /** Images that the point leaves out; the job closes them. */
  readonly below?: ServedBelow | undefined
  /** Memory for decoded chunks of all disks together. */
  readonly cacheBytes: number
}

/** By target; disposing closes all. */
export interface ServedBelow extends AsyncDisposable {
  readonly images: ReadonlyMap<string, Pick<DiskExport, 'size' | 'read'>>
}

export interface OfferedDisk {
  readonly target: string
  readonly size: number
  /** `web01@3f9c2a1:vda` */
  readonly exportName: string
}

/**
 * Serves the disks of a recovery point over NBD, read-only, until it is
 * disposed. Holds a lease all the while, so that no gc takes what is served,
 * even if the point is deleted meanwhile.
 */
export class ServeJob implements AsyncDisposable {
  readonly disks: readonly OfferedDisk[]
  readonly server: RunningServer
  readonly #lease: Run
  readonly #cache: ChunkCache
  readonly #damage: DamageCount
  readonly #below: ServedBelow | undefined

  private constructor(parts: {
    readonly disks: readonly OfferedDisk[]
    readonly server: RunningServer
    readonly lease: Run
    readonly cache: ChunkCache
    readonly damage: DamageCount
    readonly below: ServedBelow | undefined
  }) {
    this.#below = parts.below
    this.disks = parts.disks
    this.server = parts.server
    this.#lease = parts.lease
    this.#cache = parts.cache
    this.#damage = parts.damage
  }

  /**
   * Serves when it resolves. Rejects with E_NO_DISK, E_UNSUPPORTED for a disk of
   * which images are left out, E_NOT_FOUND where the
   * point was deleted meanwhile, and as `listen` does; then nothing is left.
   */
  static async start(ports: ServePorts, request: ServeRequest): Promise<ServeJob> {
    const { store } = ports
    const { point, below } = request
    const chosen = await openDisks(request)
    const lease = await store.runs.begin('export')
    try {
      // Only now: a point that is here after the lease is kept by it.
      if ((await store.points.get(point.id)) === undefined) {
        throw new BackupError('E_NOT_FOUND', `${pointName(point)} was deleted meanwhile`)
      }
      const cache = new ChunkCache(store.chunks, store.chunkSize, request.cacheBytes)
      const damage = new DamageCount(pointName(point), ports.onDamage)
      const offered = chosen.map(disk => ({
        target: disk.target,
        size: disk.size,
        exportName: exportNameOf(point, disk.target),
      }))
      const exports = chosen.map(disk =>
        servedExport(store, cache, { point, disk, below: below?.images.get(disk.target) }),
      )
      const server = await ports.listen(exports, error => damage.note(error))
      return new ServeJob({ disks: offered, server, lease, cache, damage, below })
    } catch (error) {
      await below?.[Symbol.asyncDispose]()
      await lease.finish()
      await lease[Symbol.asyncDispose]()
      throw error
    }
  }

  /** Reads that the store could not answer so far. */
  get failedReads(): number {
    return this.#damage.count
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.server[Symbol.asyncDispose]()
    await this.#cache.idle()
    await this.#below?.[Symbol.asyncDispose]()
    await this.#lease.finish()
    await this.#lease[Symbol.asyncDispose]()
  }
}

/** Counts failed reads and tells of the first: a damaged stretch is read again and again. */
export class DamageCount {
  count = 0
  readonly #what: string
  readonly #tell: (error: BackupError) => void

  /** `what` is a point, or a selector of several, as `verify` takes it. */
  constructor(what: string, tell: (error: BackupError) => void) {
    this.#what = what
    this.#tell = tell
  }

  note(cause: unknown): void {
    if (this.count++ > 0) return
    const name = this.#what
    const code = errorCodeOf(cause)
    this.#tell(
      new BackupError(code, `${name}: a client read what the store cannot give back: ${messageOf(cause)}`, {
        hints: [`See what else is damaged: virtvault verify ${name} --level data`],
        cause,
      }),
    )
  }
}

/** `web01@3f9c2a1:vda` */
export function exportNameOf(point: RecoveryPoint, target: string): string {
  return `${point.domain.name}@${shortId(point.id)}:${target}`
}

/** One disk of a point as clients see it. */
export function servedExport(
  store: Pick<StorePort, 'chunkSize' | 'walkTree'>,
  cache: ChunkCache,
  {
    point,
    disk,
    below,
  }: {
    readonly point: RecoveryPoint
    readonly disk: PointDisk
    readonly below?: Pick<DiskExport, 'size' | 'read'> | undefined
  },
): ServedExport {
  return {
    name: exportNameOf(point, disk.target),
    description: `disk ${disk.target} of ${point.domain.name}, ${new Date(point.time).toISOString()}`,
    preferredBlock: store.chunkSize,
    disk: new StoredDisk({
      store,
      root: disk.root,
      geometry: { size: disk.size, chunkSize: store.chunkSize },
      cache,
      below: below === undefined ? undefined : contentOf(below),
      aheadBytes: cache.bytes / 2,
    }),
  }
}

/** The disks that are meant, all of which can be served. Closes what was opened where not. */
async function openDisks({ point, disks, below }: ServeRequest): Promise<readonly PointDisk[]> {
  try {
    const chosen = chooseDisks(point, disks)
    const absent = chosen.filter(({ target }) => below?.images.has(target) !== true)
    refuseLeftOut(point, absent, 'served, mounted or run from the store')
    return chosen
  } catch (error) {
    await below?.[Symbol.asyncDispose]()
    throw error
  }
}

function contentOf(images: Pick<DiskExport, 'size' | 'read'>): BelowContent {
  return {
    read: async (offset, out) => {
      const there = Math.max(0, Math.min(out.length, images.size - offset))
      out.fill(0, there)
      // Not the client's signal: one that goes must not end the reads of the others.
      if (there > 0) await images.read(Float64Array.of(offset, there, 0), out.subarray(0, there), NEVER)
    },
  }
}

const NEVER = new AbortController().signal
