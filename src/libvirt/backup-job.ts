import { BackupError, messageOf } from '../base/errors.js'
import type { DomainRef } from '../model/recovery-point.js'
import { parseBackupXml, type BackupDescription } from './backup-xml.js'
import type { VirtJobStats } from '../native/virt.js'
import { isMarked } from './run-places.js'
import { isConnectionLoss, isDomainGone, libvirtFailure, type Hypervisor } from './hypervisor.js'

/** A guest that reboots with an agent channel delays the end by 30 s per event: LIBVIRT.md §1.6. */
const JOB_END_TIMEOUT_MS = 120_000
const FIRST_POLL_MS = 10
const LAST_POLL_MS = 500
const STUCK_AFTER_MS = 5_000
/** At the end of a job more patience is due: libvirt may be waiting for the guest's agent. */
const STUCK_AT_END_MS = 15_000

/** virDomainState and its reasons. */
const STATE_PAUSED = 3
const PAUSED_IOERROR = 5
/** VIR_ERR_INTERNAL_ERROR: "backup job data missing". */
const INTERNAL_ERROR = 1
/** virDomainJobOperation. */
const BACKUP_OPERATION = 9
const OPERATIONS: ReadonlyMap<number, string> = new Map([
  [1, 'start'],
  [2, 'save'],
  [3, 'restore'],
  [4, 'incoming migration'],
  [5, 'migration'],
  [6, 'snapshot'],
  [7, 'snapshot revert'],
  [8, 'dump'],
  [BACKUP_OPERATION, 'backup'],
])

/** virDomainBlockJobType. */
const BLOCK_JOBS: ReadonlyMap<number, string> = new Map([
  [1, 'block pull'],
  [2, 'block copy'],
  [3, 'block commit'],
  [4, 'active block commit'],
  [5, 'backup'],
])

/** The backup job that runs, if one does; undefined also where the domain does not. */
export async function runningBackup(hypervisor: Hypervisor, domain: DomainRef): Promise<BackupDescription | undefined> {
  try {
    const xml = await hypervisor.call(connection => connection.backupXml(domain.uuid))
    return xml === undefined ? undefined : parseBackupXml(xml)
  } catch (error) {
    if (isDomainGone(error)) return undefined
    throw error
  }
}

/**
 * Throws E_DOMAIN_BUSY where any job of the domain, or a block job of one of
 * `targets`, runs: libvirt would let begin wait 30 s for the first and then
 * say no less. E_LIBVIRT_STUCK where libvirt lost its own record of a backup.
 */
export async function refuseBusy(hypervisor: Hypervisor, domain: DomainRef, targets: readonly string[]): Promise<void> {
  const stats = await jobStats(hypervisor, domain)
  if (stats.type !== 0) throw busyWith(domain, stats)
  for (const target of targets) {
    const type = await hypervisor.call(connection => connection.blockJobType(domain.uuid, target))
    if (type !== undefined)
      throw busy(domain, `disk ${target} has a block job (${BLOCK_JOBS.get(type) ?? `type ${type}`})`)
  }
}

/**
 * Throws E_DOMAIN_BUSY where a save, a dump, a migration or the like runs:
 * libvirt would let every question about checkpoints wait 30 s for it. A backup
 * holds up nothing but another one.
 */
export async function refuseLocked(hypervisor: Hypervisor, domain: DomainRef): Promise<void> {
  const stats = await jobStats(hypervisor, domain).catch(ignoreGone)
  if (stats !== undefined && stats.type !== 0 && stats.operation !== BACKUP_OPERATION) throw busyWith(domain, stats)
}

/**
 * Ends the backup job that is marked by `socket` (a name that nobody else made up:
 * `run-places.ts`) and waits until it is gone. Another job is not ours and is left
 * alone; `false` says that none of ours was there. Rejects with E_TIMEOUT, and
 * with E_LIBVIRT_STUCK where libvirt goes on saying that it lost its record.
 */
export async function endOwnJob(hypervisor: Hypervisor, domain: DomainRef, socket: string): Promise<boolean> {
  const { clock } = hypervisor
  const deadline = clock.monotonic() + JOB_END_TIMEOUT_MS
  const isOver = () => clock.monotonic() > deadline
  let found = false
  let lostSince: number | undefined
  for (let pause = FIRST_POLL_MS; ; pause = Math.min(2 * pause, LAST_POLL_MS)) {
    // A daemon that restarts, or that waits for QEMU itself, is asked again.
    const state = await ownJobState(hypervisor, domain, socket).catch((error: unknown) => {
      if (isOver() || !isPassing(error)) throw error
      const isLost = libvirtFailure(error)?.libvirtCode === INTERNAL_ERROR
      lostSince = isLost ? (lostSince ?? clock.monotonic()) : undefined
      if (lostSince !== undefined && clock.monotonic() - lostSince > STUCK_AT_END_MS) throw stuck(domain, error)
      return 'unknown' as const
    })
    if (state === 'none') break
    if (state === 'running') {
      found = true
      await hypervisor.call(connection => connection.abortJob(domain.uuid)).catch(ignorePassing)
    }
    if (isOver()) throw jobTimeout(domain)
    await clock.sleep(pause)
  }
  return found
}

/**
 * Resumes the domain where an I/O error has paused it. Only after a job of ours
 * has ended, and only where it was not paused so before: then it was our
 * scratch that was full.
 */
export async function resumeAfterJob(hypervisor: Hypervisor, domain: DomainRef): Promise<boolean> {
  if (!(await isPausedForSpace(hypervisor, domain))) return false
  await hypervisor.call(connection => connection.resumeDomain(domain.uuid)).catch(ignoreGone)
  return true
}

/** Paused by an I/O error: a full disk of the host, or a full scratch. */
export async function isPausedForSpace(hypervisor: Hypervisor, domain: DomainRef): Promise<boolean> {
  try {
    const info = await hypervisor.call(connection => connection.lookupDomain(domain.uuid))
    return info.state === STATE_PAUSED && info.reason === PAUSED_IOERROR
  } catch (error) {
    if (isDomainGone(error)) return false
    throw error
  }
}

/**
 * libvirt forgets a backup a moment before it forgets that a job runs, and
 * cannot describe the job in between; where that lasts, the daemon was killed
 * inside begin.
 */
async function jobStats(hypervisor: Hypervisor, domain: DomainRef): Promise<VirtJobStats> {
  const deadline = hypervisor.clock.monotonic() + STUCK_AFTER_MS
  for (;;) {
    try {
      return await hypervisor.call(connection => connection.jobStats(domain.uuid))
    } catch (error) {
      if (libvirtFailure(error)?.libvirtCode !== INTERNAL_ERROR) throw error
      if (hypervisor.clock.monotonic() > deadline) throw stuck(domain, error)
      await hypervisor.clock.sleep(LAST_POLL_MS)
    }
  }
}

type JobState = 'none' | 'running' | 'unknown'

/** `unknown`: no backup is described any more, but libvirt has not finished with the job. */
async function ownJobState(hypervisor: Hypervisor, domain: DomainRef, socket: string): Promise<JobState> {
  const running = await runningBackup(hypervisor, domain)
  if (running !== undefined) return isMarked(running, socket) ? 'running' : 'none'
  const stats = await hypervisor.call(connection => connection.jobStats(domain.uuid)).catch(ignoreGone)
  return stats === undefined || stats.type === 0 || stats.operation !== BACKUP_OPERATION ? 'none' : 'unknown'
}

/** Worth asking again: the daemon is away, its lock is taken, or it is between two states. */
function isPassing(error: unknown): boolean {
  if (isConnectionLoss(error)) return true
  const failure = libvirtFailure(error)
  return failure?.code === 'E_DOMAIN_BUSY' || failure?.libvirtCode === INTERNAL_ERROR
}

function ignorePassing(error: unknown): undefined {
  if (!isDomainGone(error) && !isPassing(error)) throw error
}

function ignoreGone(error: unknown): undefined {
  if (!isDomainGone(error)) throw error
}

function stuck(domain: DomainRef, error: unknown): BackupError {
  return new BackupError('E_LIBVIRT_STUCK', `libvirt lost its record of a backup job of ${domain.name}`, {
    why: messageOf(error),
    hints: ['stop the domain, restart libvirt, start the domain; nothing less is known to help'],
    cause: error,
  })
}

function jobTimeout(domain: DomainRef): BackupError {
  return new BackupError('E_TIMEOUT', `the backup job of ${domain.name} did not end within two minutes`, {
    why: 'libvirt has been told to end it; a domain that restarts, or an NBD client that does not read, can hold it up',
    hints: [`see if it is still there:   virsh domjobinfo ${domain.uuid}`],
  })
}

function busyWith(domain: DomainRef, stats: VirtJobStats): BackupError {
  const operation = OPERATIONS.get(stats.operation) ?? 'job'
  return busy(domain, `a ${operation} is under way since ${Math.round(stats.elapsedMs / 1000)} s`)
}

function busy(domain: DomainRef, why: string): BackupError {
  return new BackupError('E_DOMAIN_BUSY', `${domain.name} is busy`, {
    why,
    hints: [`see it:   virsh domjobinfo ${domain.uuid}`, 'run the backup when it has ended'],
  })
}
