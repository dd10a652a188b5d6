import type { Extent } from '../model/extent.js'

/** Flags of base:allocation. HOLE only informs: content is decided by ZERO. */
const STATE_HOLE = 1
const STATE_ZERO = 2
const KNOWN_STATES = STATE_HOLE | STATE_ZERO

/**
 * What one block status answer says, per context: pairs (length, flags) that
 * start at the same offset. Absent where the export has no such context.
 */
export interface ContextLists {
  readonly allocation: Float64Array | undefined
  readonly dirty: Float64Array | undefined
}

/**
 * Lays the lists of one answer over each other, from `offset` as far as the
 * shortest of them reaches.
 *
 *     allocation  |data......|zero..............|
 *     dirty       |clean..........|dirty.....|
 *     result      |data,clean|zero,clean|zero,dirty|
 *
 * Without a dirty list everything is dirty; without an allocation list
 * everything is data. Flag bits that nobody has told us about count as dirty
 * and as data: reading too much costs time, reading too little costs data.
 */
export function* mergeContexts(offset: number, lists: ContextLists): Generator<Extent> {
  const allocation = new Cursor(lists.allocation)
  const dirty = new Cursor(lists.dirty)
  for (let at = offset; ; ) {
    const length = Math.min(allocation.left, dirty.left)
    if (length === 0 || length === Infinity) return
    const flags = allocation.flags & ~KNOWN_STATES ? 0 : allocation.flags
    yield {
      offset: at,
      length,
      dirty: lists.dirty === undefined || dirty.flags !== 0,
      zero: (flags & STATE_ZERO) !== 0,
      hole: (flags & STATE_HOLE) !== 0,
    }
    at += length
    allocation.advance(length)
    dirty.advance(length)
  }
}

/** How far the shortest list reaches, in bytes. */
export function coveredBy(lists: readonly Float64Array[]): number {
  return Math.min(...lists.map(totalLength))
}

/** Joins neighbours with equal flags. */
export async function* joinExtents(extents: AsyncIterable<Extent>): AsyncGenerator<Extent> {
  let last: Extent | undefined
  for await (const extent of extents) {
    if (last !== undefined && isContinued(last, extent)) {
      last = { ...last, length: last.length + extent.length }
      continue
    }
    if (last !== undefined) yield last
    last = extent
  }
  if (last !== undefined) yield last
}

function isContinued(first: Extent, next: Extent): boolean {
  return (
    first.offset + first.length === next.offset &&
    first.dirty === next.dirty &&
    first.zero === next.zero &&
    first.hole === next.hole
  )
}

function totalLength(list: Float64Array): number {
  let total = 0
  for (let i = 0; i < list.length; i += 2) total += list[i] ?? 0
  return total
}

/** Walks one list; without a list it says 0 for ever. */
class Cursor {
  readonly #list: Float64Array | undefined
  #index = 0
  /** Of the extent under the cursor, what is still ahead; 0 after the last. */
  left: number

  constructor(list: Float64Array | undefined) {
    this.#list = list
    this.left = list === undefined ? Infinity : (list[0] ?? 0)
  }

  get flags(): number {
    return this.#list?.[this.#index + 1] ?? 0
  }

  advance(length: number): void {
    this.left -= length
    if (this.left > 0 || this.#list === undefined) return
    this.#index += 2
    this.left = this.#list[this.#index] ?? 0
  }
}
