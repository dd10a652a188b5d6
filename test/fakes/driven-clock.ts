import { setImmediate as turn } from 'node:timers/promises'

import type { Clock } from '../../src/base/clock.js'

interface Sleeper {
  readonly at: number
  readonly order: number
  readonly wake: () => void
}

/**
 * A clock that a test drives: advance() lets sleepers wake in their order, each
 * at its own time, and gives everything that follows from one its turn before
 * the next. Wall-clock time can jump; the monotonic does not.
 */
export class DrivenClock implements Clock {
  #monotonic = 0
  #offset: number
  #order = 0
  #sleepers: Sleeper[] = []

  constructor(start: number) {
    this.#offset = start
  }

  now(): number {
    return this.#monotonic + this.#offset
  }

  monotonic(): number {
    return this.#monotonic
  }

  /** Somebody sets the clock on the wall, or the machine slept. */
  jump(ms: number): void {
    this.#offset += ms
  }

  sleep(ms: number, signal?: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const fail = () => {
        this.#sleepers = this.#sleepers.filter(one => one !== sleeper)
        reject(signal?.reason instanceof Error ? signal.reason : new Error('aborted'))
      }
      const sleeper: Sleeper = {
        at: this.#monotonic + Math.max(0, ms),
        order: this.#order++,
        wake: () => {
          signal?.removeEventListener('abort', fail)
          resolve()
        },
      }
      if (signal?.aborted === true) {
        fail()
        return
      }
      signal?.addEventListener('abort', fail, { once: true })
      this.#sleepers.push(sleeper)
    })
  }

  /** Everything that can happen without time passing happens. */
  async settle(): Promise<void> {
    // What p-queue and promises put off is done by the second turn.
    for (let round = 0; round < 3; round++) await turn()
  }

  async advance(ms: number): Promise<void> {
    const end = this.#monotonic + ms
    await this.settle()
    for (;;) {
      let first: Sleeper | undefined
      for (const one of this.#sleepers) {
        if (first === undefined || one.at < first.at || (one.at === first.at && one.order < first.order)) first = one
      }
      if (first === undefined || first.at > end) break
      this.#monotonic = Math.max(this.#monotonic, first.at)
      const woken = first
      this.#sleepers = this.#sleepers.filter(one => one !== woken)
      woken.wake()
      await this.settle()
    }
    this.#monotonic = end
  }
}
