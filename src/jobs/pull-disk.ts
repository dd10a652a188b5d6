import type { BufferPool } from '../base/buffer-pool.js'
import { collect } from '../base/async.js'
import { invariant } from '../base/invariant.js'
import type { Pace } from '../base/pace.js'
import {
  batchPlan,
  markDirty,
  planChunks,
  type PlanBasis,
  type PlannedRun,
  type PullBatch,
} from '../model/chunk-plan.js'
import { chunkLength, type DiskGeometry } from '../model/disk-tree.js'
import type { Extent } from '../model/extent.js'
import { IndexSample } from '../model/index-sample.js'
import type { DiskStatistics, TreeRoot } from '../model/recovery-point.js'
import type { PointDraft, StoredChunks, StorePort, TreeDraft, TreeSide } from '../store/store-types.js'
import { auditBatch, type Comparison, readCanaries } from './bitmap-check.js'

/** Bytes of one batch: hundreds of chunks at the default chunk size, so that JavaScript's part vanishes. */
export const BATCH_BYTES = 8 * 1024 * 1024
/** Runs of one batch, so that a badly fragmented map is worked off in pieces too. */
const BATCH_ITEMS = 4096
/** Batches of one disk between reading and storing; enough to keep NBD, hash and compressor busy at once. */
const BATCHES_UNDER_WAY = 3

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
  /** I7: only where libvirt confirmed the base for this disk. */
  readonly parent: TreeSide | undefined
  /** Reads all of the disk, and compares what the bitmap calls clean with the parent. Needs a parent. */
  readonly isAudit: boolean
  /** Clean chunks that are read again and compared with the parent, chosen at random by `random`. */
  readonly canaries: { readonly count: number; readonly random: () => number }
  readonly store: Pick<StorePort, 'chunkIdsAt' | 'damagedChunks' | 'identify' | 'walkTree'>
  readonly draft: PointDraft
  readonly pool: BufferPool
  /** Of what the store takes; paid after each batch, whose size is known only then. */
  readonly storePace?: Pace | undefined
  /** Called with the bytes dealt with since the last call. */
  onProgress(progress: { readonly readBytes: number; readonly newBytes: number }): void
  /** Called for every planned run, before it is worked off. */
  onPlanned(run: PlannedRun): void
}

export interface PulledDisk {
  readonly root: TreeRoot
  readonly statistics: DiskStatistics
  /** Chunks that the bitmap called clean and that were compared with the parent. */
  readonly compared: number
  /** Those of them that differ: the bitmap has missed writes, and where `isAudit` was not set the tree is wrong. */
  readonly missed: number
  /** Chunks that the store had lost from the parent's tree, taken from the export again. */
  readonly reread: number
}

/**
 * Reads what the extents call for, stores it, and returns the new tree.
 *
 * Reading, storing and the tree overlap; the tree is edited in disk order.
 * Rejects on the first failure, after everything under way has settled, so
 * that no buffer is in use any more.
 */
export async function pullDisk(pull: DiskPull, signal: AbortSignal): Promise<PulledDisk> {
  const { geometry, parent, draft } = pull
  invariant(parent !== undefined || !pull.isAudit, 'an audit has something to compare with')
  const inherited = pull.isAudit ? undefined : parent
  const tree = draft.tree(geometry, inherited)
  const canaries = new IndexSample(inherited === undefined ? 0 : pull.canaries.count, pull.canaries.random)
  const totals = { dirtyBytes: 0, readBytes: 0, newBytes: 0, storedBytes: 0, newChunks: 0 }
  const check = { compared: 0, missed: 0 }
  const damaged = inherited === undefined ? [] : await collect(pull.store.damagedChunks(inherited, signal))
  const extents = markDirty(pull.source.extents(signal), damaged, geometry.chunkSize)
  const plan = planChunks(extents, geometry, basisOf(pull))
  const limits = { bytes: BATCH_BYTES, items: BATCH_ITEMS }
  const underWay: { batch: PullBatch; stored: Promise<StoredChunks | undefined> }[] = []

  const settleOldest = async () => {
    const oldest = underWay.shift()
    if (oldest === undefined) return
    const stored = await oldest.stored
    await applyBatch(tree, oldest.batch, stored)
    if (parent !== undefined && pull.isAudit) add(check, await auditBatch(pull, parent, oldest.batch, stored))
    totals.dirtyBytes += oldest.batch.bytes
    totals.readBytes += oldest.batch.bytes
    totals.newBytes += stored?.newBytes ?? 0
    totals.storedBytes += stored?.storedBytes ?? 0
    totals.newChunks += stored?.newChunks ?? 0
    pull.onProgress({ readBytes: oldest.batch.bytes, newBytes: stored?.newBytes ?? 0 })
  }

  try {
    for await (const batch of batchPlan(observed(plan, pull, canaries), geometry, limits)) {
      const stored = readAndStore(pull, batch, signal)
      // Awaited in order below; until then a failure must not count as unhandled.
      stored.catch(() => undefined)
      underWay.push({ batch, stored })
      if (underWay.length >= BATCHES_UNDER_WAY) await settleOldest()
    }
    while (underWay.length > 0) await settleOldest()
  } finally {
    await Promise.allSettled(underWay.map(({ stored }) => stored))
  }

  if (inherited !== undefined) add(check, await readCanaries(pull, inherited, canaries.indexes(), signal))
  const finished = await tree.finish()
  return {
    ...check,
    reread: damaged.reduce((sum, run) => sum + run.count, 0),
    root: finished.root,
    statistics: { ...totals, storedBytes: totals.storedBytes + finished.storedBytes, newNodes: finished.newNodes },
  }
}

function basisOf({ parent, isAudit }: DiskPull): PlanBasis {
  if (parent === undefined) return { kind: 'none' }
  return { kind: isAudit ? 'audit' : 'inherit', parentSize: parent.geometry.size }
}

function add(sum: Comparison, more: Comparison): void {
  sum.compared += more.compared
  sum.missed += more.missed
}

async function* observed(
  plan: AsyncIterable<PlannedRun>,
  pull: DiskPull,
  canaries: IndexSample,
): AsyncGenerator<PlannedRun> {
  for await (const run of plan) {
    pull.onPlanned(run)
    if (run.kind === 'inherit') canaries.add(run.first, run.count)
    yield run
  }
}

async function readAndStore(pull: DiskPull, batch: PullBatch, signal: AbortSignal): Promise<StoredChunks | undefined> {
  if (batch.chunks === 0) return undefined
  const buffer = await pull.pool.take(signal)
  try {
    const { pieces, spans } = layOut(batch, pull.geometry)
    await pull.source.read(pieces, buffer, signal)
    const stored = await pull.draft.storeChunks(buffer, spans, signal)
    await pull.storePace?.take(stored.storedBytes, signal)
    return stored
  } finally {
    pull.pool.give(buffer)
  }
}

/** Where each run is read to, one after the other, and where its chunks then lie. */
function layOut(batch: PullBatch, geometry: DiskGeometry): { pieces: Float64Array; spans: Uint32Array } {
  const reads = batch.items.filter(item => item.kind === 'read')
  const pieces = new Float64Array(reads.length * 3)
  const spans = new Uint32Array(batch.chunks * 2)
  let place = 0
  let chunk = 0
  for (const [i, { first, count }] of reads.entries()) {
    const start = first * geometry.chunkSize
    const length = Math.min((first + count) * geometry.chunkSize, geometry.size) - start
    pieces.set([start, length, place], i * 3)
    for (let index = first; index < first + count; index++) {
      const own = chunkLength(geometry, index)
      spans[chunk * 2] = place
      spans[chunk * 2 + 1] = own
      place += own
      chunk++
    }
  }
  return { pieces, spans }
}

async function applyBatch(tree: TreeDraft, batch: PullBatch, stored: StoredChunks | undefined): Promise<void> {
  let taken = 0
  for (const { kind, first, count } of batch.items) {
    if (kind === 'zero' || kind === 'hole') {
      await tree.putRun(first, count, kind)
    } else if (stored !== undefined) {
      const indexes = Float64Array.from({ length: count }, (_, i) => first + i)
      await tree.putChunks(indexes, sliceStored(stored, taken, count))
      taken += count
    }
  }
}

function sliceStored(stored: StoredChunks, from: number, count: number): StoredChunks {
  if (from === 0 && count === stored.count) return stored
  return {
    ...stored,
    count,
    ids: stored.ids.subarray(from * 32, (from + count) * 32),
    zero: stored.zero.subarray(from, from + count),
  }
}
