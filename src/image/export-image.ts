import { BackupError } from '../base/errors.js'
import { invariant } from '../base/invariant.js'
import type { ImageOutcome, ImagePiece, ImageWriter } from './image-writer.js'

/** An NBD export open for writing; `nbd/` has the real one. Disposing closes its connections. */
export interface WritableExport extends AsyncDisposable {
  readonly size: number
  /** Triples (offset in the export, length, offset in `buffer`); the buffer is borrowed until it settles. */
  write(pieces: Float64Array, buffer: Uint8Array, signal: AbortSignal): Promise<void>
  /** `punch` allows holes. */
  zero(offset: number, length: number, options: { readonly punch: boolean }, signal: AbortSignal): Promise<void>
  /** Everything written so far is durable when it resolves. */
  flush(signal: AbortSignal): Promise<void>
}

/** Writes a disk into an NBD export. What was written before a failure stays there. */
export class ExportImage implements ImageWriter {
  readonly name: string
  readonly size: number
  readonly startsZeroed = false
  readonly #target: WritableExport
  #dataBytes = 0
  #broken = false

  /** Takes over the export. Throws E_REFUSED where it is too small. */
  constructor(name: string, size: number, target: WritableExport) {
    if (target.size < size) {
      throw new BackupError('E_REFUSED', `${name} has ${target.size} bytes where the disk needs ${size}`)
    }
    this.name = name
    this.size = size
    this.#target = target
  }

  async write(pieces: readonly ImagePiece[], bytes: Uint8Array, signal: AbortSignal): Promise<void> {
    const triples = new Float64Array(pieces.length * 3)
    let start = 0
    for (const [i, { offset, length }] of pieces.entries()) {
      invariant(offset <= this.size && length <= this.size - offset, 'a piece lies beyond the disk')
      triples.set([offset, length, start], i * 3)
      start += length
    }
    invariant(start <= bytes.length, 'image pieces hold more than the bytes given')
    await this.#attempt(this.#target.write(triples, bytes, signal))
    this.#dataBytes += start
  }

  async zero(offset: number, length: number, signal: AbortSignal): Promise<void> {
    invariant(offset <= this.size && length <= this.size - offset, 'a piece lies beyond the disk')
    await this.#attempt(this.#target.zero(offset, length, { punch: true }, signal))
  }

  markDamaged(): Promise<void> {
    return Promise.resolve()
  }

  async commit(signal: AbortSignal): Promise<ImageOutcome> {
    invariant(!this.#broken, 'an export is committed after a failed write')
    await this.#target.flush(signal)
    return { dataBytes: this.#dataBytes, fileBytes: this.size }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#target[Symbol.asyncDispose]()
  }

  async #attempt(work: Promise<void>): Promise<void> {
    try {
      await work
    } catch (error) {
      this.#broken = true
      throw error
    }
  }
}
