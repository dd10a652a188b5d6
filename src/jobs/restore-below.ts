import type { ImageWriter } from '../image/image-writer.js'
import { DataCursor } from '../model/below-plan.js'
import type { DiskExport } from './pull-disk.js'

/** One read of the images, and one write of the image. */
const PIECE_BYTES = 4 * 1024 * 1024

/** What a restore does about chunks that are as the images that the point leaves out. */
export type RestoredBelow =
  /** Nothing: the image lies on them. */
  | { readonly kind: 'leave' }
  /** Copies them from these images, which it does not close. */
  | { readonly kind: 'copy'; readonly images: DiskExport }

/** Copies parts of the images below, ascending. Bytes are borrowed from one buffer of its own. */
export class BelowCopier {
  readonly #images: DiskExport
  readonly #data: DataCursor
  readonly #buffer = Buffer.allocUnsafeSlow(PIECE_BYTES)

  constructor(images: DiskExport, signal: AbortSignal) {
    this.#images = images
    this.#data = new DataCursor({ size: images.size, extents: images.extents(signal) })
  }

  /** Resolves to the bytes of data that were written; zeros are told the image where it needs that. */
  async copy(
    image: ImageWriter,
    { offset, length }: { readonly offset: number; readonly length: number },
    signal: AbortSignal,
  ): Promise<number> {
    const end = offset + length
    let written = 0
    for (let at = offset; at < end; ) {
      const data = await this.#data.dataFrom(at)
      const start = Math.max(at, Math.min(end, data?.start ?? end))
      if (start > at && !image.startsZeroed) await image.zero(at, start - at, signal)
      if (data === undefined || start === end) break
      const stop = Math.min(end, data.end, start + PIECE_BYTES)
      const bytes = this.#buffer.subarray(0, stop - start)
      await this.#images.read(Float64Array.of(start, stop - start, 0), bytes, signal)
      await image.write([{ offset: start, length: stop - start }], bytes, signal)
      written += stop - start
      at = stop
    }
    return written
  }

  async close(): Promise<void> {
    await this.#data.close()
  }
}
