import { throwIfAborted } from '../base/async.js'
import { BackupError, messageOf, type Warning } from '../base/errors.js'
import type { DomainDisk } from '../model/domain.js'
import type { Consistency, DomainRef } from '../model/recovery-point.js'
import { withLeftovers } from './backup-session.js'
import { checkpointXml, cleanupWarning, deleteCheckpoint } from './checkpoints.js'
import type { Hypervisor } from './hypervisor.js'
import type { ChainImage } from './image-chain.js'
import type { ImageTools } from './image-tools.js'
import { createOfflineCheckpoint } from './offline-checkpoints.js'
import { type OfflineDisk, serveDisks, type ServedDisk } from './offline-exports.js'
import { chainOf, describeOff, imageToolsOf, isOff, soundDepth, startedMeanwhile } from './offline-images.js'
import type { BackupSessionPort, ExportedDisk, RequestedDisk, SessionRequest } from './session-types.js'
import { offlineSocket } from './run-places.js'
import type { StorageDaemon } from './storage-daemon.js'

/** virDomainEventType. */
const EVENT_STARTED = 2

interface OfflineParts {
  readonly hypervisor: Hypervisor
  readonly request: SessionRequest
  readonly daemon: StorageDaemon
  readonly disks: readonly ExportedDisk[]
  readonly checkpoint: BackupSessionPort['checkpoint']
  readonly consistency: Consistency
  readonly time: number
  readonly warnings: readonly Warning[]
}

/**
 * A backup of a domain that is shut off, from its images:
 * docs/decisions/0005-offline-domains.md. Owns the process that serves them,
 * whose locks keep the domain from being started, and the new checkpoint until
 * keepCheckpoint(). The domain itself is not touched.
 */
export class OfflineBackupSession implements BackupSessionPort {
  readonly domain: DomainRef
  readonly disks: readonly ExportedDisk[]
  readonly address: BackupSessionPort['address']
  readonly checkpoint: BackupSessionPort['checkpoint']
  readonly consistency: Consistency
  readonly time: number
  readonly #parts: OfflineParts
  readonly #warnings: Warning[]
  readonly #failure = new AbortController()
  readonly #watching = new AbortController()
  #ended: Promise<void> | undefined
  #hasStarted = false
  #kept = false

  private constructor(parts: OfflineParts) {
    this.domain = parts.request.domain
    this.disks = parts.disks
    this.address = { socket: offlineSocket(parts.request.socket) }
    this.checkpoint = parts.checkpoint
    this.consistency = parts.consistency
    this.time = parts.time
    this.#parts = parts
    this.#warnings = [...parts.warnings]
    void this.#watchForStart()
    void parts.daemon.ended.then(why => {
      if (why.code === 'E_UNREACHABLE') this.#failure.abort(why)
      else
        this.#failure.abort(
          new BackupError('E_SOURCE_GONE', 'the process that served the disks has ended', { cause: why }),
        )
    })
  }

  /**
   * Adds the new checkpoint's bitmaps, then opens the images for reading, which
   * locks them. A disk whose base is not sound under that lock is exported in
   * full, with a W_CHAIN warning.
   *
   * Rejects with E_DOMAIN_STATE where nobody opens its images,
   * E_SOURCE_GONE where the domain was started meanwhile,
   * E_DOMAIN_BUSY where another process has an image open, E_EXISTS,
   * E_TOOL_MISSING, E_IO, E_UNREACHABLE. After a rejection nothing of this request is left;
   * what could not be undone is said, and the caller's journal has the names.
   */
  static async begin(
    hypervisor: Hypervisor,
    request: SessionRequest,
    signal: AbortSignal,
  ): Promise<OfflineBackupSession> {
    throwIfAborted(signal)
    const { domain } = request
    const tools = imageToolsOf(hypervisor, domain)
    const off = await describeOff(hypervisor, domain)
    const socket = offlineSocket(request.socket)
    const taken = await hypervisor.files.taken([socket])
    if (taken.length > 0) throw new BackupError('E_EXISTS', `${socket} exists already`)
    const opened: OfflineDisk[] = []
    for (const asked of request.disks)
      opened.push(await openable(hypervisor, asked, { disks: off.disks, tools, signal }))

    let daemon: StorageDaemon | undefined
    try {
      const checkpoint = await makeCheckpoint(hypervisor, request, opened)
      throwIfAborted(signal)
      daemon = await tools.startDaemon()
      const served = await serveDisks(daemon, socket, opened)
      // From here QEMU's locks keep it off; before, it may have run.
      if (!(await isOff(hypervisor, domain))) throw startedMeanwhile(domain)
      return new OfflineBackupSession({
        hypervisor,
        request,
        daemon,
        disks: request.disks.map((asked, i) => exported(asked, served[i])),
        checkpoint,
        consistency: off.untidy === undefined ? { kind: 'offline' } : { kind: 'crash', reason: off.untidy },
        time: hypervisor.clock.now(),
        warnings: request.disks.flatMap((asked, i) => chainWarning(asked, served[i])),
      })
    } catch (error) {
      await daemon?.[Symbol.asyncDispose]()
      throw await undone(hypervisor, request, error)
    }
  }

  get warnings(): readonly Warning[] {
    return this.#warnings
  }

  get failure(): AbortSignal {
    return this.#failure.signal
  }

  end(): Promise<void> {
    this.#ended ??= this.#end()
    return this.#ended
  }

  keepCheckpoint(): Promise<void> {
    this.#kept = true
    return Promise.resolve()
  }

  /** Never rejects: what could not be undone becomes a W_CLEANUP warning, and is the next run's to finish. */
  async [Symbol.asyncDispose](): Promise<void> {
    const { hypervisor, request } = this.#parts
    await this.end().catch(() => undefined)
    if (this.#kept || request.checkpoint === undefined) return
    try {
      await deleteCheckpoint(hypervisor, request.domain, request.checkpoint)
    } catch (error) {
      this.#warnings.push(cleanupWarning(request.domain, request.checkpoint, error))
    }
  }

  /** Asks once more, while the locks still hold, whether what was read was the disks of a domain that is off. */
  async #end(): Promise<void> {
    const { hypervisor, request, daemon } = this.#parts
    try {
      if (!(await isOff(hypervisor, request.domain))) throw startedMeanwhile(request.domain)
    } finally {
      this.#watching.abort()
      await daemon[Symbol.asyncDispose]()
      for (const failure of await hypervisor.files.removeLeftovers([offlineSocket(request.socket)])) {
        this.#warnings.push({ code: 'W_CLEANUP', message: failure })
      }
    }
    if (this.#hasStarted) throw startedMeanwhile(request.domain)
  }

  /** File systems without locks exist: there a domain can start under us, and this tells. */
  async #watchForStart(): Promise<void> {
    const { hypervisor, request } = this.#parts
    for await (const event of hypervisor.events(this.#watching.signal)) {
      if (event.kind !== 'lifecycle' || event.uuid !== request.domain.uuid || event.event !== EVENT_STARTED) continue
      this.#hasStarted = true
      this.#failure.abort(startedMeanwhile(request.domain))
    }
  }
}

async function openable(
  hypervisor: Hypervisor,
  asked: RequestedDisk,
  from: { readonly disks: readonly DomainDisk[]; readonly tools: ImageTools; readonly signal: AbortSignal },
): Promise<OfflineDisk> {
  const disk = from.disks.find(({ target }) => target === asked.target)
  if (disk === undefined) throw new BackupError('E_NOT_FOUND', `disk ${asked.target} is no longer there`)
  const chain = await chainOf(hypervisor, { disk, tools: from.tools }, from.signal)
  const depth = asked.base === undefined ? 0 : soundDepth(chain, asked.base)
  return { target: asked.target, chain, base: depth === 0 ? undefined : asked.base, depth }
}

/** Before the images are opened for reading: what is written in between is in the bitmaps, and read again next time. */
async function makeCheckpoint(
  hypervisor: Hypervisor,
  request: SessionRequest,
  opened: readonly OfflineDisk[],
): Promise<BackupSessionPort['checkpoint']> {
  const { checkpoint: name, domain } = request
  if (name === undefined) return undefined
  const tracked = request.disks.filter(disk => disk.tracked).map(disk => disk.target)
  const images = new Map<string, ChainImage>()
  for (const { target, chain } of opened) {
    const top = chain[0]
    if (top !== undefined && tracked.includes(target)) images.set(target, top)
  }
  await createOfflineCheckpoint(hypervisor, domain, { name, images })
  return { name, xml: await checkpointXml(hypervisor, domain, name), disks: tracked }
}

function exported(asked: RequestedDisk, served: ServedDisk | undefined): ExportedDisk {
  if (served === undefined) throw new BackupError('E_INTERNAL', `disk ${asked.target} is not served`)
  const incremental = served.bitmap !== undefined
  return {
    target: asked.target,
    exportName: served.exportName,
    bitmap: served.bitmap,
    incremental,
    base: incremental ? asked.base : undefined,
    size: served.size,
  }
}

function chainWarning(asked: RequestedDisk, served: ServedDisk | undefined): Warning[] {
  if (asked.base === undefined || served?.bitmap !== undefined) return []
  const why = `its image has no sound dirty bitmap since ${asked.base}`
  return [{ code: 'W_CHAIN', message: `${asked.target}: ${why}: reading everything, storing only what changed` }]
}

async function undone(hypervisor: Hypervisor, request: SessionRequest, error: unknown): Promise<unknown> {
  const failures = [...(await hypervisor.files.removeLeftovers([offlineSocket(request.socket)]))]
  const { checkpoint, domain } = request
  if (checkpoint !== undefined) {
    await deleteCheckpoint(hypervisor, domain, checkpoint).catch((failure: unknown) => {
      failures.push(messageOf(failure))
    })
  }
  return failures.length === 0 ? error : withLeftovers(error, failures)
}
