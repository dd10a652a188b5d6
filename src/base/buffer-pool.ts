import { setMaxListeners } from 'node:events'

import { invariant } from './invariant.js'
import { throwIfAborted } from './async.js'

/**
 * A fixed number of equal buffers outside the JavaScript heap: what is not
 * free yet is back-pressure. Buffers are made when first needed.
 */
export class BufferPool {
  readonly bufferBytes: number
  readonly #limit: number
  readonly #free: Uint8Array[] = []
  readonly #waiting: ((buffer: Uint8Array) => void)[] = []
  #made = 0

  constructor(limit: number, bufferBytes: number) {
    invariant(limit > 0 && bufferBytes > 0, 'a pool holds a buffer')
    this.#limit = limit
    this.bufferBytes = bufferBytes
  }

  /** The next free buffer, waited for in order. Rejects with E_INTERRUPTED once `signal` is aborted. */
  async take(signal: AbortSignal): Promise<Uint8Array> {
    throwIfAborted(signal)
    const free = this.#free.pop()
    if (free !== undefined) return free
    if (this.#made < this.#limit) {
      this.#made++
      return Buffer.allocUnsafeSlow(this.bufferBytes)
    }
    return await new Promise((resolve, reject) => {
      const onBuffer = (buffer: Uint8Array) => {
        signal.removeEventListener('abort', onAbort)
        resolve(buffer)
      }
      const onAbort = () => {
        this.#waiting.splice(this.#waiting.indexOf(onBuffer), 1)
        try {
          throwIfAborted(signal)
        } catch (error) {
          reject(error instanceof Error ? error : new Error(String(error)))
        }
      }
      // Any number may wait on one signal; Node warns of a leak at eleven.
      setMaxListeners(0, signal)
      signal.addEventListener('abort', onAbort, { once: true })
      this.#waiting.push(onBuffer)
    })
  }

  /** Gives back what take() gave; nothing may use it any more. */
  give(buffer: Uint8Array): void {
    invariant(buffer.byteLength === this.bufferBytes, 'a buffer goes back to its own pool')
    const next = this.#waiting.shift()
    if (next === undefined) this.#free.push(buffer)
    else next(buffer)
  }
}
