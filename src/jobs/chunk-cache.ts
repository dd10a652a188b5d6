import { limitedQueue, throwIfAborted } from '../base/async.js'
import { BackupError } from '../base/errors.js'
import { invariant } from '../base/invariant.js'
import type { ChunkSource } from '../store/store-types.js'
import { asChunkDamage } from './restore-damage.js'

const ID_BYTES = 32
/** Chunks of one take(): so many can be held at once without anybody waiting for anybody. */
const MIN_SLOTS = 16
/** Ids of chunks known to be lost: looking for one again costs the store a search through every pack. */
const MAX_LOST = 65_536

/** A chunk wanted: its id and its plain length. */
export interface WantedChunk {
  readonly id: Uint8Array
  readonly length: number
}

/**
 * Decoded chunks in a fixed amount of memory, the least recently used of which
 * make room. A chunk that several disks or points share is here once. One half
 * of the room is for those who wait, the other for what is read ahead.
 */
export class ChunkCache {
  readonly #source: ChunkSource
  readonly #chunkSize: number
  /** All slots; the kernel gives it pages when they are first written. */
  readonly #memory: Uint8Array
  readonly #slots: number
  readonly #free: number[]
  /** By id; least recently used first. */
  readonly #entries = new Map<string, Entry>()
  readonly #lost = new Set<string>()
  readonly #readers: ReturnType<typeof limitedQueue>
  #readingAhead = 0

  /** `bytes` is rounded to at least a few chunks. */
  constructor(source: ChunkSource, chunkSize: number, bytes: number) {
    this.#source = source
    this.#chunkSize = chunkSize
    this.#slots = Math.max(MIN_SLOTS, Math.floor(bytes / chunkSize))
    this.#memory = Buffer.allocUnsafeSlow(this.#slots * chunkSize)
    this.#free = Array.from({ length: this.#slots }, (_, slot) => slot)
    this.#readers = limitedQueue(Math.floor(this.#slots / 2 / this.groupSize))
  }

  get bytes(): number {
    return this.#memory.byteLength
  }

  /** The most chunks that take() may be asked for. */
  get groupSize(): number {
    return Math.max(2, Math.min(MIN_SLOTS / 2, Math.floor(this.#slots / 16)))
  }

  /**
   * Calls `use` with the bytes of each chunk, in order; they are valid only
   * within that call. Rejects with E_DAMAGED for a chunk that is lost, having
   * used none.
   */
  async take(
    wanted: readonly WantedChunk[],
    use: (bytes: Uint8Array, index: number) => void,
    signal: AbortSignal,
  ): Promise<void> {
    invariant(wanted.length <= this.groupSize, 'a reader asks for one group of chunks at a time')
    await this.#readers.add(async () => {
      throwIfAborted(signal)
      const entries = this.#hold(wanted)
      try {
        await this.#settled(entries)
        entries.forEach((entry, index) => use(this.#bytesOf(entry, wanted[index]?.length ?? 0), index))
      } finally {
        this.#release(entries)
      }
    })
  }

  /** Loads what of these is absent and returns at once; does nothing where there is no room for it. */
  prefetch(wanted: readonly WantedChunk[]): void {
    const absent = wanted.filter(chunk => {
      const key = keyOf(chunk.id)
      return !this.#entries.has(key) && !this.#lost.has(key)
    })
    if (absent.length === 0 || this.#readingAhead + absent.length > this.#slots / 2) return
    this.#readingAhead += absent.length
    const entries = this.#hold(absent)
    void this.#settled(entries)
      .catch(() => undefined) // Whoever needs it will be told.
      .finally(() => {
        this.#readingAhead -= absent.length
        this.#release(entries)
      })
  }

  /** Resolves when nothing is being read any more. */
  async idle(): Promise<void> {
    await this.#readers.onIdle()
    const loading = [...this.#entries.values()].map(entry => entry.loaded).filter(loaded => loaded !== undefined)
    await Promise.allSettled(loading)
  }

  /** Entries for these chunks that stay until let go; what is absent is being loaded. */
  #hold(wanted: readonly WantedChunk[]): Entry[] {
    const missing: { readonly chunk: WantedChunk; readonly entry: Entry }[] = []
    if (wanted.some(chunk => this.#lost.has(keyOf(chunk.id)))) throw lostChunk()
    const entries = wanted.map(chunk => {
      const key = keyOf(chunk.id)
      const known = this.#entries.get(key)
      if (known !== undefined) {
        this.#entries.delete(key)
        this.#entries.set(key, known)
        known.holders++
        return known
      }
      const entry: Entry = { key, slot: this.#slot(), holders: 1, loaded: undefined, isLost: false }
      this.#entries.set(key, entry)
      missing.push({ chunk, entry })
      return entry
    })
    if (missing.length > 0) this.#load(missing)
    return entries
  }

  #release(entries: readonly Entry[]): void {
    for (const entry of entries) {
      entry.holders--
      if (entry.isLost && entry.holders === 0) this.#free.push(entry.slot)
    }
  }

  #load(missing: readonly { readonly chunk: WantedChunk; readonly entry: Entry }[]): void {
    const ids = new Uint8Array(missing.length * ID_BYTES)
    const spans = new Uint32Array(missing.length * 2)
    missing.forEach(({ chunk, entry }, piece) => {
      ids.set(chunk.id, piece * ID_BYTES)
      spans.set([entry.slot * this.#chunkSize, chunk.length], piece * 2)
    })
    // Never aborted: others may wait for the same chunks.
    const loaded = this.#source.read(ids, this.#memory, spans, NEVER).then(
      () => {
        for (const { entry } of missing) entry.loaded = undefined
      },
      (error: unknown) => {
        const damage = asChunkDamage(error)
        missing.forEach(({ entry }, piece) => {
          entry.loaded = undefined
          if (damage !== undefined && !damage.includes(piece)) return
          entry.isLost = true
          if (damage !== undefined) this.#remember(entry.key)
          this.#entries.delete(entry.key)
        })
        throw error
      },
    )
    // Whoever waits looks at the entry, not at this.
    loaded.catch(() => undefined)
    for (const { entry } of missing) entry.loaded = loaded
  }

  async #settled(entries: readonly Entry[]): Promise<void> {
    let failure: unknown
    for (const entry of entries) {
      if (entry.loaded === undefined) continue
      await entry.loaded.catch((error: unknown) => (failure = error))
    }
    if (!entries.some(entry => entry.isLost)) return
    throw failure instanceof Error ? failure : lostChunk()
  }

  /** A slot that is free, or the longest unused. */
  #slot(): number {
    const free = this.#free.pop()
    if (free !== undefined) return free
    for (const [key, entry] of this.#entries) {
      if (entry.holders > 0) continue
      this.#entries.delete(key)
      return entry.slot
    }
    invariant(false, 'readers and reading ahead never hold all slots')
  }

  #bytesOf(entry: Entry, length: number): Uint8Array {
    const start = entry.slot * this.#chunkSize
    return this.#memory.subarray(start, start + length)
  }

  #remember(key: string): void {
    if (this.#lost.size >= MAX_LOST) this.#lost.clear()
    this.#lost.add(key)
  }
}

interface Entry {
  readonly key: string
  readonly slot: number
  /** Its slot must stay while there are any. */
  holders: number
  /** Until it is there. */
  loaded: Promise<void> | undefined
  isLost: boolean
}

const NEVER = new AbortController().signal

function keyOf(id: Uint8Array): string {
  return Buffer.from(id.buffer, id.byteOffset, id.byteLength).toString('latin1')
}

function lostChunk(): BackupError {
  return new BackupError('E_DAMAGED', 'the store lost a chunk of this disk')
}
