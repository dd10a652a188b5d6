import { throwIfAborted } from '../base/async.js'
import { BufferPool } from '../base/buffer-pool.js'
import { invariant } from '../base/invariant.js'
import type { Pace } from '../base/pace.js'
import type { ImagePiece, ImageWriter } from '../image/image-writer.js'
import { chunkCount, chunkLength, type DiskGeometry, TREE_FANOUT, type TreeRun } from '../model/disk-tree.js'
import type { TreeRoot } from '../model/recovery-point.js'
import type { StorePort } from '../store/store-types.js'
import { BelowCopier, type RestoredBelow } from './restore-below.js'
import { asChunkDamage, isDamage } from './restore-damage.js'
import { type MissingChunks, recallWindow } from './restore-recall.js'
import { cutWindows, type RestoreWindow } from './restore-windows.js'

/** Bytes of one window: large enough for one big read of the packs and one big write of the image. */
const WINDOW_BYTES = 4 << 20
/** Pieces of one window. */
const WINDOW_ITEMS = 4096
/** Windows that are read and decoded while an earlier one is written. */
const READ_AHEAD = 7

export type RestoreSource = Pick<StorePort, 'walkTree' | 'chunks'>

export interface DiskRestore {
  readonly store: RestoreSource
  readonly root: TreeRoot
  readonly geometry: DiskGeometry
  readonly image: ImageWriter
  /** `identify` of the store: what an interrupted restore left in the image is then not read again. */
  readonly identify?: StorePort['identify'] | undefined
  /** Of what is read from the store, and so of what is written. */
  readonly pace?: Pace | undefined
  /** Where the point leaves out images; such a disk is refused without. */
  readonly below?: RestoredBelow | undefined
  /** The part of the tree to copy, ascending; all of it unless given. */
  readonly runs?: AsyncIterable<TreeRun>
  /** stop: reject with what was thrown. keep: write zeros for what is lost and go on. */
  readonly onDamage: 'stop' | 'keep'
  /** Told each lost range before anything else is done about it. Ascending, disjoint. */
  onLost(range: ImagePiece): void
  /** Told how far the disk is: bytes of the disk passed, bytes of data written. */
  onProgress(passed: number, written: number): void
}

/**
 * Copies one disk tree into an image: reads and decodes windows ahead, writes
 * them in disk order. Does not commit. Rejects on the first failure, after
 * all that is under way has settled, so that no buffer is in use any more.
 * E_DAMAGED has been told to onLost before.
 */
export async function restoreDisk(restore: DiskRestore, signal: AbortSignal): Promise<void> {
  const { geometry, image, pace } = restore
  const windowBytes = Math.min(WINDOW_BYTES, pace?.burstBytes ?? WINDOW_BYTES)
  const { below } = restore
  const limits = {
    bytes: Math.max(windowBytes, geometry.chunkSize),
    items: WINDOW_ITEMS,
    zeros: !image.startsZeroed,
    below: below?.kind,
  }
  const copier = below?.kind === 'copy' ? new BelowCopier(below.images, signal) : undefined
  const pool = new BufferPool(READ_AHEAD + 1, limits.bytes)
  const underWay: { readonly window: RestoreWindow; readonly buffer: Uint8Array; readonly read: Promise<void> }[] = []
  let written = 0
  const { resume } = image
  const { identify } = restore
  let isRecalling = resume?.isAdopted === true

  const writeOldest = async () => {
    const oldest = underWay[0]
    if (oldest === undefined) return
    await oldest.read
    written += await writeWindow({ image, copier }, oldest, signal)
    underWay.shift()
    pool.give(oldest.buffer)
    written += oldest.window.bytes
    restore.onProgress(oldest.window.end, written)
  }

  try {
    for await (const window of cutWindows(restore.runs ?? walkAll(restore), geometry, limits)) {
      throwIfAborted(signal)
      if (underWay.length > READ_AHEAD) await writeOldest()
      const buffer = await pool.take(signal)
      if (isRecalling && resume !== undefined && identify !== undefined) {
        // An interrupted writer went front to back: behind what it has not, there is nothing.
        isRecalling = await recallWindow(
          { image, identify, resume },
          { window, buffer },
          missing => readWindow(restore, { window: missing, buffer }, signal),
          signal,
        )
        pool.give(buffer)
        written += window.bytes
        restore.onProgress(window.end, written)
        continue
      }
      const read = readWindow(restore, { window, buffer }, signal)
      // Awaited in order above; until then a failure must not count as unhandled.
      read.catch(() => undefined)
      underWay.push({ window, buffer, read })
    }
    while (underWay.length > 0) await writeOldest()
  } finally {
    await Promise.allSettled(underWay.map(({ read }) => read))
    await copier?.close()
  }
}

/** Resolves to the bytes that came from images below. */
async function writeWindow(
  { image, copier }: { readonly image: ImageWriter; readonly copier: BelowCopier | undefined },
  loaded: { readonly window: RestoreWindow; readonly buffer: Uint8Array },
  signal: AbortSignal,
): Promise<number> {
  let copied = 0
  for (const step of loaded.window.steps) {
    if (step.kind === 'below') copied += (await copier?.copy(image, step, signal)) ?? 0
    else if (step.kind === 'zero') await image.zero(step.offset, step.length, signal)
    else await image.write(step.pieces, loaded.buffer.subarray(step.start, step.start + step.length), signal)
  }
  return copied
}

/** Fills the buffer with the window's chunks; what is lost is told, and zero where the restore goes on. */
async function readWindow(
  restore: DiskRestore,
  place: { readonly window: MissingChunks; readonly buffer: Uint8Array },
  signal: AbortSignal,
): Promise<void> {
  const { window, buffer } = place
  if (window.chunks.length === 0) return
  await restore.pace?.take(window.bytes, signal)
  try {
    await restore.store.chunks.read(window.ids, buffer.subarray(0, window.bytes), window.spans, signal)
  } catch (error) {
    const damage = asChunkDamage(error)
    if (damage === undefined) throw error
    for (const piece of damage) {
      const chunk = window.chunks[piece]
      const start = window.spans[piece * 2]
      const length = window.spans[piece * 2 + 1]
      invariant(
        chunk !== undefined && start !== undefined && length !== undefined,
        'a damaged piece was never asked for',
      )
      restore.onLost({ offset: chunk * restore.geometry.chunkSize, length })
      buffer.fill(0, start, start + length)
    }
    if (restore.onDamage === 'stop') throw error
  }
}

/**
 * The runs of the whole disk. Where nodes of the tree are lost, what they
 * cover is told, reads as zeros, and the walk goes on behind it.
 *
 * Which node was lost is not said, so it is found out: behind a failure the
 * walk is tried again at the next leaf node; after as many failures in a row
 * as a node has children, the node above them must be lost, and steps grow.
 */
async function* walkAll(restore: DiskRestore): AsyncGenerator<TreeRun> {
  const { store, root, geometry } = restore
  const count = chunkCount(geometry)
  let next = 0
  let failuresInRow = 0
  while (next < count) {
    try {
      for await (const run of store.walkTree(root, geometry, next)) {
        yield run
        next = run.first + run.count
        failuresInRow = 0
      }
      return
    } catch (error) {
      if (!isDamage(error)) throw error
      const step = TREE_FANOUT ** (1 + Math.floor(failuresInRow++ / TREE_FANOUT))
      const end = Math.min(count, (Math.floor(next / step) + 1) * step)
      restore.onLost(byteRange(geometry, { first: next, count: end - next }))
      if (restore.onDamage === 'stop') throw error
      yield { kind: 'zero', first: next, count: end - next }
      next = end
    }
  }
}

function byteRange(geometry: DiskGeometry, chunks: { readonly first: number; readonly count: number }): ImagePiece {
  const last = chunks.first + chunks.count - 1
  const offset = chunks.first * geometry.chunkSize
  return { offset, length: last * geometry.chunkSize + chunkLength(geometry, last) - offset }
}
