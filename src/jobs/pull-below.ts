import { BufferPool } from '../base/buffer-pool.js'
import { invariant } from '../base/invariant.js'
import { planOverBelow } from '../model/below-plan.js'
import type { PlannedRun } from '../model/chunk-plan.js'
import { chunkLength, type DiskGeometry } from '../model/disk-tree.js'
import type { DiskExport } from './pull-disk.js'

/** Of one disk: half of what reads the disk itself, since two reads follow one another. */
const BUFFERS = 4

/** The images that a pull leaves out of a disk, open for reading as long as the disk is. */
export class PulledBelow {
  readonly #source: DiskExport
  /** Taken by those alone who hold a buffer of the disk already, so that nobody waits in a circle. */
  readonly #pool: BufferPool

  constructor(source: DiskExport, bufferBytes: number) {
    this.#source = source
    this.#pool = new BufferPool(BUFFERS, bufferBytes)
  }

  plan(plan: AsyncIterable<PlannedRun>, geometry: DiskGeometry, signal: AbortSignal): AsyncGenerator<PlannedRun> {
    return planOverBelow(plan, { size: this.#source.size, extents: this.#source.extents(signal) }, geometry)
  }

  /** Calls `use` with the same pieces of these images, in a buffer laid out alike. */
  async with<T>(pieces: Float64Array, use: (under: Uint8Array) => T | Promise<T>, signal: AbortSignal): Promise<T> {
    const under = await this.#pool.take(signal)
    try {
      await this.#read(pieces, under, signal)
      return await use(under)
    } finally {
      this.#pool.give(under)
    }
  }

  /** What lies behind the end of the images is zeros. */
  async #read(pieces: Float64Array, buffer: Uint8Array, signal: AbortSignal): Promise<void> {
    const { size } = this.#source
    const inside: number[] = []
    for (let at = 0; at < pieces.length; at += 3) {
      const [offset = 0, length = 0, place = 0] = pieces.subarray(at, at + 3)
      const there = Math.max(0, Math.min(length, size - offset))
      if (there > 0) inside.push(offset, there, place)
      buffer.fill(0, place + there, place + length)
    }
    if (inside.length > 0) await this.#source.read(Float64Array.from(inside), buffer, signal)
  }
}

/**
 * The runs of a batch with the chunks that are what the images below hold as
 * `below`; content decides, byte by byte. Adds to `places`, which has where in
 * the buffer each run lies, those of the runs that are left.
 */
export function splitByBelow(
  batch: { readonly items: readonly PlannedRun[]; readonly places: Map<number, number> },
  { buffer, under }: { readonly buffer: Uint8Array; readonly under: Uint8Array },
  geometry: DiskGeometry,
): readonly PlannedRun[] {
  const { items, places } = batch
  const split: PlannedRun[] = []
  for (const item of items) {
    if (item.kind !== 'read') {
      split.push(item)
      continue
    }
    let place = places.get(item.first)
    invariant(place !== undefined, 'what is compared was read')
    let last: PlannedRun | undefined
    for (let index = item.first; index < item.first + item.count; index++) {
      const length = chunkLength(geometry, index)
      const isSame = Buffer.compare(buffer.subarray(place, place + length), under.subarray(place, place + length)) === 0
      const kind = isSame ? 'below' : 'read'
      if (last?.kind === kind) {
        last = { ...last, count: last.count + 1 }
      } else {
        if (last !== undefined) split.push(last)
        if (!isSame) places.set(index, place)
        last = { ...item, kind, first: index, count: 1, ...(isSame ? { compared: true } : {}) }
      }
      place += length
    }
    if (last !== undefined) split.push(last)
  }
  return split
}
