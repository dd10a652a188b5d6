import type { Clock } from '../base/clock.js'

/** How often displays look whether something is due. */
const TICK_MS = 1000

/** Calls `work` every second until it is disposed. */
export class Ticker implements AsyncDisposable {
  readonly #controller = new AbortController()
  readonly #ended: Promise<void>

  constructor(clock: Clock, work: () => void) {
    this.#ended = tick(clock, work, this.#controller.signal)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#controller.abort()
    await this.#ended
  }
}

async function tick(clock: Clock, work: () => void, signal: AbortSignal): Promise<void> {
  while (!signal.aborted) {
    try {
      await clock.sleep(TICK_MS, signal)
    } catch {
      return
    }
    work()
  }
}
