import type { Writable } from 'node:stream'

import { throwIfAborted } from '../base/async.js'
import { BackupError } from '../base/errors.js'
import { invariant } from '../base/invariant.js'
import { isErrno, named } from './image-file.js'
import type { ImageOutcome, ImagePiece, ImageWriter } from './image-writer.js'

const ZEROS = new Uint8Array(1 << 20)

/**
 * Writes a disk as plain bytes to a stream, every zero included. The stream
 * belongs to the caller and is not ended. What the other side got before a
 * failure cannot be called back: it must look at our exit code.
 */
export class StreamImage implements ImageWriter {
  readonly name = 'standard output'
  readonly size: number
  readonly startsZeroed = false
  readonly #stream: Writable
  #position = 0
  #dataBytes = 0

  constructor(stream: Writable, size: number) {
    this.#stream = stream
    this.size = size
  }

  async write(pieces: readonly ImagePiece[], bytes: Uint8Array, signal: AbortSignal): Promise<void> {
    let start = 0
    for (const { offset, length } of pieces) {
      await this.#fillTo(offset, signal)
      invariant(length <= bytes.length - start, 'image pieces hold more than the bytes given')
      await this.#put(bytes.subarray(start, start + length), signal)
      start += length
    }
    this.#dataBytes += start
  }

  async zero(offset: number, length: number, signal: AbortSignal): Promise<void> {
    await this.#fillTo(offset + length, signal)
  }

  markDamaged(): Promise<void> {
    return Promise.resolve()
  }

  async commit(signal: AbortSignal): Promise<ImageOutcome> {
    await this.#fillTo(this.size, signal)
    return { dataBytes: this.#dataBytes, fileBytes: this.size }
  }

  [Symbol.asyncDispose](): Promise<void> {
    return Promise.resolve()
  }

  async #fillTo(end: number, signal: AbortSignal): Promise<void> {
    invariant(end >= this.#position, 'a stream cannot go back')
    while (this.#position < end)
      await this.#put(ZEROS.subarray(0, Math.min(ZEROS.length, end - this.#position)), signal)
  }

  /** Resolves when the stream no longer needs the bytes; so at most one write is queued. */
  async #put(bytes: Uint8Array, signal: AbortSignal): Promise<void> {
    throwIfAborted(signal)
    invariant(bytes.length <= this.size - this.#position, 'a piece lies beyond the disk')
    this.#position += bytes.length
    await new Promise<void>((resolve, reject) => {
      this.#stream.write(bytes, error => {
        if (error === null || error === undefined) resolve()
        else reject(isErrno(error, 'EPIPE') ? this.#readerGone(error) : named(this.name, error))
      })
    })
  }

  #readerGone(cause: Error): BackupError {
    return new BackupError('E_IO', `what reads ${this.name} went away before the disk ended`, {
      why: `It was given ${this.#position} of ${this.size} bytes at most.`,
      hints: ['Look at the command behind the pipe: it failed, or wanted only a part.'],
      cause,
    })
  }
}
