import { createCipheriv } from 'node:crypto'
import { type FileHandle, open } from 'node:fs/promises'

export const KIB = 1024
export const MIB = 1024 * KIB
export const GIB = 1024 * MIB

/** Bytes are laid out in stripes of this size, each of one kind. */
const STRIPE = MIB
/** Unique marks are this far apart, so that no two 4 KiB blocks of text-like stripes are equal. */
const MARK_SPACING = 4 * KIB
const TEXT_POOL = 8 * MIB

/** What stripe follows stripe: of each 16, 6 hold data and 10 are holes, as on a disk that is 3/8 full. */
const PATTERN = ['random', 'text', 'text', 'random', 'text', 'again'] as const
const PATTERN_STRIPES = 16

export interface DiskImage {
  readonly path: string
  readonly size: number
  /** Bytes written, the rest are holes. */
  readonly dataBytes: number
}

/**
 * Writes a sparse raw file that depends on `size` and `seed` alone. Of every
 * 16 MiB 6 are written: 2 random, 3 text-like (about 3 to 1 under zstd-1), and
 * one in turn zeros or what a stripe before it has.
 */
export async function makeDisk(path: string, size: number, seed: number): Promise<DiskImage> {
  const file = await open(path, 'w')
  let dataBytes = 0
  try {
    await file.truncate(size)
    const maker = new StripeMaker(seed)
    for (let at = 0; at < size; at += STRIPE) {
      const kind = PATTERN[(at / STRIPE) % PATTERN_STRIPES]
      if (kind === undefined) continue
      await write(file, maker.make(kind, at / STRIPE).subarray(0, Math.min(STRIPE, size - at)), at)
      dataBytes += Math.min(STRIPE, size - at)
    }
  } finally {
    await file.close()
  }
  return { path, size, dataBytes }
}

export interface Change {
  readonly offset: number
  readonly length: number
}

/**
 * Places of `fraction` of the 64 KiB blocks of a disk: each alone, evenly but
 * not regularly spread, or in eight clusters.
 */
export function chooseChanges(size: number, fraction: number, layout: 'scattered' | 'clustered'): Change[] {
  const block = 64 * KIB
  const blocks = Math.floor(size / block)
  const wanted = Math.round(blocks * fraction)
  if (wanted === 0) return []
  if (layout === 'clustered') {
    const clusters = Math.min(8, wanted)
    const length = Math.floor(wanted / clusters) * block
    const step = Math.floor(blocks / clusters) * block
    return Array.from({ length: clusters }, (_, i) => ({ offset: i * step, length }))
  }
  const step = blocks / wanted
  const next = numbers(wanted)
  return Array.from({ length: wanted }, (_, i) => ({
    offset: Math.floor(i * step + next() * Math.max(0, step - 1)) * block,
    length: block,
  }))
}

/** Text-like bytes for changes: half of a changed block is new, as when a few pages of it were written. */
export function changeBytes(length: number, seed: number): Buffer {
  const bytes = Buffer.allocUnsafe(length)
  const maker = new StripeMaker(seed)
  for (let at = 0, stripe = 0; at < length; at += STRIPE, stripe++) {
    maker.make(stripe % 2 === 0 ? 'text' : 'random', stripe).copy(bytes, at)
  }
  return bytes
}

async function write(file: FileHandle, bytes: Uint8Array, at: number): Promise<void> {
  const { bytesWritten } = await file.write(bytes, 0, bytes.length, at)
  if (bytesWritten !== bytes.length) throw new Error('no room for the data of the benchmark')
}

class StripeMaker {
  readonly #seed: number
  readonly #pool: Buffer
  readonly #stripe = Buffer.allocUnsafe(STRIPE)

  constructor(seed: number) {
    this.#seed = seed
    this.#pool = textPool()
  }

  make(kind: (typeof PATTERN)[number], index: number): Buffer {
    switch (kind) {
      case 'random':
        return this.#random(index)
      case 'text':
        return this.#text(index)
      case 'again':
        // In turn allocated zeros and what the second stripe before holds.
        return Math.floor(index / PATTERN_STRIPES) % 2 === 0 ? this.#stripe.fill(0) : this.#random(index - 2)
    }
  }

  #random(index: number): Buffer {
    const key = Buffer.alloc(16)
    key.writeUInt32LE(this.#seed, 0)
    key.writeUInt32LE(index, 4)
    return createCipheriv('aes-128-ctr', key, Buffer.alloc(16)).update(Buffer.alloc(STRIPE))
  }

  #text(index: number): Buffer {
    const from = (index * 40_503) % (TEXT_POOL - STRIPE)
    this.#pool.copy(this.#stripe, 0, from, from + STRIPE)
    for (let at = 0; at < STRIPE; at += MARK_SPACING) {
      this.#stripe.write(`${this.#seed}/${index}/${at} `, at, 'latin1')
    }
    return this.#stripe
  }
}

let pool: Buffer | undefined

/** Lines as logs and tables have them: words that repeat, numbers that do not. */
function textPool(): Buffer {
  if (pool !== undefined) return pool
  pool = Buffer.alloc(TEXT_POOL)
  const next = numbers(7)
  for (let at = 0; at < pool.length; ) {
    const id = Math.floor(next() * 2 ** 48).toString(16)
    const line = `2026-11-20T02:${Math.floor(next() * 60)}:11 web${Math.floor(next() * 7)} nginx[${Math.floor(next() * 9999)}]: GET /api/${id}/items?page=${Math.floor(next() * 91)} 200 ms\n`
    at += pool.write(line, at, 'latin1')
  }
  return pool
}

/** Numbers in [0, 1) that depend on the seed alone (mulberry32). */
export function numbers(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}
