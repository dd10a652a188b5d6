import type { ChunkRun, PlannedRun } from '../model/chunk-plan.js'
import { chunkCount, chunkLength, type TreeRun } from '../model/disk-tree.js'
import type { TailRun } from '../model/clean-tail.js'
import type { ChunkIds, StoredChunks, TreeSide } from '../store/store-types.js'
import type { DiskPull, DiskSink } from './pull-disk.js'
import type { SinkWriter } from './sink-writer.js'

/** How many chunks were compared with the parent, and how many differ from it. */
export interface Comparison {
  compared: number
  missed: number
}

/**
 * Reads chunks that the dirty bitmap calls clean and has each writer compare
 * them with what it inherits. A drift of 0.5 % is met by 1,000 canaries with
 * 99.3 % probability; one that misses much, or anything on a small disk, by a
 * few. Rejects with what reading can meet.
 */
export async function readCanaries(
  pull: Pick<DiskPull, 'below' | 'geometry' | 'pool' | 'source'>,
  what: { readonly writers: readonly SinkWriter[]; readonly indexes: Float64Array },
  signal: AbortSignal,
): Promise<void> {
  const { geometry } = pull
  const { indexes } = what
  const perRead = Math.floor(pull.pool.bufferBytes / geometry.chunkSize)
  for (let from = 0; from < indexes.length; from += perRead) {
    const part = indexes.subarray(from, from + perRead)
    const pieces = new Float64Array(part.length * 3)
    const spans = new Uint32Array(part.length * 2)
    part.forEach((index, i) => {
      const length = chunkLength(geometry, index)
      pieces.set([index * geometry.chunkSize, length, i * geometry.chunkSize], i * 3)
      spans.set([i * geometry.chunkSize, length], i * 2)
    })
    const buffer = await pull.pool.take(signal)
    try {
      await pull.source.read(pieces, buffer, signal)
      const compare = async (under: Uint8Array | undefined) => {
        await Promise.all(what.writers.map(writer => writer.compare(part, spans, { bytes: buffer, under })))
      }
      if (pull.below === undefined) await compare(undefined)
      else await pull.below.with(pieces, compare, signal)
    } finally {
      pull.pool.give(buffer)
    }
  }
}

/** Compares those runs of a batch that should be as in the parent. Rejects with E_DAMAGED. */
export async function auditItems(
  store: Pick<DiskSink['store'], 'chunkIdsAt' | 'walkTree'>,
  parent: TreeSide,
  batch: { readonly items: readonly PlannedRun[]; readonly stored: StoredChunks | undefined },
): Promise<Comparison> {
  const { items, stored } = batch
  const sum: Comparison = { compared: 0, missed: 0 }
  let taken = 0
  for (const { kind, first, count, clean } of items) {
    if (kind === 'read' && stored !== undefined) {
      if (clean === true) {
        const indexes = Float64Array.from({ length: count }, (_, i) => first + i)
        const shown = {
          ids: stored.ids.subarray(taken * 32, (taken + count) * 32),
          zero: stored.zero.subarray(taken, taken + count),
        }
        sum.missed += countDifferent(shown, await store.chunkIdsAt(parent, indexes))
        sum.compared += count
      }
      taken += count
    } else if (clean === true) {
      const isSame = (run: TreeRun) => (kind === 'below' ? run.kind === 'below' : run.kind !== 'data')
      sum.missed += await countOthers({ store, parent, isSame }, { first, count })
      sum.compared += count
    }
  }
  return sum
}

/** Of two lists of the same chunks, those that are not the same. */
export function countDifferent(a: ChunkIds, b: ChunkIds): number {
  let different = 0
  for (let i = 0; i < a.zero.length; i++) {
    const same =
      a.zero[i] === b.zero[i] &&
      Buffer.compare(a.ids.subarray(i * 32, i * 32 + 32), b.ids.subarray(i * 32, i * 32 + 32)) === 0
    if (!same) different++
  }
  return different
}

/**
 * Whether any of these chunks is data in the parent or, where the images below
 * have data, as those. Rejects with E_DAMAGED.
 */
export async function hasData(
  store: Pick<DiskSink['store'], 'walkTree'>,
  parent: TreeSide,
  run: TailRun,
): Promise<boolean> {
  const isSame = ({ kind }: TreeRun) => kind !== 'data' && !(kind === 'below' && run.overData === true)
  for await (const _other of othersIn({ store, parent, isSame }, run)) return true
  return false
}

/** What a tree names, with what is as the images below named as these are now. */
export function resolveBelow(known: ChunkIds, below: ChunkIds): ChunkIds {
  const resolved = { ids: Uint8Array.from(known.ids), zero: Uint8Array.from(known.zero) }
  known.zero.forEach((zero, i) => {
    if (zero < 2) return
    resolved.ids.set(below.ids.subarray(i * 32, i * 32 + 32), i * 32)
    resolved.zero[i] = below.zero[i] ?? 0
  })
  return resolved
}

interface ParentTree {
  readonly store: Pick<DiskSink['store'], 'walkTree'>
  readonly parent: TreeSide
  /** What the parent may have there. */
  readonly isSame: (run: TreeRun) => boolean
}

/** Chunks of the run that are something else in the parent: data where the export shows zeros, say. */
async function countOthers(tree: ParentTree, run: ChunkRun): Promise<number> {
  let others = 0
  for await (const { count } of othersIn(tree, run)) others += count
  return others
}

async function* othersIn({ store, parent, isSame }: ParentTree, { first, count }: ChunkRun): AsyncGenerator<ChunkRun> {
  const end = first + count
  if (first >= chunkCount(parent.geometry)) return
  for await (const run of store.walkTree(parent.root, parent.geometry, first)) {
    if (run.first >= end) break
    if (isSame(run)) continue
    const start = Math.max(run.first, first)
    yield { first: start, count: Math.min(run.first + run.count, end) - start }
  }
}
