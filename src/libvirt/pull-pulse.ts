import type { Clock } from '../base/clock.js'
import type { VirtEvent } from '../native/virt.js'
import type { GuardianOrders } from './guardian.js'
import { freeSpaceFor } from './local-files.js'

/** A pull that said nothing for so long is no help to a domain in danger. */
const SUSPECT_MS = 10_000
const LOOK_MS = 1_000
/** A machine that stood still itself sees its clock jump: silence counts when it goes on for so many looks. */
const LOOKS = 3

/** virDomainEventType and detail, virDomainEventIOErrorAction: paused, or told of an error. */
const SUSPENDED = 3
const SUSPENDED_IOERROR = 2
const ACTION_NONE = 0

export interface PulseLimits {
  /** As long as its domain is in no danger a pull may hang for so long. */
  readonly stallMs: number
  /** The scratch files of the pull are on this machine. */
  readonly isLocal: boolean
}

/**
 * Tells a guardian when its pull is alive no more though its process is: stopped, hung, starved. Then nobody
 * watches its scratch, which grows until QEMU pauses the domain, and replies that it does not read
 * would hold up the end of its job.
 */
export class PullPulse {
  readonly #clock: Clock
  readonly #limits: PulseLimits
  #lastBeat: number
  #orders: GuardianOrders | undefined
  #isHurt = false

  constructor(clock: Clock, limits: PulseLimits) {
    this.#clock = clock
    this.#limits = limits
    this.#lastBeat = clock.monotonic()
  }

  /** The pull spoke; with orders, or only to be heard. */
  beat(orders?: GuardianOrders): void {
    this.#lastBeat = this.#clock.monotonic()
    this.#orders = orders ?? this.#orders
  }

  /** What libvirt tells of a domain: whether the one that is read has come to harm. */
  see(event: VirtEvent): void {
    if (!('uuid' in event) || event.uuid !== this.#orders?.domainUuid) return
    const isPaused = event.kind === 'lifecycle' && event.event === SUSPENDED && event.detail === SUSPENDED_IOERROR
    const isError = event.kind === 'io-error' && event.action !== ACTION_NONE
    if (isPaused || isError || event.kind === 'block-threshold') this.#isHurt = true
  }

  /** Resolves with the reason when the pull must be ended; undefined once `signal` aborts. */
  async stopped(signal: AbortSignal): Promise<string | undefined> {
    let looks = 0
    let reason: string | undefined
    while (!signal.aborted) {
      reason = await this.#reason()
      looks = reason === undefined ? 0 : looks + 1
      if (looks >= LOOKS) return reason
      await this.#clock.sleep(LOOK_MS, signal).catch(() => undefined)
    }
    return undefined
  }

  async #reason(): Promise<string | undefined> {
    if (this.#orders === undefined || this.#orders.disarmed) return undefined
    const { stallMs, isLocal } = this.#limits
    const silentMs = this.#clock.monotonic() - this.#lastBeat
    const silence = `it said nothing for ${Math.round(silentMs / 1000)} s`
    if (silentMs > stallMs) return silence
    if (silentMs < Math.min(SUSPECT_MS, stallMs)) return undefined
    if (this.#isHurt) return `${silence}, and its scratch is full or the domain met an I/O error`
    const { scratch } = this.#orders
    const freeBytes = isLocal && scratch !== undefined ? await freeSpaceFor(scratch.files) : undefined
    const isLow = freeBytes !== undefined && freeBytes < (scratch?.minFreeBytes ?? 0)
    return isLow ? `${silence}, and its scratch is nearly full` : undefined
  }
}
