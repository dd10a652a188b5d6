import { Level } from 'level'

import { limitedQueue } from '../base/async.js'
import { fromHex, sameBytes, toHex } from '../base/hex.js'
import {
  INDEX_PREFIX,
  INDEX_VALUE_BYTES,
  type PackState,
  decodePackState,
  encodePackState,
} from '../format/index-value.js'
import { PACK_ID_BYTES } from '../format/pack.js'
import { ID_BYTES } from '../format/record.js'
import { type ChunkIndex, type IndexBatch, IndexBrokenError, IndexHeldError, type IndexPage } from './chunk-index.js'

const CACHE_BYTES = 32 * 1024 * 1024
const WRITE_BUFFER_BYTES = 16 * 1024 * 1024
const PAGE_ENTRIES = 4096
/** Ids and pack ids do not compress. */
const COMPRESSION = false
/**
 * LevelDB maps every table that it has open (2 MiB each, the first 1000): of
 * 20 million chunks 1.4 GiB became resident. This is the least that it takes,
 * and leaves 64 tables. A random look-up in a store with more tables costs 45
 * instead of 10 µs of CPU time (20 million chunks, 2026-11, 2 cores).
 */
const MAX_OPEN_FILES = 74

type Database = Level<Uint8Array, Uint8Array>

/** The index in LevelDB. One process per directory. */
export class LevelIndex implements ChunkIndex {
  readonly #database: Database
  readonly #afterClose: (() => Promise<void>) | undefined
  /** One at a time: nothing may be put between deleteBatch's look and its deletion. */
  readonly #writes = limitedQueue(1)

  private constructor(database: Database, afterClose: (() => Promise<void>) | undefined) {
    this.#database = database
    this.#afterClose = afterClose
  }

  /** Creates it where absent. Rejects with IndexHeldError or IndexBrokenError. */
  static async open(directory: string, afterClose?: () => Promise<void>): Promise<LevelIndex> {
    const database: Database = new Level(directory, {
      keyEncoding: 'view',
      valueEncoding: 'view',
      cacheSize: CACHE_BYTES,
      writeBufferSize: WRITE_BUFFER_BYTES,
      compression: COMPRESSION,
      maxOpenFiles: MAX_OPEN_FILES,
    })
    try {
      await database.open()
    } catch (error) {
      throw causeCode(error) === 'LEVEL_LOCKED' ? new IndexHeldError(error) : broken(error)
    }
    return new LevelIndex(database, afterClose)
  }

  async getMany(ids: Uint8Array): Promise<Uint8Array> {
    const count = ids.length / ID_BYTES
    const keys = Array.from({ length: count }, (_, index) => chunkKey(ids, index))
    const found = await guarded(() => this.#database.getMany(keys))
    const values = new Uint8Array(count * INDEX_VALUE_BYTES)
    found.forEach((value, index) => {
      if (value?.length === INDEX_VALUE_BYTES) values.set(value, index * INDEX_VALUE_BYTES)
    })
    return values
  }

  async putBatch(batch: IndexBatch): Promise<void> {
    const entries = this.#database.batch()
    for (let index = 0; index < batch.ids.length / ID_BYTES; index++) {
      entries.put(
        chunkKey(batch.ids, index),
        batch.values.subarray(index * INDEX_VALUE_BYTES, (index + 1) * INDEX_VALUE_BYTES),
      )
    }
    for (const pack of batch.packs) entries.put(packKey(pack.id), encodePackState(fromHex(pack.id), pack.state))
    await this.#writes.add(() => guarded(() => entries.write({ sync: true })))
  }

  async deleteBatch(ids: Uint8Array, values: Uint8Array): Promise<void> {
    await this.#writes.add(() => this.#deleteSame(ids, values))
  }

  async #deleteSame(ids: Uint8Array, values: Uint8Array): Promise<void> {
    const present = await this.getMany(ids)
    const entries = this.#database.batch()
    for (let index = 0; index < ids.length / ID_BYTES; index++) {
      const [from, to] = [index * INDEX_VALUE_BYTES, (index + 1) * INDEX_VALUE_BYTES]
      if (sameBytes(present.subarray(from, to), values.subarray(from, to))) entries.del(chunkKey(ids, index))
    }
    await guarded(() => entries.write({ sync: true }))
  }

  async *iterate(after?: Uint8Array): AsyncGenerator<IndexPage> {
    const iterator = this.#database.iterator({
      gt: after === undefined ? Uint8Array.of(INDEX_PREFIX.chunk) : chunkKey(after, 0),
      lt: Uint8Array.of(INDEX_PREFIX.chunk + 1),
      fillCache: false,
      highWaterMarkBytes: 1024 * 1024,
    })
    try {
      for (;;) {
        const found = await guarded(() => iterator.nextv(PAGE_ENTRIES))
        if (found.length === 0) return
        const entries = found.filter(
          ([key, value]) => key.length === 1 + ID_BYTES && value.length === INDEX_VALUE_BYTES,
        )
        const ids = new Uint8Array(entries.length * ID_BYTES)
        const values = new Uint8Array(entries.length * INDEX_VALUE_BYTES)
        entries.forEach(([key, value], index) => {
          ids.set(key.subarray(1), index * ID_BYTES)
          values.set(value, index * INDEX_VALUE_BYTES)
        })
        yield { ids, values }
      }
    } finally {
      await iterator.close()
    }
  }

  packs(): Promise<ReadonlyMap<string, PackState>> {
    return this.#readPacks(undefined, -1)
  }

  /** Some states in the order of their ids, the first after `after`; empty at the end. */
  packPage(after: string | undefined): Promise<ReadonlyMap<string, PackState>> {
    return this.#readPacks(after, PAGE_ENTRIES)
  }

  async #readPacks(after: string | undefined, limit: number): Promise<ReadonlyMap<string, PackState>> {
    const packs = new Map<string, PackState>()
    const gt = after === undefined ? Uint8Array.of(INDEX_PREFIX.pack) : packKey(after)
    const found = await guarded(() =>
      this.#database.iterator({ gt, lt: Uint8Array.of(INDEX_PREFIX.pack + 1), limit }).all(),
    )
    for (const [key, value] of found) {
      const id = key.subarray(1)
      const state = id.length === PACK_ID_BYTES ? decodePackState(id, value) : undefined
      if (state !== undefined) packs.set(toHex(id), state)
    }
    return packs
  }

  async getPacks(packIds: readonly string[]): Promise<(PackState | undefined)[]> {
    const found = await guarded(() => this.#database.getMany(packIds.map(packKey)))
    return packIds.map((id, index) => {
      const value = found[index]
      return value === undefined ? undefined : decodePackState(fromHex(id), value)
    })
  }

  async deletePacks(packIds: readonly string[]): Promise<void> {
    const entries = this.#database.batch()
    for (const id of packIds) entries.del(packKey(id))
    await guarded(() => entries.write({ sync: true }))
  }

  clear(): Promise<void> {
    return guarded(() => this.#database.clear())
  }

  async close(): Promise<void> {
    await this.#database.close()
    await this.#afterClose?.()
  }
}

function chunkKey(ids: Uint8Array, index: number): Uint8Array {
  const key = new Uint8Array(1 + ID_BYTES)
  key[0] = INDEX_PREFIX.chunk
  key.set(ids.subarray(index * ID_BYTES, (index + 1) * ID_BYTES), 1)
  return key
}

function packKey(packId: string): Uint8Array {
  const key = new Uint8Array(1 + PACK_ID_BYTES)
  key[0] = INDEX_PREFIX.pack
  key.set(fromHex(packId), 1)
  return key
}

async function guarded<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work()
  } catch (error) {
    throw broken(error)
  }
}

/** LevelDB tells a full or forbidden disk from a broken database by its words alone. */
function broken(error: unknown): IndexBrokenError {
  const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error
  const text = cause instanceof Error ? cause.message : String(cause)
  const unwritable = /No space left|Disk quota|Read-only|Permission denied|Too many open files/.test(text)
  return new IndexBrokenError(unwritable ? 'unwritable' : 'damaged', cause)
}

function causeCode(error: unknown): string | undefined {
  const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error
  return cause instanceof Error && 'code' in cause && typeof cause.code === 'string' ? cause.code : undefined
}
