import type { VirtEvent } from '../native/virt.js'

/** A consumer that far behind looks at the domains themselves anyway. */
const MAX_WAITING = 1024

/** The events of one consumer of Hypervisor.events(); the oldest are lost where it falls behind. */
export class EventQueue implements AsyncIterableIterator<VirtEvent> {
  readonly #waiting: VirtEvent[] = []
  readonly #signal: AbortSignal
  readonly #onEnd: () => void
  readonly #abort = () => this.end()
  #wake: (() => void) | undefined
  #ended = false

  constructor(signal: AbortSignal, onEnd: () => void) {
    this.#signal = signal
    this.#onEnd = onEnd
    signal.addEventListener('abort', this.#abort, { once: true })
    if (signal.aborted) this.#ended = true
  }

  push(event: VirtEvent): void {
    if (this.#ended) return
    if (this.#waiting.length >= MAX_WAITING) this.#waiting.shift()
    this.#waiting.push(event)
    this.#wake?.()
  }

  /** What has arrived can still be read; then the sequence ends. */
  end(): void {
    this.#ended = true
    this.#signal.removeEventListener('abort', this.#abort)
    this.#onEnd()
    this.#wake?.()
  }

  async next(): Promise<IteratorResult<VirtEvent, undefined>> {
    for (;;) {
      const value = this.#waiting.shift()
      if (value !== undefined) return { value, done: false }
      if (this.#ended) return { value: undefined, done: true }
      await new Promise<void>(resolve => (this.#wake = resolve))
      this.#wake = undefined
    }
  }

  return(): Promise<IteratorResult<VirtEvent, undefined>> {
    this.#waiting.length = 0
    this.end()
    return Promise.resolve({ value: undefined, done: true })
  }

  [Symbol.asyncIterator](): this {
    return this
  }
}
