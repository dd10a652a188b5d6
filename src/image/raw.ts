import { throwIfAborted } from '../base/async.js'
import { invariant } from '../base/invariant.js'
import { ImageFile } from './image-file.js'
import type { ImageFileOptions, ImageOutcome, ImagePiece, ImageWriter, ResumePort } from './image-writer.js'

/**
 * A new raw image file: the disk's bytes at their own offsets, holes where
 * nothing is written. With preallocation every byte is reserved beforehand,
 * with 'full' written too.
 */
export class RawWriter implements ImageWriter {
  readonly size: number
  readonly startsZeroed: boolean
  readonly resume: ResumePort | undefined
  readonly #file: ImageFile
  #dataBytes = 0
  #broken = false

  private constructor(file: ImageFile, options: ImageFileOptions) {
    this.size = options.size
    // Nobody vouches for the holes of a file that was left.
    this.startsZeroed = options.preallocation !== 'full' && !file.isAdopted
    this.#file = file
    this.resume =
      options.partial === undefined
        ? undefined
        : {
            isAdopted: file.isAdopted,
            recall: (pieces, bytes, settle, signal) => this.#recall({ pieces, bytes, settle }, signal),
            keep: () => file.keep(),
          }
  }

  /** Creates the temporary file. Rejects with E_EXISTS, E_REFUSED, E_NO_SPACE, E_IO. */
  static async create(options: ImageFileOptions, signal: AbortSignal): Promise<RawWriter> {
    const file = await ImageFile.create(options)
    try {
      if (options.preallocation === 'falloc' || options.preallocation === 'full') {
        await file.reserve(options.size, signal)
      }
      await file.truncate(options.size)
    } catch (error) {
      await file[Symbol.asyncDispose]()
      throw error
    }
    return new RawWriter(file, options)
  }

  get name(): string {
    return this.#file.path
  }

  async #recall(
    what: {
      readonly pieces: readonly ImagePiece[]
      readonly bytes: Uint8Array
      readonly settle: () => Promise<boolean>
    },
    signal: AbortSignal,
  ): Promise<boolean> {
    const { pieces, bytes, settle } = what
    let start = 0
    for (const { offset, length } of pieces) {
      throwIfAborted(signal)
      await this.#file.read(bytes.subarray(start, start + length), offset)
      start += length
    }
    const isRight = await settle()
    if (isRight) this.#dataBytes += start
    else await this.write(pieces, bytes, signal)
    return isRight
  }

  async write(pieces: readonly ImagePiece[], bytes: Uint8Array, signal: AbortSignal): Promise<void> {
    let start = 0
    try {
      for (const { offset, length } of pieces) {
        throwIfAborted(signal)
        invariant(offset <= this.size && length <= this.size - offset, 'a piece lies beyond the disk')
        invariant(length <= bytes.length - start, 'image pieces hold more than the bytes given')
        await this.#file.write(bytes.subarray(start, start + length), offset)
        start += length
      }
      this.#dataBytes += start
    } catch (error) {
      this.#broken = true
      throw error
    }
  }

  async zero(offset: number, length: number, signal: AbortSignal): Promise<void> {
    throwIfAborted(signal)
    invariant(offset <= this.size && length <= this.size - offset, 'a piece lies beyond the disk')
    if (this.#file.isAdopted) await this.#file.punch(offset, length)
    else if (!this.startsZeroed) await this.#file.fillZeros(offset, length, signal)
  }

  markDamaged(): Promise<void> {
    return this.#file.markDamaged()
  }

  async commit(signal: AbortSignal): Promise<ImageOutcome> {
    invariant(!this.#broken, 'a raw image is committed after a failed write')
    throwIfAborted(signal)
    return { dataBytes: this.#dataBytes, fileBytes: await this.#file.commit() }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#file[Symbol.asyncDispose]()
  }
}
