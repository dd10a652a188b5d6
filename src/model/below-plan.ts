import type { PlannedRun } from './chunk-plan.js'
import type { DiskGeometry } from './disk-tree.js'
import type { Extent } from './extent.js'

/** The images that a pull leaves out, as one disk. */
export interface BelowMap {
  /** Bytes; past them it reads as zeros. */
  readonly size: number
  /** Ascending, without gaps. */
  readonly extents: AsyncIterable<Extent>
}

/**
 * A plan for a disk whose lower images are left out: what the disk shows as
 * zeros is as below where that is zero too, and is read (and compared, like
 * all that is read) where it is not.
 *
 *     disk     |read|zero|zero|hole|inherit|
 *     below    |data|zero|data|zero|data   |
 *     result   |read|below|read|below|inherit|
 *
 * What is inherited and shows zeros stays so, and says where the images below
 * have data: a disk that was shrunk and grown again hides that, without a
 * word of its dirty bitmap.
 *
 * So the tree depends on the content of both alone, not on what happens to be
 * allocated where.
 */
export async function* planOverBelow(
  plan: AsyncIterable<PlannedRun>,
  below: BelowMap,
  { chunkSize }: DiskGeometry,
): AsyncGenerator<PlannedRun> {
  const cursor = new DataCursor(below)
  try {
    for await (const run of plan) {
      const isInherited = run.kind === 'inherit' && run.isZero === true
      if (run.kind !== 'zero' && run.kind !== 'hole' && !isInherited) {
        yield run
        continue
      }
      const end = run.first + run.count
      let next = run.first
      while (next < end) {
        const data = await cursor.dataFrom(next * chunkSize)
        const first = data === undefined ? end : Math.min(end, Math.max(next, Math.floor(data.start / chunkSize)))
        if (first > next) yield { ...run, kind: isInherited ? 'inherit' : 'below', first: next, count: first - next }
        if (data === undefined || first === end) break
        next = Math.min(end, Math.ceil(data.end / chunkSize))
        const kind = isInherited ? 'inherit' : 'read'
        yield { ...run, kind, isZero: true, overData: true, first, count: next - first }
      }
    }
  } finally {
    await cursor.close()
  }
}

/** Finds data in ascending order. Owns the extents until close(). */
export class DataCursor {
  readonly #extents: AsyncIterator<Extent>
  #data: { readonly start: number; readonly end: number } | undefined
  #isOver = false

  constructor({ extents }: BelowMap) {
    this.#extents = extents[Symbol.asyncIterator]()
  }

  /** The first data that ends behind `position`; undefined where there is none. Positions ascend. */
  async dataFrom(position: number): Promise<{ readonly start: number; readonly end: number } | undefined> {
    while (!this.#isOver && (this.#data === undefined || this.#data.end <= position)) {
      const result = await this.#extents.next()
      if (result.done === true) {
        this.#isOver = true
        this.#data = undefined
        break
      }
      const { offset, length, zero } = result.value
      if (!zero) this.#data = { start: offset, end: offset + length }
    }
    return this.#data
  }

  /** Ends the extents. */
  async close(): Promise<void> {
    await this.#extents.return?.()
  }
}
