import { invariant } from '../base/invariant.js'
import type { DiskGeometry } from './disk-tree.js'
import type { Extent } from './extent.js'

/** What a pull does with the chunks `[first, first + count)`. */
export interface PlannedRun {
  /**
   * `read` from the export, record as `zero` or `hole` unread, `inherit` from the parent tree, or record as
   * `below`: as the images that are left out.
   */
  readonly kind: 'read' | 'zero' | 'hole' | 'inherit' | 'below'
  readonly first: number
  readonly count: number
  /** The dirty bitmap says that these chunks are as in the parent; known and of use only in an audit. */
  readonly clean?: true
  /** What is inherited reads as zeros in the export. */
  readonly isZero?: true
  /** It reads as zeros in the export, and the images that are left out hold data there. */
  readonly overData?: true
  /** Of `below`: it was read, and is what the images below hold. */
  readonly compared?: true
}

/**
 * What a plan may build on. none: every chunk is taken from the export,
 * whatever the extents call clean (I7). inherit: clean chunks come from the
 * parent. audit: every chunk is taken from the export, and those that should
 * be as in the parent are marked, so that it can be checked.
 */
export type PlanBasis = { readonly kind: 'none' } | { readonly kind: 'inherit' | 'audit'; readonly parentSize: number }

/**
 * Turns extents, which must cover the disk in ascending order without gaps,
 * into runs of whole chunks that cover it the same way.
 *
 *     chunk    |0.......|1.......|2.......|3.......|
 *     dirty     ...##... ........ ######## ........
 *     zero      ........ ........ ######## ........
 *     result    read     inherit  zero     inherit
 *
 * A chunk with a dirty part is taken whole: the export shows clean parts too.
 * Dirty and zero is an explicit zero; skipping it would resurrect old bytes.
 *
 * The parent's size matters because a chunk cut short by the end of either
 * disk is another chunk than its namesake, so that one is treated as dirty;
 * what lies beyond the parent is a hole in the parent's tree, which is what a
 * grown disk shows until written.
 */
export async function* planChunks(
  extents: AsyncIterable<Extent>,
  geometry: DiskGeometry,
  basis: PlanBasis,
): AsyncGenerator<PlannedRun> {
  const { size, chunkSize } = geometry
  const cut = basis.kind === 'none' ? -1 : cutChunk(size, basis.parentSize, chunkSize)
  const runs = new RunMerger()
  let position = 0
  let open: ChunkState | undefined

  for await (const extent of extents) {
    invariant(extent.offset === position && extent.length > 0, 'I6: extents cover the disk without gaps')
    const end = extent.offset + extent.length
    invariant(end <= size, 'I6: extents end with the disk')

    while (position < end) {
      const index = Math.floor(position / chunkSize)
      const chunkStart = index * chunkSize
      const chunkEnd = Math.min(chunkStart + chunkSize, size)
      const whole = Math.floor(end / chunkSize) - index
      if (open === undefined && position === chunkStart && whole > 0 && !(index <= cut && cut < index + whole)) {
        yield* runs.add(planned(extent, basis), index, whole)
        position = (index + whole) * chunkSize
        continue
      }
      open ??= { dirty: index === cut, zero: true, hole: true }
      open = {
        dirty: open.dirty || extent.dirty,
        zero: open.zero && extent.zero,
        hole: open.hole && extent.zero && extent.hole,
      }
      position = Math.min(end, chunkEnd)
      if (position === chunkEnd) {
        yield* runs.add(planned(open, basis), index, 1)
        open = undefined
      }
    }
  }
  invariant(position === size, 'I6: extents cover the whole disk')
  yield* runs.flush()
}

/**
 * The same extents, with everything in `runs` (chunks, ascending, disjoint)
 * called dirty: so that it is taken from the export, not from the parent.
 */
export async function* markDirty(
  extents: AsyncIterable<Extent>,
  runs: readonly { readonly first: number; readonly count: number }[],
  chunkSize: number,
): AsyncGenerator<Extent> {
  let at = 0
  for await (const extent of extents) {
    const end = extent.offset + extent.length
    let position = extent.offset
    while (position < end) {
      let run = runs[at]
      while (run !== undefined && (run.first + run.count) * chunkSize <= position) run = runs[++at]
      const [start, stop] =
        run === undefined ? [end, end] : [run.first * chunkSize, (run.first + run.count) * chunkSize]
      const isMarked = start <= position
      const next = Math.min(end, isMarked ? stop : start)
      yield { ...extent, offset: position, length: next - position, dirty: extent.dirty || isMarked }
      position = next
    }
  }
}

/** Runs of chunks in any order, overlapping or not, as ascending disjoint ones. */
export function joinRuns(runs: readonly ChunkRun[]): readonly ChunkRun[] {
  const joined: ChunkRun[] = []
  for (const run of runs.toSorted((a, b) => a.first - b.first)) {
    const last = joined.at(-1)
    if (last === undefined || run.first > last.first + last.count) joined.push(run)
    else
      joined[joined.length - 1] = { first: last.first, count: Math.max(last.count, run.first + run.count - last.first) }
  }
  return joined
}

export interface ChunkRun {
  readonly first: number
  readonly count: number
}

interface ChunkState {
  readonly dirty: boolean
  readonly zero: boolean
  readonly hole: boolean
}

type Planned = Omit<PlannedRun, 'first' | 'count'>

function planned(state: ChunkState, basis: PlanBasis): Planned {
  const isClean = !state.dirty && basis.kind !== 'none'
  if (isClean && basis.kind === 'inherit') return state.zero ? { kind: 'inherit', isZero: true } : { kind: 'inherit' }
  const kind = !state.zero ? 'read' : state.hole ? 'hole' : 'zero'
  return isClean ? { kind, clean: true } : { kind }
}

/** Index of the chunk that only one of the two disks has in full, or -1. */
function cutChunk(size: number, parentSize: number, chunkSize: number): number {
  if (parentSize === size) return -1
  const shorter = Math.min(size, parentSize)
  return shorter % chunkSize === 0 ? -1 : Math.floor(shorter / chunkSize)
}

/** Joins neighbouring runs of one kind. */
class RunMerger {
  #last: PlannedRun | undefined;

  *add(planned: Planned, first: number, count: number): Generator<PlannedRun> {
    const last = this.#last
    if (
      last !== undefined &&
      last.kind === planned.kind &&
      last.clean === planned.clean &&
      last.isZero === planned.isZero
    ) {
      this.#last = { ...last, count: last.count + count }
      return
    }
    yield* this.flush()
    this.#last = { ...planned, first, count }
  }

  *flush(): Generator<PlannedRun> {
    if (this.#last !== undefined) yield this.#last
    this.#last = undefined
  }
}

/** A handful of chunks to be read with one buffer, and the runs between them, in disk order. */
export interface PullBatch {
  readonly items: readonly PlannedRun[]
  readonly chunks: number
  readonly bytes: number
}

/** Limits of one batch: bytes to read, and runs, so that fragmented maps stay small too. */
export interface BatchLimits {
  readonly bytes: number
  readonly items: number
}

/**
 * Cuts a plan into batches. `inherit` runs need no work and are left out; read
 * runs are split so that no batch reads more than `limits.bytes`, which must
 * hold a chunk.
 */
export async function* batchPlan(
  plan: AsyncIterable<PlannedRun>,
  geometry: DiskGeometry,
  limits: BatchLimits,
): AsyncGenerator<PullBatch> {
  const perBatch = Math.floor(limits.bytes / geometry.chunkSize)
  invariant(perBatch > 0, 'a batch holds a chunk')
  let items: PlannedRun[] = []
  let chunks = 0
  let bytes = 0

  for await (const run of plan) {
    if (run.kind === 'inherit') continue
    let { first, count } = run
    while (count > 0) {
      const take = run.kind === 'read' ? Math.min(count, perBatch - chunks) : count
      items.push({ ...run, first, count: take })
      if (run.kind === 'read') {
        chunks += take
        bytes += Math.min((first + take) * geometry.chunkSize, geometry.size) - first * geometry.chunkSize
      }
      first += take
      count -= take
      if (chunks === perBatch || items.length === limits.items) {
        yield { items, chunks, bytes }
        items = []
        chunks = 0
        bytes = 0
      }
    }
  }
  if (items.length > 0) yield { items, chunks, bytes }
}
