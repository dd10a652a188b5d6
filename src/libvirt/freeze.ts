import { BackupError, isNativeFailure, messageOf, type Warning } from '../base/errors.js'
import type { Consistency, DomainRef } from '../model/recovery-point.js'
import { isDomainGone, libvirtFailure, type Hypervisor } from './hypervisor.js'
import type { FreezePolicy } from './session-types.js'

export interface FreezeOutcome<T> {
  readonly result: T
  readonly consistency: Consistency
  readonly warnings: readonly Warning[]
}

export interface FreezeOrder extends FreezePolicy {
  readonly domain: DomainRef
  /**
   * Told, and waited for, before freezing and after thawing: RELIABILITY.md F2. Not told of the latter where thawing failed, or
   * where the agent may yet freeze.
   */
  onFreeze(frozen: boolean): Promise<void>
}

/** Tries to thaw before giving up; each may take the agent's whole timeout. */
const THAW_TRIES = 3
const THAW_PAUSE_MS = 500
/** virDomainAgentSetResponseTimeout: the daemon's own. */
const DEFAULT_TIMEOUT = -1
/** VIR_ERR_INTERNAL_ERROR: the agent refuses, as it does when frozen already. */
const INTERNAL_ERROR = 1
/** VIR_ERR_ARGUMENT_UNSUPPORTED: "QEMU guest agent is not configured". */
const NO_AGENT_CHANNEL = 74

/** libvirt has one code for this and for an agent that hangs. */
const NOT_CONNECTED = /agent is not connected/

/**
 * Runs `begin` between freezing and thawing the domain's file systems, and
 * says what the result is worth. The domain is thawed in every outcome (I9).
 *
 * Rejects with what `begin` rejected with; with E_AGENT where a required
 * freeze failed (`begin` is not run), where a required freeze was lifted by
 * somebody else before the thaw, or where the thaw failed: then undo what
 * `begin` did, and somebody must look at the domain.
 */
export async function freezeAround<T>(
  hypervisor: Hypervisor,
  order: FreezeOrder,
  begin: () => Promise<T>,
): Promise<FreezeOutcome<T>> {
  if (order.mode === 'off') return { result: await begin(), consistency: { kind: 'crash' }, warnings: [] }
  const guest = new GuestFileSystems(hypervisor, order)
  await guest.setTimeout(order.timeoutSeconds)
  try {
    return await frozenAround(guest, order, begin)
  } finally {
    await guest.setTimeout(DEFAULT_TIMEOUT)
  }
}

async function frozenAround<T>(
  guest: GuestFileSystems,
  order: FreezeOrder,
  begin: () => Promise<T>,
): Promise<FreezeOutcome<T>> {
  await order.onFreeze(true)
  const started = guest.now()
  const problem = await guest.freeze()
  if (problem !== undefined) {
    // An agent that hangs in its freeze does it when it wakes up: whoever was told goes on trying to thaw.
    if (!problem.mayFreezeYet) await order.onFreeze(false)
    return goOnWithout(order, problem.reason, begin)
  }
  let result: T
  try {
    result = await begin()
  } catch (error) {
    await guest.thaw(error)
    await order.onFreeze(false)
    throw error
  }
  const thawed = await guest.thaw()
  const frozenMs = Math.round(guest.now() - started)
  await order.onFreeze(false)
  if (thawed > 0) return { result, consistency: { kind: 'filesystem', frozenMs }, warnings: [] }
  return goOnWithout(order, 'the file systems were thawed by somebody else before the backup had begun', () =>
    Promise.resolve(result),
  )
}

/** Crash-consistent where that is allowed. */
async function goOnWithout<T>(order: FreezeOrder, reason: string, begin: () => Promise<T>): Promise<FreezeOutcome<T>> {
  if (order.mode === 'required') {
    throw new BackupError('E_AGENT', `the file systems of ${order.domain.name} could not be frozen`, {
      why: reason,
      hints: ['install and start qemu-guest-agent in the guest', 'or allow crash-consistent backups:   --quiesce'],
    })
  }
  const warning: Warning = { code: 'W_NOT_QUIESCED', message: `${order.domain.name} was not frozen: ${reason}` }
  return { result: await begin(), consistency: { kind: 'crash', reason }, warnings: [warning] }
}

/** The file systems of one domain, through its guest agent. */
class GuestFileSystems {
  readonly #hypervisor: Hypervisor
  readonly #domain: DomainRef
  readonly #mountpoints: readonly string[]

  constructor(hypervisor: Hypervisor, order: FreezeOrder) {
    this.#hypervisor = hypervisor
    this.#domain = order.domain
    this.#mountpoints = order.mountpoints
  }

  now(): number {
    return this.#hypervisor.clock.monotonic()
  }

  /** Best effort: where it fails, freezing will fail with a better message. */
  async setTimeout(seconds: number): Promise<void> {
    await this.#hypervisor
      .call(connection => connection.agentSetTimeout(this.#domain.uuid, seconds))
      .catch(() => undefined)
  }

  /** undefined when frozen, else why not; then it was thawed again, in case the freeze happens late. */
  async freeze(): Promise<{ readonly reason: string; readonly mayFreezeYet: boolean } | undefined> {
    try {
      if ((await this.#freezeOnce()) > 0) return undefined
      return { reason: 'the guest agent found no file system to freeze', mayFreezeYet: false }
    } catch (error) {
      if (!isNativeFailure(error)) throw error
      // Without an agent channel nothing has been asked.
      if (error.libvirtCode === NO_AGENT_CHANNEL) {
        return { reason: 'it has no channel for a guest agent', mayFreezeYet: false }
      }
      const reason = messageOf(error)
      return await this.#thawOnce().then(
        () => ({ reason, mayFreezeYet: false }),
        (failure: unknown) => ({
          reason: `${reason}; thawing, to be safe, failed as well: ${messageOf(failure)}`,
          // Nobody was there to be asked to freeze: nobody will.
          mayFreezeYet: !isDomainGone(failure) && !NOT_CONNECTED.test(reason),
        }),
      )
    }
  }

  /**
   * Number of file systems thawed. Rejects with E_AGENT when they stay frozen,
   * with `cause` as its cause.
   */
  async thaw(cause?: unknown): Promise<number> {
    for (let tries = 1; ; tries++) {
      try {
        return await this.#thawOnce()
      } catch (error) {
        // A domain that is off is not frozen.
        if (isDomainGone(error)) return 0
        if (tries >= THAW_TRIES) throw stillFrozen(this.#domain, error, cause)
        await this.#hypervisor.clock.sleep(THAW_PAUSE_MS)
      }
    }
  }

  async #freezeOnce(): Promise<number> {
    const freeze = () => this.#hypervisor.connection.fsFreeze(this.#domain.uuid, this.#mountpoints)
    try {
      return await freeze()
    } catch (error) {
      // Frozen already, by a run that died: thaw, then freeze anew.
      if (libvirtFailure(error)?.libvirtCode !== INTERNAL_ERROR) throw error
      await this.#thawOnce()
      return freeze()
    }
  }

  /** All of them: more may be frozen than were asked for. */
  #thawOnce(): Promise<number> {
    return this.#hypervisor.call(connection => connection.fsThaw(this.#domain.uuid, []))
  }
}

function stillFrozen(domain: DomainRef, error: unknown, cause: unknown): BackupError {
  return new BackupError('E_AGENT', `the file systems of ${domain.name} may still be FROZEN`, {
    why: messageOf(error),
    hints: [`thaw them now:   virsh domfsthaw ${domain.uuid}`],
    cause: cause ?? error,
  })
}
