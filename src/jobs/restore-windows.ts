import { BackupError } from '../base/errors.js'
import type { ImagePiece } from '../image/image-writer.js'
import { chunkLength, type DiskGeometry, type TreeRun } from '../model/disk-tree.js'

const ID_BYTES = 32

/** A stretch of a disk that is read into one buffer and written from it. */
export interface RestoreWindow {
  /** 32 bytes per chunk. */
  readonly ids: Uint8Array
  /** Index on the disk of each chunk. */
  readonly chunks: Float64Array
  /** Pairs (offset, length) in the buffer, one per chunk, back to back. */
  readonly spans: Uint32Array
  /** Bytes of the buffer in use. */
  readonly bytes: number
  /** What to do with the image, ascending. */
  readonly steps: readonly RestoreStep[]
  /** The window ends here on the disk. */
  readonly end: number
}

export type RestoreStep =
  /** `[start, start + length)` of the buffer holds these pieces back to back. */
  | { readonly kind: 'data'; readonly pieces: readonly ImagePiece[]; readonly start: number; readonly length: number }
  /** below: as the images that the point leaves out. */
  | { readonly kind: 'zero'; readonly offset: number; readonly length: number }
  | { readonly kind: 'below'; readonly offset: number; readonly length: number }

export interface WindowLimits {
  /** Size of the buffer; at least one chunk. */
  readonly bytes: number
  /** Steps and pieces of one window: bounds its memory on a badly fragmented disk. */
  readonly items: number
  /** Whether runs of zeros become steps, or are left out because the image starts zeroed. */
  readonly zeros: boolean
  /** Whether runs that are as the images below become steps, or are left to these; without it such a run is refused. */
  readonly below?: 'copy' | 'leave' | undefined
}

/**
 * Cuts the runs of a disk tree into windows.
 *
 *     tree      |data|zero|data|data|hole|data|
 *     buffer    |data|data|data|data|            one window, four chunks
 *     steps     write [d]  zero  write [d d]  zero  write [d]
 *     or        write [d][d d][d]                where the image starts zeroed
 *
 * Memory is one window's, whatever the size of a run. Throws E_UNSUPPORTED
 * for a run that is as images which nobody has given.
 */
export async function* cutWindows(
  runs: AsyncIterable<TreeRun>,
  geometry: DiskGeometry,
  limits: WindowLimits,
): AsyncGenerator<RestoreWindow> {
  let draft = new WindowDraft(geometry, limits)
  for await (const run of runs) {
    if (run.kind !== 'data') {
      if (run.kind === 'below') {
        if (limits.below === undefined)
          throw new BackupError('E_UNSUPPORTED', 'the disk lies on images that are left out')
        if (limits.below === 'copy') draft.addUniform('below', run)
      } else if (limits.zeros) {
        draft.addUniform('zero', run)
      }
      if (draft.isFull) {
        yield draft.finish()
        draft = new WindowDraft(geometry, limits)
      }
      continue
    }
    for (let i = 0; i < run.count; i++) {
      if (draft.isFull) {
        yield draft.finish()
        draft = new WindowDraft(geometry, limits)
      }
      draft.addChunk(run.first + i, run.ids.subarray(i * ID_BYTES, (i + 1) * ID_BYTES))
    }
  }
  if (!draft.isEmpty) yield draft.finish()
}

class WindowDraft {
  readonly #geometry: DiskGeometry
  readonly #limits: WindowLimits
  readonly #ids: Uint8Array
  readonly #chunks: Float64Array
  readonly #spans: Uint32Array
  readonly #steps: RestoreStep[] = []
  #pieces: { offset: number; length: number }[] = []
  #stepStart = 0
  #count = 0
  #bytes = 0
  #items = 0
  #end = 0

  constructor(geometry: DiskGeometry, limits: WindowLimits) {
    const room = Math.max(1, Math.floor(limits.bytes / geometry.chunkSize))
    this.#geometry = geometry
    this.#limits = limits
    this.#ids = new Uint8Array(room * ID_BYTES)
    this.#chunks = new Float64Array(room)
    this.#spans = new Uint32Array(room * 2)
  }

  get isFull(): boolean {
    return this.#count === this.#chunks.length || this.#items >= this.#limits.items
  }

  get isEmpty(): boolean {
    return this.#items === 0
  }

  addChunk(index: number, id: Uint8Array): void {
    const offset = index * this.#geometry.chunkSize
    const length = chunkLength(this.#geometry, index)
    this.#ids.set(id, this.#count * ID_BYTES)
    this.#chunks[this.#count] = index
    this.#spans[this.#count * 2] = this.#bytes
    this.#spans[this.#count * 2 + 1] = length
    this.#count++
    this.#bytes += length
    this.#end = offset + length
    const before = this.#pieces.at(-1)
    if (before !== undefined && before.offset + before.length === offset) {
      before.length += length
    } else {
      this.#pieces.push({ offset, length })
      this.#items++
    }
  }

  addUniform(kind: 'zero' | 'below', { first, count }: { readonly first: number; readonly count: number }): void {
    this.#endData()
    const offset = first * this.#geometry.chunkSize
    const length = Math.min(count * this.#geometry.chunkSize, this.#geometry.size - offset)
    this.#steps.push({ kind, offset, length })
    this.#items++
    this.#end = offset + length
  }

  finish(): RestoreWindow {
    this.#endData()
    return {
      ids: this.#ids.subarray(0, this.#count * ID_BYTES),
      chunks: this.#chunks.subarray(0, this.#count),
      spans: this.#spans.subarray(0, this.#count * 2),
      bytes: this.#bytes,
      steps: this.#steps,
      end: this.#end,
    }
  }

  #endData(): void {
    if (this.#pieces.length === 0) return
    this.#steps.push({
      kind: 'data',
      pieces: this.#pieces,
      start: this.#stepStart,
      length: this.#bytes - this.#stepStart,
    })
    this.#pieces = []
    this.#stepStart = this.#bytes
  }
}
