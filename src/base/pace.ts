import { throwIfAborted } from './async.js'
import type { Clock } from './clock.js'
import { invariant } from './invariant.js'

/** Time that an idle line saves up. */
const BURST_MS = 125
const BURST_UNIT_BYTES = 64 * 1024
const MAX_BURST_BYTES = 8 * 1024 * 1024

/**
 * Lets bytes pass at a given rate: a token bucket, shared by all who move
 * bytes over the same line. It is asked before a request is made, never while
 * an answer is waiting: what was asked for is always taken at full speed.
 */
export class Pace {
  readonly bytesPerSecond: number
  /** What may pass at once after a pause, and the most that should be asked for in one go. */
  readonly burstBytes: number
  readonly #clock: Clock
  /** When everything that was let pass so far has passed at this rate. */
  #passedBy = -Infinity

  constructor(bytesPerSecond: number, clock: Clock) {
    invariant(bytesPerSecond > 0, 'a pace moves')
    this.bytesPerSecond = bytesPerSecond
    const saved = (bytesPerSecond * BURST_MS) / 1000
    const whole = Math.floor(saved / BURST_UNIT_BYTES) * BURST_UNIT_BYTES
    this.burstBytes = Math.min(MAX_BURST_BYTES, Math.max(BURST_UNIT_BYTES, whole))
    this.#clock = clock
  }

  /**
   * Waits until `bytes` more may pass; who asks first goes first. More than a
   * burst passes in one piece, and later ones wait the longer. Rejects with
   * what aborted `signal`; the bytes count as passed all the same.
   */
  async take(bytes: number, signal: AbortSignal): Promise<void> {
    throwIfAborted(signal)
    const now = this.#clock.monotonic()
    this.#passedBy = Math.max(this.#passedBy, now) + this.#msFor(bytes)
    const wait = this.#passedBy - this.#msFor(this.burstBytes) - now
    if (wait > 0) await this.#clock.sleep(wait, signal).catch(() => throwIfAborted(signal))
  }

  #msFor(bytes: number): number {
    return (bytes / this.bytesPerSecond) * 1000
  }
}
