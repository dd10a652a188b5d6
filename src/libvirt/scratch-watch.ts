import { BackupError } from '../base/errors.js'
import { formatSize } from '../model/size.js'
import type { DomainRef } from '../model/recovery-point.js'
import type { VirtEvent } from '../native/virt.js'
import { isConnectionLoss, isDomainGone, type Hypervisor } from './hypervisor.js'
import type { ScratchLimits } from './session-types.js'

export interface WatchedSession {
  readonly domain: DomainRef
  readonly scratchFiles: readonly string[]
  readonly limits: ScratchLimits
  /** By libvirt's name of a scratch image (`vda[7]`): where QEMU must not write past. */
  readonly thresholds: ReadonlyMap<string, number>
}

/** How far ahead of the present growth the watch looks, in intervals. */
const LOOK_AHEAD = 4

/** virDomainEventType, and details of SUSPENDED. */
const SUSPENDED = 3
const STOPPED = 5
const SUSPENDED_IOERROR = 2
/** virDomainEventIOErrorAction. */
const ACTION_PAUSE = 1
const ACTION_REPORT = 2

/**
 * Watches a session's scratch and domain until disposed of. `signal` aborts
 * with E_NO_SPACE before the scratch fills (a full one pauses the whole
 * domain), or as soon as the domain was paused, or one of its writes failed, by an I/O error; and with
 * E_SOURCE_GONE when the domain stopped or the job is no longer there. A daemon
 * that restarts does not end a session: QEMU goes on serving.
 *
 * It needs nothing of what a store that hangs can hold up: no thread of libuv's pool.
 */
export class ScratchWatch implements AsyncDisposable {
  readonly #hypervisor: Hypervisor
  readonly #session: WatchedSession
  readonly #lost = new AbortController()
  readonly #stop = new AbortController()
  readonly #done: Promise<unknown>
  /** Over which the thresholds were set: an event that a lost one should have brought comes with the next write. */
  #armed: unknown
  #last: { readonly freeBytes: number; readonly at: number } | undefined

  constructor(hypervisor: Hypervisor, session: WatchedSession) {
    this.#hypervisor = hypervisor
    this.#session = session
    this.#done = Promise.all([this.#poll(), this.#listen()])
  }

  get signal(): AbortSignal {
    return this.#lost.signal
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort()
    await this.#done
  }

  async #listen(): Promise<void> {
    for await (const event of this.#hypervisor.events(this.#stop.signal)) {
      const loss = lossOf(event, this.#session)
      if (loss !== undefined) this.#lose(loss)
    }
  }

  async #poll(): Promise<void> {
    const { clock } = this.#hypervisor
    const interval = this.#session.limits.intervalMs
    while (!this.#stop.signal.aborted && !this.#lost.signal.aborted) {
      try {
        await this.#look()
        await clock.sleep(interval, this.#stop.signal)
      } catch (error) {
        if (this.#stop.signal.aborted) return
        if (isDomainGone(error)) this.#lose(goneError(this.#session.domain, 'it stopped'))
        // Anything else is the daemon's trouble, and the session's only when it stays without space.
        else await clock.sleep(interval, this.#stop.signal).catch(() => undefined)
      }
    }
  }

  async #look(): Promise<void> {
    const { domain, limits } = this.#session
    // Space first: it is asked of the machine, whatever the daemon does.
    await this.#checkRoom()
    await this.#arm()
    const stats = await this.#stats()
    if (stats === undefined || this.#stop.signal.aborted) return
    if (stats.type === 0) this.#lose(goneError(domain, 'its backup job was ended by somebody else'))
    if (limits.maxUsedBytes !== undefined && stats.diskTempUsed > limits.maxUsedBytes) {
      this.#lose(fullError(domain, `it overwrote more than ${formatSize(limits.maxUsedBytes)} during the backup`))
    }
  }

  async #stats() {
    try {
      return await this.#hypervisor.call(connection => connection.jobStats(this.#session.domain.uuid))
    } catch (error) {
      if (isConnectionLoss(error)) return undefined
      throw error
    }
  }

  async #arm(): Promise<void> {
    const { domain, thresholds } = this.#session
    const { connection } = this.#hypervisor
    if (thresholds.size === 0 || this.#armed === connection) return
    for (const [node, bytes] of thresholds) await connection.setBlockThreshold(domain.uuid, node, bytes)
    this.#armed = connection
  }

  async #checkRoom(): Promise<void> {
    const { domain, scratchFiles, limits } = this.#session
    const freeBytes = await this.#hypervisor.files.freeSpace(scratchFiles)
    if (freeBytes === undefined) return
    const at = this.#hypervisor.clock.monotonic()
    const ahead = limits.intervalMs * LOOK_AHEAD
    const expected = expectedFree(this.#last, { freeBytes, at }, ahead)
    this.#last = { freeBytes, at }
    if (expected < limits.minFreeBytes) {
      this.#lose(fullError(domain, `only ${formatSize(freeBytes)} are free where its scratch files are`))
    }
  }

  #lose(error: BackupError): void {
    if (!this.#stop.signal.aborted) this.#lost.abort(error)
  }
}

/** Free bytes after another `aheadMs` at the present speed. */
export function expectedFree(
  before: { readonly freeBytes: number; readonly at: number } | undefined,
  now: { readonly freeBytes: number; readonly at: number },
  aheadMs: number,
): number {
  if (before === undefined || now.at <= before.at) return now.freeBytes
  const lossPerMs = Math.max(0, before.freeBytes - now.freeBytes) / (now.at - before.at)
  return now.freeBytes - lossPerMs * aheadMs
}

function lossOf(event: VirtEvent, { domain, thresholds }: WatchedSession): BackupError | undefined {
  if (event.kind === 'lifecycle' && event.uuid === domain.uuid) {
    if (event.event === STOPPED) return goneError(domain, 'it stopped')
    const isPausedByError = event.event === SUSPENDED && event.detail === SUSPENDED_IOERROR
    return isPausedByError ? fullError(domain, 'it was paused by an I/O error') : undefined
  }
  if (event.kind === 'io-error' && event.uuid === domain.uuid && event.action === ACTION_PAUSE) {
    return fullError(domain, `it was paused by an I/O error (${event.reason})`)
  }
  if (event.kind === 'io-error' && event.uuid === domain.uuid && event.action === ACTION_REPORT)
    return failedError(domain)
  if (event.kind === 'block-threshold' && event.uuid === domain.uuid && thresholds.has(event.device)) {
    return fullError(domain, `its scratch ${event.device} has grown past ${formatSize(event.threshold)}`)
  }
  return undefined
}

function goneError(domain: DomainRef, why: string): BackupError {
  return new BackupError('E_SOURCE_GONE', `${domain.name} cannot be read any more`, {
    why,
    hints: ['run the backup again when the domain runs'],
  })
}

/** QEMU pauses a domain where there is "no space", and tells the guest of any other error: also of a quota. */
function failedError(domain: DomainRef): BackupError {
  return new BackupError('E_IO', `the backup of ${domain.name} was given up: a write of the domain has failed`, {
    why: 'QEMU told the guest of an I/O error: of its own disk, or of the scratch, as a quota gives one',
    hints: [
      "see what the guest's kernel says, and check its file systems",
      'if the scratch files are under a quota, stay below it:   --scratch-limit SIZE',
    ],
  })
}

function fullError(domain: DomainRef, why: string): BackupError {
  return new BackupError('E_NO_SPACE', `the backup of ${domain.name} was given up to keep it running`, {
    why,
    hints: ['make room where the scratch files are, or put them elsewhere', 'back up when the domain writes less'],
  })
}
