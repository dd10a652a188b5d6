import type { ChunkRun, PlannedRun } from '../model/chunk-plan.js'
import { chunkCount, chunkLength } from '../model/disk-tree.js'
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
  pull: Pick<DiskPull, 'geometry' | 'pool' | 'source'>,
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
      await Promise.all(what.writers.map(writer => writer.compare(part, buffer, spans)))
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
      sum.missed += await countData(store, parent, { first, count })
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

/** Whether any of these chunks is data in the parent. Rejects with E_DAMAGED. */
export async function hasData(
  store: Pick<DiskSink['store'], 'walkTree'>,
  parent: TreeSide,
  { first, count }: ChunkRun,
): Promise<boolean> {
  for await (const _data of dataIn(store, parent, { first, count })) return true
  return false
}

/** Chunks of the run that are data in the parent, although the export shows zeros. */
async function countData(store: Pick<DiskSink['store'], 'walkTree'>, parent: TreeSide, run: ChunkRun): Promise<number> {
  let data = 0
  for await (const { count } of dataIn(store, parent, run)) data += count
  return data
}

async function* dataIn(
  store: Pick<DiskSink['store'], 'walkTree'>,
  parent: TreeSide,
  { first, count }: ChunkRun,
): AsyncGenerator<ChunkRun> {
  const end = first + count
  if (first >= chunkCount(parent.geometry)) return
  for await (const run of store.walkTree(parent.root, parent.geometry, first)) {
    if (run.first >= end) break
    if (run.kind !== 'data') continue
    const start = Math.max(run.first, first)
    yield { first: start, count: Math.min(run.first + run.count, end) - start }
  }
}
