import type { Pace } from '../base/pace.js'
import type { ImageWriter } from '../image/image-writer.js'
import { type PlanBasis, planChunks } from '../model/chunk-plan.js'
import { chunkCount, type TreeRun } from '../model/disk-tree.js'
import type { Extent } from '../model/extent.js'
import type { StorePort, TreeDifference, TreeSide } from '../store/store-types.js'
import { restoreDisk } from './restore-disk.js'

/** Chunks between two ranges that are walked over rather than beginning another walk from the root. */
const MAX_WALKED_GAP = 1024

export type RollbackSource = Pick<StorePort, 'walkTree' | 'diffTrees' | 'chunks'>

/** What is known of the disk as it is now. */
export interface PresentDisk {
  /** The point since which changes are known; undefined where they are not: then everything is written. */
  readonly base: TreeSide | undefined
  /** The whole disk, with what was written since `base` dirty; ascending, without gaps. May be asked more than once. */
  extents(signal: AbortSignal): AsyncIterable<Extent>
}

export interface DiskRollback {
  readonly store: RollbackSource
  /** What the disk shall hold. */
  readonly wanted: TreeSide
  readonly present: PresentDisk
  readonly pace?: Pace | undefined
  /** Over the existing disk; it does not start zeroed. */
  readonly image: ImageWriter
  onProgress(passed: number, written: number): void
}

/** Bytes that a rollback writes. */
export interface RollbackSize {
  readonly dataBytes: number
  readonly zeroBytes: number
}

/**
 * The chunks that a rollback writes, in disk order: where the wanted point
 * differs from the base, and what was written since the base.
 *
 *     base        |A|B|C|D|E|F|
 *     wanted      |A|x|C|D|y|F|     differ: 1, 4
 *     since base  | | |*|*| | |     dirty: 2, 3
 *     written     | |x|C|D|y| |
 */
export async function* changedChunks(
  rollback: Omit<DiskRollback, 'image' | 'onProgress'>,
  signal: AbortSignal,
): AsyncGenerator<TreeDifference> {
  const { store, wanted, present } = rollback
  if (present.base === undefined) {
    yield { first: 0, count: chunkCount(wanted.geometry) }
    return
  }
  yield* mergeRanges(store.diffTrees(wanted, present.base), dirtyChunks(rollback, signal))
}

/** Says what a rollback would write; reads no data and writes nothing. */
export async function measureRollback(
  rollback: Omit<DiskRollback, 'image' | 'onProgress'>,
  signal: AbortSignal,
): Promise<RollbackSize> {
  const { geometry } = rollback.wanted
  let dataBytes = 0
  let zeroBytes = 0
  for await (const run of selectRuns(rollback, signal)) {
    const start = run.first * geometry.chunkSize
    const length = Math.min(run.count * geometry.chunkSize, geometry.size - start)
    if (run.kind === 'data') dataBytes += length
    else zeroBytes += length
  }
  return { dataBytes, zeroBytes }
}

/**
 * Reads and checks everything that a rollback writes, and writes nothing: a
 * damaged store (E_DAMAGED) must leave the disk as it is.
 */
export async function rehearseRollback(
  rollback: Omit<DiskRollback, 'image' | 'onProgress'>,
  signal: AbortSignal,
): Promise<void> {
  const image = new NowhereImage(rollback.wanted.geometry.size)
  await restoreDisk({ ...partOf(rollback, signal), image, onProgress: () => undefined }, signal)
}

/**
 * Writes the difference and nothing else; does not commit. What is interrupted
 * is finished by the same call again, provided that the writes themselves
 * count as written since the base. Rehearse it first.
 */
export async function writeRollback(rollback: DiskRollback, signal: AbortSignal): Promise<void> {
  const { image } = rollback
  const onProgress: DiskRollback['onProgress'] = (passed, written) => rollback.onProgress(passed, written)
  await restoreDisk({ ...partOf(rollback, signal), image, onProgress }, signal)
}

/** Rehearses, then writes. */
export async function rollbackDisk(rollback: DiskRollback, signal: AbortSignal): Promise<void> {
  await rehearseRollback(rollback, signal)
  await writeRollback(rollback, signal)
}

function partOf(rollback: Omit<DiskRollback, 'image' | 'onProgress'>, signal: AbortSignal) {
  const { store, wanted, pace } = rollback
  return {
    store,
    pace,
    root: wanted.root,
    geometry: wanted.geometry,
    onDamage: 'stop' as const,
    onLost: () => undefined,
    runs: selectRuns(rollback, signal),
  }
}

/** The wanted tree's runs for the changed chunks only. */
async function* selectRuns(
  rollback: Omit<DiskRollback, 'image' | 'onProgress'>,
  signal: AbortSignal,
): AsyncGenerator<TreeRun> {
  const { store, wanted } = rollback
  let walk: TreeCursor | undefined
  try {
    for await (const range of changedChunks(rollback, signal)) {
      if (walk === undefined || range.first - walk.next > MAX_WALKED_GAP) {
        await walk?.close()
        walk = new TreeCursor(store.walkTree(wanted.root, wanted.geometry, range.first), range.first)
      }
      yield* walk.take(range.first, Math.min(range.first + range.count, chunkCount(wanted.geometry)))
    }
  } finally {
    await walk?.close()
  }
}

/** A walk through a tree that gives parts of it, ascending. */
class TreeCursor {
  /** Chunks before are passed. */
  next: number
  readonly #runs: AsyncIterator<TreeRun>
  #rest: TreeRun | undefined

  constructor(runs: AsyncIterable<TreeRun>, next: number) {
    this.#runs = runs[Symbol.asyncIterator]()
    this.next = next
  }

  async *take(first: number, end: number): AsyncGenerator<TreeRun> {
    while (this.next < end) {
      const run = this.#rest ?? (await this.#pull())
      if (run === undefined) return
      const runEnd = run.first + run.count
      const from = Math.max(run.first, first)
      const to = Math.min(runEnd, end)
      this.#rest = to < runEnd ? run : undefined
      this.next = to
      if (from < to) yield sliceRun(run, from, to)
    }
  }

  async close(): Promise<void> {
    await this.#runs.return?.()
  }

  async #pull(): Promise<TreeRun | undefined> {
    const result = await this.#runs.next()
    return result.done === true ? undefined : result.value
  }
}

function sliceRun(run: TreeRun, first: number, end: number): TreeRun {
  if (run.kind !== 'data') return { kind: run.kind, first, count: end - first }
  const ids = run.ids.subarray((first - run.first) * 32, (end - run.first) * 32)
  return { kind: 'data', first, count: end - first, ids }
}

/** Chunks with a part that was written since the base. */
async function* dirtyChunks(
  { wanted, present }: Omit<DiskRollback, 'image' | 'onProgress'>,
  signal: AbortSignal,
): AsyncGenerator<TreeDifference> {
  const basis: PlanBasis =
    present.base === undefined ? { kind: 'none' } : { kind: 'inherit', parentSize: present.base.geometry.size }
  for await (const run of planChunks(present.extents(signal), wanted.geometry, basis)) {
    if (run.kind !== 'inherit') yield { first: run.first, count: run.count }
  }
}

/** Two ascending sequences of ranges as one; what overlaps or touches becomes one range. */
export async function* mergeRanges(
  a: AsyncIterable<TreeDifference>,
  b: AsyncIterable<TreeDifference>,
): AsyncGenerator<TreeDifference> {
  const sources = [a[Symbol.asyncIterator](), b[Symbol.asyncIterator]()]
  try {
    const heads = await Promise.all(sources.map(source => source.next()))
    let open: { first: number; count: number } | undefined
    for (;;) {
      const at = nearest(heads)
      const head = heads[at]
      if (head === undefined || head.done === true) break
      const { first, count } = head.value
      if (open !== undefined && first <= open.first + open.count) {
        open.count = Math.max(open.count, first + count - open.first)
      } else {
        if (open !== undefined) yield open
        open = { first, count }
      }
      const source = sources[at]
      if (source !== undefined) heads[at] = await source.next()
    }
    if (open !== undefined) yield open
  } finally {
    for (const source of sources) await source.return?.()
  }
}

/** Index of the head that begins first; any where all are done. */
function nearest(heads: readonly IteratorResult<TreeDifference>[]): number {
  const starts = heads.map(head => (head.done === true ? Infinity : head.value.first))
  return starts.indexOf(Math.min(...starts))
}

/** Takes everything and keeps nothing. */
class NowhereImage implements ImageWriter {
  readonly name = 'nowhere'
  readonly size: number
  readonly startsZeroed = true

  constructor(size: number) {
    this.size = size
  }

  write(): Promise<void> {
    return Promise.resolve()
  }

  zero(): Promise<void> {
    return Promise.resolve()
  }

  markDamaged(): Promise<void> {
    return Promise.resolve()
  }

  commit(): ReturnType<ImageWriter['commit']> {
    return Promise.resolve({ dataBytes: 0, fileBytes: 0 })
  }

  [Symbol.asyncDispose](): Promise<void> {
    return Promise.resolve()
  }
}
