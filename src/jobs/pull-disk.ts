import { throwIfAborted } from '../base/async.js'
import type { BufferPool } from '../base/buffer-pool.js'
import { invariant } from '../base/invariant.js'
import type { Pace } from '../base/pace.js'
import {
  batchPlan,
  joinRuns,
  markDirty,
  planChunks,
  type PlanBasis,
  type PlannedRun,
  type PullBatch,
} from '../model/chunk-plan.js'
import { CleanTail } from '../model/clean-tail.js'
import { chunkLength, type DiskGeometry } from '../model/disk-tree.js'
import type { Extent } from '../model/extent.js'
import { IndexSample } from '../model/index-sample.js'
import type { DiskStatistics, TreeRoot } from '../model/recovery-point.js'
import type { PointDraft, StorePort, TreeSide } from '../store/store-types.js'
import { readCanaries } from './bitmap-check.js'
import { type PulledBelow, splitByBelow } from './pull-below.js'
import { bytesOf, type SinkPart, SinkWriter } from './sink-writer.js'

/** Bytes of one batch: dozens of chunks at the default chunk size, so that JavaScript's part vanishes. */
export const BATCH_BYTES = 4 * 1024 * 1024
/** Runs of one batch, so that a badly fragmented map is worked off in pieces too. */
const BATCH_ITEMS = 4096
/**
 * Batches of one disk between reading and storing. Enough to keep NBD, hash and compressor busy when the oldest is slow:
 * with three of 8 MiB each a first full took 7 to 13 % longer on two cores.
 */
const BATCHES_UNDER_WAY = 8

/** What a pull reads from: one export, frozen at one point in time. */
export interface DiskExport {
  readonly size: number
  extents(signal: AbortSignal): AsyncIterable<Extent>
  /** Triples (offset in the export, length, offset in `buffer`). */
  read(pieces: Float64Array, buffer: Uint8Array, signal: AbortSignal): Promise<void>
}

export interface DiskPull {
  readonly source: DiskExport
  readonly geometry: DiskGeometry
  /** Where what is read goes. All have chunks of this geometry, and parents of one size. */
  readonly sinks: readonly DiskSink[]
  /** Clean chunks that are read again and compared with the parent, chosen at random by `random`. */
  readonly canaries: { readonly count: number; readonly random: () => number }
  readonly pool: BufferPool
  /** The images that are left out: what is as in them is not stored. */
  readonly below?: PulledBelow | undefined
  /** Called with the bytes dealt with since the last call; what is new counts once for each store. */
  onProgress(progress: { readonly readBytes: number; readonly newBytes: number }): void
  /** Called for every planned run, before it is worked off. */
  onPlanned(run: PlannedRun): void
}

/** One store's part in the pull of a disk. */
export interface DiskSink {
  /** I7: only where libvirt confirmed that the bitmap covers everything since this very tree. */
  readonly parent: TreeSide | undefined
  /** Reads all of the disk, and compares what the bitmap calls clean with the parent. Needs a parent. */
  readonly isAudit: boolean
  readonly store: Pick<StorePort, 'chunkIdsAt' | 'damagedChunks' | 'identify' | 'walkTree'>
  readonly draft: PointDraft
  /** Of what the store takes; paid after each batch, whose size is known only then. */
  readonly pace?: Pace | undefined
  /** Whether nothing more need be done for it: another disk has failed. */
  isGivenUp?(): boolean
  /** Called with its first failure, as soon as that is known. */
  onFailure?(error: unknown): void
}

export interface PulledDisk {
  readonly root: TreeRoot
  readonly statistics: DiskStatistics
  /** Chunks that the bitmap called clean and that were compared with the parent. */
  readonly compared: number
  /** Those of them that differ: the bitmap has missed writes, and where `isAudit` was not set the tree is wrong. */
  readonly missed: number
  /** What the bitmap calls clean at the end of the disk is gone: the image was shrunk and grown again, the tree is wrong. */
  readonly isCut: boolean
  /** Chunks that the store had lost from the parent's tree, taken from the export again. */
  readonly reread: number
}

export type SinkResult =
  | { readonly kind: 'pulled'; readonly disk: PulledDisk }
  | { readonly kind: 'failed'; readonly error: unknown }

/**
 * Reads what the extents call for, once, stores it in every sink, and gives
 * one result for each.
 *
 * Reading, storing and the trees overlap; a tree is edited in disk order. A
 * sink that fails is left out from then on, the others get everything; the
 * slowest sets the pace. Rejects where reading fails or `signal` is aborted,
 * after everything under way has settled, so that no buffer is in use any more.
 */
export async function pullDisk(pull: DiskPull, signal: AbortSignal): Promise<readonly SinkResult[]> {
  const { geometry } = pull
  const writers: SinkWriter[] = []
  for (const sink of pull.sinks) writers.push(await SinkWriter.open(sink, geometry, signal))
  const alive = () => writers.filter(writer => !writer.hasFailed)
  const inheriting = writers.filter(writer => writer.inherited !== undefined)
  const canaries = new IndexSample(inheriting.length === 0 ? 0 : pull.canaries.count, pull.canaries.random)
  const tail = new CleanTail()
  const damaged = joinRuns(writers.flatMap(writer => writer.damaged))
  const extents = markDirty(pull.source.extents(signal), damaged, geometry.chunkSize)
  const whole = planChunks(extents, geometry, basisOf(pull.sinks))
  const plan = pull.below === undefined ? whole : pull.below.plan(whole, geometry, signal)
  const limits = { bytes: BATCH_BYTES, items: BATCH_ITEMS }
  const underWay: { batch: PullBatch; stored: Promise<readonly SinkBatch[]> }[] = []

  const settleOldest = async () => {
    const oldest = underWay.shift()
    if (oldest === undefined) return
    const stored = await oldest.stored
    throwIfAborted(signal)
    await Promise.all(stored.map(part => part.writer.apply(part)))
    const newBytes = stored.reduce(
      (sum, part) => sum + (part.stored.kind === 'stored' ? part.stored.chunks.newBytes : 0),
      0,
    )
    pull.onProgress({ readBytes: oldest.batch.bytes, newBytes })
  }

  try {
    for await (const batch of batchPlan(observed(plan, pull, { canaries, tail }), geometry, limits)) {
      const stored = readAndStore(pull, { batch, writers: alive() }, signal)
      // Awaited in order below; until then a failure must not count as unhandled.
      stored.catch(() => undefined)
      underWay.push({ batch, stored })
      if (underWay.length >= BATCHES_UNDER_WAY) await settleOldest()
      if (alive().length === 0) break
    }
    while (underWay.length > 0) await settleOldest()
  } finally {
    await Promise.allSettled(underWay.map(({ stored }) => stored))
  }

  const checked = inheriting.filter(writer => !writer.hasFailed)
  if (checked.length > 0) {
    await Promise.all(checked.map(writer => writer.compareTail(tail.runs)))
    const indexes = withIndex(canaries.indexes(), pull.canaries.count === 0 ? undefined : tail.lastData)
    await readCanaries(pull, { writers: checked, indexes }, signal)
  }
  return await Promise.all(writers.map(writer => writer.finish()))
}

/** What all sinks together need: where one builds on nothing, even what is clean is read, and marked for the others. */
function basisOf(sinks: readonly DiskSink[]): PlanBasis {
  const parents = sinks.flatMap(({ parent }) => parent ?? [])
  const [first] = parents
  if (first === undefined) return { kind: 'none' }
  const parentSize = first.geometry.size
  invariant(
    parents.every(({ geometry }) => geometry.size === parentSize),
    'I7: the parents of one pull are of one instant',
  )
  const isAll = parents.length === sinks.length && !sinks.some(({ isAudit }) => isAudit)
  return { kind: isAll ? 'inherit' : 'audit', parentSize }
}

async function* observed(
  plan: AsyncIterable<PlannedRun>,
  pull: DiskPull,
  { canaries, tail }: { readonly canaries: IndexSample; readonly tail: CleanTail },
): AsyncGenerator<PlannedRun> {
  for await (const run of plan) {
    pull.onPlanned(run)
    tail.add(run)
    if (run.kind === 'inherit' || run.clean === true) canaries.add(run.first, run.count)
    yield run
  }
}

/** Ascending, with `index` in it. */
function withIndex(indexes: Float64Array, index: number | undefined): Float64Array {
  if (index === undefined || indexes.includes(index)) return indexes
  return Float64Array.from([...indexes, index]).sort()
}

interface SinkBatch extends SinkPart {
  readonly writer: SinkWriter
}

async function readAndStore(
  pull: DiskPull,
  { batch, writers }: { readonly batch: PullBatch; readonly writers: readonly SinkWriter[] },
  signal: AbortSignal,
): Promise<readonly SinkBatch[]> {
  if (batch.chunks === 0) {
    return writers.map(writer => ({ writer, items: writer.own(batch.items), stored: { kind: 'nothing' } }))
  }
  const buffer = await pull.pool.take(signal)
  try {
    const { pieces, places } = layOut(batch, pull.geometry)
    await pull.source.read(pieces, buffer, signal)
    const all =
      pull.below === undefined
        ? batch.items
        : await pull.below.with(
            pieces,
            under => splitByBelow({ items: batch.items, places }, { buffer, under }, pull.geometry),
            signal,
          )
    return await Promise.all(
      writers.map(async writer => {
        const items = writer.own(all)
        const stored = await writer.store(buffer, spansOf(items, places, pull.geometry), signal)
        return { writer, items, stored }
      }),
    )
  } finally {
    pull.pool.give(buffer)
  }
}

/** Where each read run is read to, one after the other; `places` by the run's first chunk. */
function layOut(
  batch: PullBatch,
  geometry: DiskGeometry,
): { readonly pieces: Float64Array; readonly places: Map<number, number> } {
  const reads = batch.items.filter(item => item.kind === 'read')
  const pieces = new Float64Array(reads.length * 3)
  const places = new Map<number, number>()
  let place = 0
  for (const [i, { first, count }] of reads.entries()) {
    const length = bytesOf({ first, count }, geometry)
    pieces.set([first * geometry.chunkSize, length, place], i * 3)
    places.set(first, place)
    place += length
  }
  return { pieces, places }
}

/** Where the chunks of these runs lie in the buffer. */
function spansOf(
  items: readonly PlannedRun[],
  places: ReadonlyMap<number, number>,
  geometry: DiskGeometry,
): Uint32Array {
  const reads = items.filter(item => item.kind === 'read')
  const spans = new Uint32Array(reads.reduce((sum, { count }) => sum + count, 0) * 2)
  let chunk = 0
  for (const { first, count } of reads) {
    let place = places.get(first)
    invariant(place !== undefined, 'what is stored was read')
    for (let index = first; index < first + count; index++) {
      const length = chunkLength(geometry, index)
      spans[chunk * 2] = place
      spans[chunk * 2 + 1] = length
      place += length
      chunk++
    }
  }
  return spans
}
