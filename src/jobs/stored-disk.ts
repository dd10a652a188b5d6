import { throwIfAborted } from '../base/async.js'
import { BackupError } from '../base/errors.js'
import { chunkCount, chunkLength, type DiskGeometry, type TreeRun } from '../model/disk-tree.js'
import type { TreeRoot } from '../model/recovery-point.js'
import type { ReadableDisk, ServedExtent } from '../nbd/served-export.js'
import type { StorePort } from '../store/store-types.js'
import type { ChunkCache, WantedChunk } from './chunk-cache.js'
import { ReadAhead } from './read-ahead.js'

const ID_BYTES = 32
/** Chunks whose ids are remembered together: four leaf nodes, which is what one step into a tree loads. */
const WINDOW_CHUNKS = 512
/** 16 KiB of ids each. */
const MAX_WINDOWS = 256
/** One read from the packs ahead of a reader. */
const AHEAD_BATCH_BYTES = 2 * 1024 * 1024

export interface StoredDiskOptions {
  readonly store: Pick<StorePort, 'walkTree'>
  readonly root: TreeRoot
  readonly geometry: DiskGeometry
  /** Shared with other disks of the same store. */
  readonly cache: ChunkCache
  /** What the point leaves out; without it such a disk cannot be read. */
  readonly below?: BelowContent | undefined
  /** Bytes to be ahead of those who read on and on, all of them together. */
  readonly aheadBytes: number
}

/** The images that a point leaves out, as one disk. */
export interface BelowContent {
  /** Fills `out`; past the end of the images with zeros. */
  read(offset: number, out: Uint8Array, signal: AbortSignal): Promise<void>
}

/**
 * One disk of a recovery point, read at any place in any order, any number of
 * times at once, in bounded memory. Notices readers that go on and on, and
 * reads ahead of them.
 */
export class StoredDisk implements ReadableDisk {
  readonly #options: StoredDiskOptions
  readonly #geometry: DiskGeometry
  readonly #cache: ChunkCache
  /** By number; least recently used first. */
  readonly #windows = new Map<number, Promise<readonly TreeRun[]>>()
  readonly #ahead: ReadAhead

  constructor(options: StoredDiskOptions) {
    this.#options = options
    this.#geometry = options.geometry
    this.#cache = options.cache
    this.#ahead = new ReadAhead({
      size: options.geometry.size,
      aheadBytes: options.aheadBytes,
      batchBytes: Math.max(AHEAD_BATCH_BYTES, options.geometry.chunkSize),
    })
  }

  get size(): number {
    return this.#geometry.size
  }

  async *extents(from: number, to: number, signal: AbortSignal): AsyncGenerator<ServedExtent> {
    const { chunkSize } = this.#geometry
    for await (const run of this.#runs(Math.floor(from / chunkSize), Math.ceil(to / chunkSize))) {
      throwIfAborted(signal)
      const offset = Math.max(from, run.first * chunkSize)
      const end = Math.min(to, (run.first + run.count) * chunkSize)
      if (offset < end) yield { offset, length: end - offset, kind: run.kind === 'below' ? 'data' : run.kind }
    }
  }

  async read(offset: number, out: Uint8Array, signal: AbortSignal): Promise<void> {
    const end = offset + out.length
    this.#readAhead(offset, out.length)
    for await (const group of this.#groups(offset, end)) {
      if (group.kind !== 'chunks') {
        const [start, stop] = [Math.max(group.start, offset), Math.min(group.end, end)]
        const part = out.subarray(start - offset, stop - offset)
        if (group.kind === 'below') await this.#below().read(start, part, signal)
        else part.fill(0)
        continue
      }
      const copy = (bytes: Uint8Array, index: number) => {
        const start = (group.first + index) * this.#geometry.chunkSize
        const [cutFront, cutBack] = [Math.max(0, offset - start), Math.max(0, start + bytes.length - end)]
        out.set(bytes.subarray(cutFront, bytes.length - cutBack), start + cutFront - offset)
      }
      await this.#cache.take(group.chunks, copy, signal)
    }
  }

  #below(): BelowContent {
    const { below } = this.#options
    if (below === undefined) throw new BackupError('E_UNSUPPORTED', 'the disk lies on images that the point leaves out')
    return below
  }

  /** What lies in `[from, to)`, as the cache takes it: groups of neighbouring chunks, and zeros between. */
  async *#groups(from: number, to: number): AsyncGenerator<Group> {
    const { chunkSize } = this.#geometry
    for await (const run of this.#runs(Math.floor(from / chunkSize), Math.ceil(to / chunkSize))) {
      if (run.kind !== 'data') {
        yield {
          kind: run.kind === 'below' ? 'below' : 'zeros',
          start: run.first * chunkSize,
          end: (run.first + run.count) * chunkSize,
        }
        continue
      }
      for (let at = 0; at < run.count; at += this.#cache.groupSize) {
        const count = Math.min(this.#cache.groupSize, run.count - at)
        const chunks = wantedOf(run, { at, count, geometry: this.#geometry })
        yield { kind: 'chunks', first: run.first + at, chunks }
      }
    }
  }

  /** The runs of chunks `[first, end)`, clipped; through remembered windows where it is a short way. */
  async *#runs(first: number, end: number): AsyncGenerator<TreeRun> {
    const { store, root } = this.#options
    if (end - first > 2 * WINDOW_CHUNKS) {
      for await (const run of store.walkTree(root, this.#geometry, first)) {
        if (run.first >= end) return
        yield clip(run, first, end)
      }
      return
    }
    for (let window = Math.floor(first / WINDOW_CHUNKS); window * WINDOW_CHUNKS < end; window++) {
      for (const run of await this.#window(window)) {
        if (run.first < end && run.first + run.count > first) yield clip(run, first, end)
      }
    }
  }

  async #window(window: number): Promise<readonly TreeRun[]> {
    const known = this.#windows.get(window)
    if (known !== undefined) {
      this.#windows.delete(window)
      this.#windows.set(window, known)
      return await known
    }
    for (const oldest of this.#windows.keys()) {
      if (this.#windows.size < MAX_WINDOWS) break
      this.#windows.delete(oldest)
    }
    const loading = this.#loadWindow(window)
    this.#windows.set(window, loading)
    // What is lost now may be found by the next who asks.
    loading.catch(() => this.#windows.delete(window))
    return await loading
  }

  async #loadWindow(window: number): Promise<readonly TreeRun[]> {
    const { store, root } = this.#options
    const first = window * WINDOW_CHUNKS
    const end = Math.min(first + WINDOW_CHUNKS, chunkCount(this.#geometry))
    const runs: TreeRun[] = []
    for await (const run of store.walkTree(root, this.#geometry, first)) {
      if (run.first >= end) break
      runs.push(clip(run, first, end))
      if (run.first + run.count >= end) break
    }
    return runs
  }

  #readAhead(offset: number, length: number): void {
    for (const [from, to] of this.#ahead.note(offset, length)) {
      // Nobody waits for it: whoever reads there is told what is wrong.
      this.#prefetch(from, to).catch(() => undefined)
    }
  }

  async #prefetch(from: number, to: number): Promise<void> {
    const { chunkSize } = this.#geometry
    const wanted: WantedChunk[] = []
    for await (const run of this.#runs(Math.floor(from / chunkSize), Math.ceil(to / chunkSize))) {
      if (run.kind === 'data') wanted.push(...wantedOf(run, { at: 0, count: run.count, geometry: this.#geometry }))
    }
    this.#cache.prefetch(wanted)
  }
}

type Group =
  | { readonly kind: 'zeros' | 'below'; readonly start: number; readonly end: number }
  | { readonly kind: 'chunks'; readonly first: number; readonly chunks: readonly WantedChunk[] }

function wantedOf(
  run: TreeRun & { readonly kind: 'data' },
  part: { readonly at: number; readonly count: number; readonly geometry: DiskGeometry },
): WantedChunk[] {
  return Array.from({ length: part.count }, (_, i) => {
    const at = part.at + i
    return {
      id: run.ids.subarray(at * ID_BYTES, (at + 1) * ID_BYTES),
      length: chunkLength(part.geometry, run.first + at),
    }
  })
}

function clip(run: TreeRun, first: number, end: number): TreeRun {
  const start = Math.max(run.first, first)
  const count = Math.min(run.first + run.count, end) - start
  if (run.kind !== 'data') return { kind: run.kind, first: start, count }
  const skipped = start - run.first
  return { kind: 'data', first: start, count, ids: run.ids.subarray(skipped * ID_BYTES, (skipped + count) * ID_BYTES) }
}
