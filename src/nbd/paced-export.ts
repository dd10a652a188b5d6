import type { Pace } from '../base/pace.js'
import type { Extent } from '../model/extent.js'
import { bytesOf, splitPieces } from './pieces.js'

/** What an `ExportReader` offers a pull. */
interface Readable extends AsyncDisposable {
  readonly size: number
  extents(signal: AbortSignal): AsyncIterable<Extent>
  read(pieces: Float64Array, buffer: Uint8Array, signal: AbortSignal): Promise<void>
}

/** Cuts fall on multiples of this: QEMU's clusters, and what our packs deal in. */
const CUT_BYTES = 64 * 1024

/**
 * An export that is read no faster than a pace allows. It waits before it
 * asks: what the server was asked for is drained as ever, since replies that
 * nobody takes hold up the guest.
 */
export class PacedExport implements AsyncDisposable {
  readonly #source: Readable
  readonly #pace: Pace

  constructor(source: Readable, pace: Pace) {
    this.#source = source
    this.#pace = pace
  }

  get size(): number {
    return this.#source.size
  }

  extents(signal: AbortSignal): AsyncIterable<Extent> {
    return this.#source.extents(signal)
  }

  /** As `ExportReader.read()`. */
  async read(pieces: Float64Array, buffer: Uint8Array, signal: AbortSignal): Promise<void> {
    const bytes = bytesOf(pieces)
    if (bytes === 0) return
    const parts = Math.ceil(bytes / this.#pace.burstBytes)
    for (const part of splitPieces(pieces, parts, CUT_BYTES)) {
      await this.#pace.take(bytesOf(part), signal)
      await this.#source.read(part, buffer, signal)
    }
  }

  [Symbol.asyncDispose](): Promise<void> | PromiseLike<void> {
    return this.#source[Symbol.asyncDispose]()
  }
}
