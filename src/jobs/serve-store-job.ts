import { type BackupError, errorCodeOf } from '../base/errors.js'
import { parsePointRef, resolvePointRef } from '../model/point-ref.js'
import type { PointDisk, RecoveryPoint } from '../model/recovery-point.js'
import type { ExportCatalog, OpenExport, ServedExport } from '../nbd/served-export.js'
import type { Run, StorePort } from '../store/store-types.js'
import { ChunkCache } from './chunk-cache.js'
import { DamageCount, exportNameOf, type RunningServer, servedExport } from './serve-job.js'

export interface ServeStorePorts {
  readonly store: Pick<StorePort, 'chunkSize' | 'walkTree' | 'chunks' | 'runs' | 'points'>
  /** Listening when it resolves; `onReadFailure` is told of reads that a disk could not answer. */
  readonly listen: (catalog: ExportCatalog, onReadFailure: (error: unknown) => void) => Promise<RunningServer>
  /** Told of the first read that failed. Must not throw. */
  readonly onDamage: (error: BackupError) => void
}

export interface ServeStoreRequest {
  /** UUIDs of the domains whose points are served; all, also those that come later, unless given. */
  readonly domains?: ReadonlySet<string> | undefined
  /** Where dates in export names are read. */
  readonly timeZone: string
  /** Memory for decoded chunks of all disks together. */
  readonly cacheBytes: number
}

/**
 * Serves every disk of every point of a store over NBD, read-only, until it is
 * disposed. Points are looked up when a client asks, so new ones appear, and
 * opened while a client uses them: memory depends on the clients, not on the
 * store. Its one lease keeps what any client could have begun to read.
 */
export class ServeStoreJob implements AsyncDisposable {
  readonly server: RunningServer
  readonly #lease: Run
  readonly #cache: ChunkCache
  readonly #damage: DamageCount

  private constructor(parts: {
    readonly server: RunningServer
    readonly lease: Run
    readonly cache: ChunkCache
    readonly damage: DamageCount
  }) {
    this.server = parts.server
    this.#lease = parts.lease
    this.#cache = parts.cache
    this.#damage = parts.damage
  }

  /** Serves when it resolves. Rejects as `listen` and the lease do; then nothing is left. */
  static async start(ports: ServeStorePorts, request: ServeStoreRequest): Promise<ServeStoreJob> {
    const { store } = ports
    const lease = await store.runs.begin('export')
    try {
      const cache = new ChunkCache(store.chunks, store.chunkSize, request.cacheBytes)
      const damage = new DamageCount('--all', ports.onDamage)
      const server = await ports.listen(new StoreExports(store, cache, request), error => damage.note(error))
      return new ServeStoreJob({ server, lease, cache, damage })
    } catch (error) {
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
    await this.#lease.finish()
    await this.#lease[Symbol.asyncDispose]()
  }
}

/**
 * The disks of a store's points as exports. `web01@3f9c2a1:vda` is the name in
 * the list; whatever names a point on the command line names it here too
 * (`web01@latest:vda`), and a disk may be left out where there is one.
 */
class StoreExports implements ExportCatalog {
  readonly #store: ServeStorePorts['store']
  readonly #cache: ChunkCache
  readonly #request: ServeStoreRequest
  /** Those that clients use, once each, however many connections a client has. */
  readonly #open = new Map<string, { readonly served: ServedExport; users: number }>()

  constructor(store: ServeStorePorts['store'], cache: ChunkCache, request: ServeStoreRequest) {
    this.#store = store
    this.#cache = cache
    this.#request = request
  }

  async *names(): AsyncGenerator<string> {
    for (const point of await this.#points()) {
      for (const { target, below } of point.disks) if (below === undefined) yield exportNameOf(point, target)
    }
  }

  async open(name: string): Promise<OpenExport | undefined> {
    const found = await this.#find(name)
    // What leaves out images is not all here: there is no such export.
    if (found?.disk.below !== undefined || found === undefined) return undefined
    const key = exportNameOf(found.point, found.disk.target)
    // No await between looking and noting: two clients of a name share what they read.
    const open = this.#open.get(key) ?? { served: servedExport(this.#store, this.#cache, found), users: 0 }
    open.users++
    this.#open.set(key, open)
    return {
      served: open.served,
      [Symbol.asyncDispose]: () => {
        if (--open.users === 0) this.#open.delete(key)
        return Promise.resolve()
      },
    }
  }

  async #find(name: string): Promise<{ readonly point: RecoveryPoint; readonly disk: PointDisk } | undefined> {
    const points = await this.#points()
    for (const point of points) {
      const disk = point.disks.find(({ target }) => exportNameOf(point, target) === name)
      if (disk !== undefined) return { point, disk }
    }
    const noted = await Promise.all(
      points.map(async point => ({ ...point, tags: (await this.#store.points.notes(point)).tags })),
    )
    try {
      const ref = parsePointRef(name)
      const point = resolvePointRef(ref, noted, this.#request.timeZone)
      const [only] = point.disks.length === 1 ? point.disks : []
      const disk = ref.disk === undefined ? only : point.disks.find(({ target }) => target === ref.disk)
      return disk === undefined || ref.path !== undefined ? undefined : { point, disk }
    } catch (error) {
      if (errorCodeOf(error) !== 'E_USAGE' && errorCodeOf(error) !== 'E_NOT_FOUND') throw error
      return undefined
    }
  }

  async #points(): Promise<readonly RecoveryPoint[]> {
    const { domains } = this.#request
    const points = await this.#store.points.readable()
    return domains === undefined ? points : points.filter(({ domain }) => domains.has(domain.uuid))
  }
}
