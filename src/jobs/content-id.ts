import { createHash } from 'node:crypto'

import { BufferPool } from '../base/buffer-pool.js'
import { toHex } from '../base/hex.js'
import { native } from '../native/binding.js'
import type { DiskExport } from './pull-disk.js'

/** Whatever the chunk size of the store, so that all stores name one image alike. */
const BLOCK_BYTES = 64 * 1024
const BATCH_BYTES = 4 * 1024 * 1024
const BATCHES_UNDER_WAY = 3
/** Kind byte of a chunk. */
const KIND = 1
const LABEL = 'virtvault content v1\n'

/**
 * What a disk holds, as 32 bytes: docs/format.md, "Images left out". Zeros
 * count alike whether they are allocated or not, and are not read where the
 * export says that they are. One read of the whole disk; `onRead` is told the
 * bytes. Rejects with what reading can meet.
 */
export async function contentIdOf(
  disk: Pick<DiskExport, 'size' | 'extents' | 'read'>,
  onRead: (bytes: number) => void,
  signal: AbortSignal,
): Promise<Uint8Array> {
  const sum = createHash('sha256').update(LABEL).update(wordOf(disk.size))
  const pool = new BufferPool(BATCHES_UNDER_WAY, BATCH_BYTES)
  const underWay: Promise<readonly Uint8Array[]>[] = []
  const settleOldest = async () => {
    for (const part of (await underWay.shift()) ?? []) sum.update(part)
  }
  try {
    for await (const { first, count } of dataBatches(disk, signal)) {
      if (underWay.length === BATCHES_UNDER_WAY) await settleOldest()
      const named = nameBlocks({ disk, pool, onRead }, { first, count }, signal)
      named.catch(() => undefined)
      underWay.push(named)
    }
    while (underWay.length > 0) await settleOldest()
  } finally {
    await Promise.allSettled(underWay)
  }
  return Uint8Array.from(sum.digest())
}

/** Contents are named alike. */
export function isSameContent(a: Uint8Array | undefined, b: Uint8Array | undefined): boolean {
  return a === undefined || b === undefined ? a === b : toHex(a) === toHex(b)
}

/** Blocks that are not known to be zero, each once, as many together as fit a batch. */
async function* dataBatches(
  disk: Pick<DiskExport, 'extents'>,
  signal: AbortSignal,
): AsyncGenerator<{ readonly first: number; readonly count: number }> {
  const most = BATCH_BYTES / BLOCK_BYTES
  let next = 0
  for await (const { offset, length, zero } of disk.extents(signal)) {
    if (zero) continue
    const end = Math.ceil((offset + length) / BLOCK_BYTES)
    next = Math.max(next, Math.floor(offset / BLOCK_BYTES))
    while (next < end) {
      const count = Math.min(most, end - next)
      yield { first: next, count }
      next += count
    }
  }
}

/** What the sum takes of these blocks: index and id of each that is not zero. */
async function nameBlocks(
  from: {
    readonly disk: Pick<DiskExport, 'size' | 'read'>
    readonly pool: BufferPool
    readonly onRead: (bytes: number) => void
  },
  { first, count }: { readonly first: number; readonly count: number },
  signal: AbortSignal,
): Promise<readonly Uint8Array[]> {
  const { disk, pool } = from
  const offset = first * BLOCK_BYTES
  const length = Math.min(count * BLOCK_BYTES, disk.size - offset)
  const buffer = await pool.take(signal)
  try {
    await disk.read(Float64Array.of(offset, length, 0), buffer, signal)
    const spans = Uint32Array.from({ length: count * 2 }, (_, i) =>
      i % 2 === 0 ? (i / 2) * BLOCK_BYTES : Math.min(BLOCK_BYTES, length - ((i - 1) / 2) * BLOCK_BYTES),
    )
    const { ids, zero } = await native().hashChunks(buffer, spans, { kind: KIND })
    from.onRead(length)
    const parts: Uint8Array[] = []
    for (let i = 0; i < count; i++) {
      if (zero[i] !== 1) parts.push(wordOf(first + i), ids.subarray(i * 32, i * 32 + 32))
    }
    return parts
  } finally {
    pool.give(buffer)
  }
}

function wordOf(value: number): Uint8Array {
  const bytes = new Uint8Array(8)
  new DataView(bytes.buffer).setBigUint64(0, BigInt(value), true)
  return bytes
}
