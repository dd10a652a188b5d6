import { dirname } from 'node:path'

import { throwIfAborted } from '../base/async.js'
import { BackupError, errorCodeOf, messageOf, type Warning } from '../base/errors.js'
import type { Consistency, DomainRef } from '../model/recovery-point.js'
import { formatSize } from '../model/size.js'
import type { VirtDomainInfo } from '../native/virt.js'
import { endOwnJob, isPausedForSpace, refuseBusy, resumeAfterJob } from './backup-job.js'
import { beginWithFallback, type BegunBackup } from './backup-begin.js'
import { checkpointXml, cleanupWarning, deleteCheckpoint, listCheckpoints } from './checkpoints.js'
import { freezeAround, type FreezeOutcome } from './freeze.js'
import { type Hypervisor, isDomainGone, libvirtFailure } from './hypervisor.js'
import { blockDeviceSize } from './scratch-devices.js'
import { type QuotaRoom, quotaRoomOf } from './scratch-quota.js'
import { ScratchWatch } from './scratch-watch.js'
import type { BackupSessionPort, ExportedDisk, RequestedDisk, SessionRequest } from './session-types.js'

/** virDomainState. */
const STATE_RUNNING = 1
const STATE_BLOCKED = 2
const STATE_PAUSED = 3
const STATE_CRASHED = 6
const STATE_PMSUSPENDED = 7
/** Those in which QEMU can begin a backup, whatever its guest does. */
const STATES_WITH_QEMU = [STATE_RUNNING, STATE_BLOCKED, STATE_PAUSED, STATE_CRASHED, STATE_PMSUSPENDED]

/** Room on a scratch device, or below a quota, that must stay: what a domain may write while the job is ended. */
const MARGIN_BYTES = 512 * 1024 ** 2

/** Time to leave a session that is given up in order, NBD connections first. */
const UNWIND_MS = 500

interface SessionParts {
  readonly hypervisor: Hypervisor
  readonly request: SessionRequest
  /** Then a pause by an I/O error is the session's doing. */
  readonly mayResume: boolean
  readonly begun: BegunBackup
  readonly thresholds: ReadonlyMap<string, number>
  readonly checkpoint: BackupSessionPort['checkpoint']
  readonly consistency: Consistency
  readonly warnings: readonly Warning[]
}

/**
 * A pull-mode backup on a running domain: DESIGN.md §5. Owns libvirt's job, the
 * new checkpoint until keepCheckpoint(), and the watch over the scratch.
 */
export class LiveBackupSession implements BackupSessionPort {
  readonly domain: DomainRef
  readonly disks: readonly ExportedDisk[]
  readonly address: BackupSessionPort['address']
  readonly checkpoint: BackupSessionPort['checkpoint']
  readonly consistency: Consistency
  readonly time: number
  readonly #parts: SessionParts
  readonly #watch: ScratchWatch
  readonly #failure: AbortSignal
  readonly #warnings: Warning[]
  #ended: Promise<void> | undefined
  #kept = false

  private constructor(parts: SessionParts) {
    const { request, begun } = parts
    this.domain = request.domain
    this.disks = begun.disks
    this.address = begun.address
    this.checkpoint = parts.checkpoint
    this.consistency = parts.consistency
    this.time = begun.time
    this.#parts = parts
    this.#warnings = [...parts.warnings]
    const { lost } = parts.hypervisor.files
    this.#watch = new ScratchWatch(parts.hypervisor, {
      domain: request.domain,
      scratchFiles: scratchFilesOf(request.disks),
      limits: request.scratchLimits,
      thresholds: parts.thresholds,
    })
    this.#watch.signal.addEventListener('abort', () => void this.#rescue(), { once: true })
    this.#failure = lost === undefined ? this.#watch.signal : AbortSignal.any([this.#watch.signal, lost])
  }

  /**
   * Begins the backup and creates the new checkpoint in the same instant.
   *
   * Where libvirt does not confirm the base of a disk, that disk is exported in
   * full, with a W_CHAIN warning. Rejects with E_DOMAIN_BUSY at once where any
   * job runs, E_DOMAIN_STATE where the domain does not, E_EXISTS where a name of the
   * request is taken, E_NO_SPACE without room for scratch, E_AGENT where a required
   * freeze or the thaw failed, E_LIBVIRT_STUCK. After a rejection nothing of
   * this request is left, unless libvirt cannot be reached: the caller's journal
   * has the names.
   */
  static async begin(hypervisor: Hypervisor, request: SessionRequest, signal: AbortSignal): Promise<LiveBackupSession> {
    throwIfAborted(signal)
    const { state } = await refuseStopped(hypervisor, request.domain)
    const targets = request.disks.map(disk => disk.target)
    await refuseBusy(hypervisor, request.domain, targets)
    await refuseUsedNames(hypervisor, request)
    await refuseFullScratch(hypervisor, request)
    const quota = await quotaOf(hypervisor, request)
    const mayResume = !(await isPausedForSpace(hypervisor, request.domain))

    try {
      const outcome = await freezeAround(
        hypervisor,
        { ...request.freeze, domain: request.domain, onFreeze: frozen => request.onFreeze(frozen) },
        () => beginWithFallback(hypervisor, request, signal),
      )
      throwIfAborted(signal)
      const consistency = withReason(outcome.consistency, state)
      return new LiveBackupSession(await partsOf(hypervisor, request, { ...outcome, consistency, mayResume, quota }))
    } catch (error) {
      const { failures } = await undo(hypervisor, namesOf(request), mayResume)
      throw failures.length === 0 ? error : withLeftovers(error, failures)
    }
  }

  get warnings(): readonly Warning[] {
    return this.#warnings
  }

  get failure(): AbortSignal {
    return this.#failure
  }

  end(): Promise<void> {
    // A failed attempt may be repeated: the job may still be there.
    this.#ended ??= this.#end().catch((error: unknown) => {
      this.#ended = undefined
      throw error
    })
    return this.#ended
  }

  keepCheckpoint(): Promise<void> {
    this.#kept = true
    return Promise.resolve()
  }

  /**
   * Rejects with what end() failed with: the job may still be there, and the
   * caller's journal has to stay for whoever ends it. A checkpoint that stays is
   * a W_CLEANUP warning: the next run finds it by its name.
   */
  async [Symbol.asyncDispose](): Promise<void> {
    const { hypervisor, request } = this.#parts
    await this.end()
    if (this.#kept || request.checkpoint === undefined) return
    try {
      await deleteCheckpoint(hypervisor, request.domain, request.checkpoint)
    } catch (error) {
      this.#warnings.push(cleanupWarning(request.domain, request.checkpoint, error))
    }
  }

  /**
   * Who reads drops its connections as soon as the signal is aborted, but may then wait for a store that hangs,
   * while the scratch goes on filling: the job ends without it.
   */
  async #rescue(): Promise<void> {
    await this.#parts.hypervisor.clock.sleep(UNWIND_MS)
    // Leaving the scope tries again, and tells.
    await this.end().catch(() => undefined)
  }

  async #end(): Promise<void> {
    const { hypervisor, request, mayResume } = this.#parts
    // Not waited for yet: it may be in a call that hangs with QEMU.
    const watchStopped = this.#watch[Symbol.asyncDispose]()
    await endOwnJob(hypervisor, request.domain, request.socket)
    await watchStopped
    if (mayResume && (await resumeAfterJob(hypervisor, request.domain)))
      this.#warnings.push(resumedWarning(request.domain))
    for (const failure of await hypervisor.files.removeLeftovers([request.socket, ...scratchFilesOf(request.disks)])) {
      this.#warnings.push({ code: 'W_CLEANUP', message: failure })
    }
  }
}

/** What a dead run's journal knows. */
export interface DeadSession {
  readonly domain: DomainRef
  /** The run may have died between freezing and thawing. */
  readonly frozen: boolean
  readonly socket: string
  readonly scratchFiles: readonly string[]
  /** undefined where its recovery point exists: then the checkpoint stays. */
  readonly checkpoint: string | undefined
}

/**
 * Undoes what a dead run left: thaws, ends its job, deletes its checkpoint and
 * its files. Only for a run whose lock is held by the caller. May be repeated,
 * also after dying inside it. Returns what could not be undone, one line each;
 * rejects with E_LIBVIRT_STUCK, when the rest is done, where only the remedy
 * for that helps.
 */
export async function undoDeadSession(hypervisor: Hypervisor, dead: DeadSession): Promise<readonly string[]> {
  const failures: string[] = []
  if (dead.frozen) {
    try {
      await hypervisor.call(connection => connection.fsThaw(dead.domain.uuid, []))
    } catch (error) {
      if (!isDomainGone(error)) failures.push(messageOf(error))
    }
  }
  const undone = await undo(hypervisor, dead, true)
  if (undone.stuck !== undefined) throw undone.stuck
  return [...failures, ...undone.failures]
}

interface Undone {
  readonly failures: readonly string[]
  readonly stuck: BackupError | undefined
}

async function undo(hypervisor: Hypervisor, names: Omit<DeadSession, 'frozen'>, mayResume: boolean): Promise<Undone> {
  const { domain, checkpoint } = names
  const failures: string[] = []
  let stuck: BackupError | undefined
  const attempt = async (step: () => Promise<unknown>) => {
    try {
      await step()
    } catch (error) {
      failures.push(messageOf(error))
      if (error instanceof BackupError && error.code === 'E_LIBVIRT_STUCK') stuck = error
    }
  }
  await attempt(async () => {
    const found = await endOwnJob(hypervisor, domain, names.socket)
    if (found && mayResume) await resumeAfterJob(hypervisor, domain)
  })
  if (checkpoint !== undefined) await attempt(() => deleteCheckpoint(hypervisor, domain, checkpoint))
  failures.push(...(await hypervisor.files.removeLeftovers([names.socket, ...names.scratchFiles])))
  return { failures, stuck }
}

async function partsOf(
  hypervisor: Hypervisor,
  request: SessionRequest,
  outcome: FreezeOutcome<BegunBackup> & { readonly mayResume: boolean; readonly quota: QuotaRoom },
): Promise<SessionParts> {
  const name = request.checkpoint
  const checkpoint =
    name === undefined
      ? undefined
      : {
          name,
          xml: await checkpointXml(hypervisor, request.domain, name),
          disks: request.disks.filter(disk => disk.tracked).map(disk => disk.target),
        }
  return {
    hypervisor,
    request,
    mayResume: outcome.mayResume,
    begun: outcome.result,
    thresholds: await thresholdsOf(request, outcome.result, outcome.quota),
    checkpoint,
    consistency: outcome.consistency,
    warnings: [
      ...outcome.warnings,
      ...outcome.result.warnings,
      ...unwatchedWarning(hypervisor, request, outcome.quota),
    ],
  }
}

/** Of devices, which have an end, of what `--scratch-limit` says, and of a quota, which the files of all disks share. */
async function thresholdsOf(
  { disks, scratchLimits }: SessionRequest,
  { scratchNodes }: BegunBackup,
  quota: QuotaRoom,
): Promise<ReadonlyMap<string, number>> {
  const thresholds = new Map<string, number>()
  const share = quota.kind === 'known' ? quota.bytes / disks.length : undefined
  for (const { target, scratch } of disks) {
    const node = scratchNodes.get(target)
    const size = scratch.kind === 'block' ? await blockDeviceSize(scratch.path) : share
    // A full device pauses the guest for a moment; a quota that is met gives it errors.
    const least = (size ?? Infinity) * (scratch.kind === 'block' ? 3 / 4 : 1 / 2)
    const end = Math.max(least, (size ?? Infinity) - MARGIN_BYTES)
    const bytes = Math.min(end, scratchLimits.maxUsedBytes ?? Infinity)
    if (node !== undefined && bytes < Infinity) thresholds.set(node, Math.floor(bytes))
  }
  return thresholds
}

async function refuseStopped(hypervisor: Hypervisor, domain: DomainRef): Promise<VirtDomainInfo> {
  const info = await hypervisor.lookup(domain.uuid)
  if (info.id >= 0 && STATES_WITH_QEMU.includes(info.state)) return info
  throw new BackupError('E_DOMAIN_STATE', `${domain.name} is not running`, {
    why: `libvirt gives its state as ${info.state} (reason ${info.reason})`,
  })
}

/** Of a guest that crashed before: whoever restores the point should know. */
function withReason(consistency: Consistency, state: number): Consistency {
  if (consistency.kind !== 'crash' || state !== STATE_CRASHED) return consistency
  return { kind: 'crash', reason: 'its guest had crashed, and was as it was left' }
}

/**
 * A begin that fails is undone by its names, and QEMU unlinks whatever lies
 * where its socket goes: neither may meet something that was there before.
 */
async function refuseUsedNames(hypervisor: Hypervisor, request: SessionRequest): Promise<void> {
  const { domain, checkpoint, socket, tcp } = request
  const scratch = scratchFilesOf(request.disks)
  const used = [...(await hypervisor.files.taken(tcp === undefined ? [socket, ...scratch] : scratch))]
  if (checkpoint !== undefined && (await listCheckpoints(hypervisor, domain, checkpoint)).includes(checkpoint)) {
    used.push(`checkpoint ${checkpoint}`)
  }
  if (used.length > 0) throw new BackupError('E_EXISTS', `${used.join(', ')} of ${domain.name} exists already`)
}

/** Before anything is frozen; the watch would give the session up at once. */
async function refuseFullScratch(hypervisor: Hypervisor, request: SessionRequest): Promise<void> {
  const freeBytes = await hypervisor.files.freeSpace(scratchFilesOf(request.disks))
  const { minFreeBytes } = request.scratchLimits
  if (freeBytes === undefined || freeBytes >= minFreeBytes) return
  throw noRoom(request, `${formatSize(freeBytes)} are free`)
}

function noRoom({ domain, scratchLimits }: SessionRequest, what: string): BackupError {
  return new BackupError('E_NO_SPACE', `there is no room for the scratch files of ${domain.name}`, {
    why: `${what}, and ${formatSize(scratchLimits.minFreeBytes)} must stay free during a backup`,
    hints: ['make room, or put the scratch files elsewhere'],
  })
}

/** Rejects with E_NO_SPACE where a quota leaves too little. */
async function quotaOf({ files }: Hypervisor, request: SessionRequest): Promise<QuotaRoom> {
  const [first] = scratchFilesOf(request.disks)
  if (files.reach !== 'local' || first === undefined) return { kind: 'none' }
  const quota = await quotaRoomOf(dirname(first))
  if (quota.kind === 'known' && quota.bytes < request.scratchLimits.minFreeBytes) {
    throw noRoom(request, `a quota leaves ${formatSize(quota.bytes)}`)
  }
  return quota
}

function scratchFilesOf(disks: readonly RequestedDisk[]): readonly string[] {
  return disks.flatMap(({ scratch }) => (scratch.kind === 'file' ? [scratch.path] : []))
}

function namesOf(request: SessionRequest): Omit<DeadSession, 'frozen'> {
  const { domain, socket, checkpoint } = request
  return { domain, socket, checkpoint, scratchFiles: scratchFilesOf(request.disks) }
}

/** Then only the pause itself is seen, and undone. */
function unwatchedWarning({ files }: Hypervisor, { scratchLimits }: SessionRequest, quota: QuotaRoom): Warning[] {
  if (scratchLimits.maxUsedBytes !== undefined) return []
  if (quota.kind === 'unknown') {
    const message = `${quota.mount} has quotas, and what they leave for QEMU's scratch files is not known: set --scratch-limit`
    return [{ code: 'W_SCRATCH', message }]
  }
  if (files.reach !== 'none') return []
  const message =
    'how much room the scratch files have on the other machine is not known without ssh: set --scratch-limit'
  return [{ code: 'W_SCRATCH', message }]
}

function resumedWarning(domain: DomainRef): Warning {
  return {
    code: 'W_SCRATCH',
    message: `${domain.name} was paused by an I/O error while it was backed up, and was resumed afterwards`,
  }
}

/**
 * What `await using` throws where undoing failed too: it tells the caller to
 * keep the journal, so that the next run undoes the rest.
 */
export function withLeftovers(error: unknown, failures: readonly string[]): Error {
  const left = new BackupError('E_LIBVIRT', failures.join('; '))
  const both = new Error(messageOf(error), { cause: libvirtFailure(error) ?? error })
  return Object.assign(both, { name: 'SuppressedError', code: errorCodeOf(error), error: left, suppressed: error })
}
