import type { Clock } from '../base/clock.js'
import { messageOf } from '../base/errors.js'
import { isDomainGone } from './hypervisor.js'
import type { NativeVirtConnection } from '../native/virt.js'

/** QEMU's and libvirt's own worst case for ending a job: LIBVIRT event worker waits 30 s per agent event. */
const JOB_END_TIMEOUT_MS = 120_000
const POLL_MS = 100
/** With the agent's own time limits half a minute; then the job is ended, which needs no agent. */
const THAW_TRIES = 3
const THAW_PAUSE_MS = 2_000
const STATE_PAUSED = 3
const PAUSED_IOERROR = 5

/** What a pull tells its guardian; the last word counts. */
export interface GuardianOrders {
  readonly domainUuid: string
  /** Thaw when the pull is gone. */
  readonly frozen: boolean
  /** Socket of the pull's backup job, or what its scratch files' names start with: only a job that has it is ours to abort. */
  readonly socket: string
  /** Watched by the guardian where the pull hangs; as `ScratchLimits`. */
  readonly scratch?: { readonly files: readonly string[]; readonly minFreeBytes: number } | undefined
  /** The pull has ended in order: do nothing. */
  readonly disarmed: boolean
}

export type GuardedConnection = Pick<
  NativeVirtConnection,
  'fsThaw' | 'backupXml' | 'abortJob' | 'jobStats' | 'lookupDomain' | 'resumeDomain'
>

/**
 * Undoes on the hypervisor what a pull that died left behind (I9): thaws,
 * ends its backup job, and resumes the domain if that job's full scratch had
 * paused it. Leaves checkpoints alone: whether the new one may go is for the
 * next run to say, which knows if the pull had committed.
 *
 * Every step is tried whatever became of those before. Returns what was done,
 * one line each, for the log; never rejects.
 */
export async function cleanUpAfter(
  orders: GuardianOrders,
  connection: GuardedConnection,
  clock: Clock,
): Promise<readonly string[]> {
  if (orders.disarmed) return []
  const done: string[] = []
  const attempt = async (what: string, step: () => Promise<boolean>) => {
    try {
      if (await step()) done.push(what)
    } catch (error) {
      done.push(`${what} failed: ${messageOf(error)}`)
    }
  }
  if (orders.frozen) await attempt('thawed', () => thawPatiently(orders, connection, clock))
  await attempt('ended the backup job', () => endOwnJob(orders, connection, clock))
  return done
}

/** An agent may need a moment, as one that was killed and is started again. Rejects with its last failure. */
async function thawPatiently(orders: GuardianOrders, connection: GuardedConnection, clock: Clock): Promise<boolean> {
  for (let tries = 1; ; tries++) {
    try {
      await connection.fsThaw(orders.domainUuid, [])
      return true
    } catch (error) {
      if (isDomainGone(error) || tries === THAW_TRIES) throw error
      await clock.sleep(THAW_PAUSE_MS)
    }
  }
}

async function endOwnJob(orders: GuardianOrders, connection: GuardedConnection, clock: Clock): Promise<boolean> {
  const xml = await connection.backupXml(orders.domainUuid)
  // The name is random and ours alone, so a look inside the XML's text is enough.
  if (xml === undefined || !xml.includes(orders.socket)) return false
  await connection.abortJob(orders.domainUuid)
  const deadline = clock.monotonic() + JOB_END_TIMEOUT_MS
  while ((await connection.jobStats(orders.domainUuid)).type !== 0 && clock.monotonic() < deadline) {
    await clock.sleep(POLL_MS)
  }
  // Looked at now: its scratch may have filled until the very end.
  const after = await connection.lookupDomain(orders.domainUuid)
  if (after.state === STATE_PAUSED && after.reason === PAUSED_IOERROR) await connection.resumeDomain(orders.domainUuid)
  return true
}
