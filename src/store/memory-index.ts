import type { PackState } from '../format/index-value.js'
import { INDEX_VALUE_BYTES } from '../format/index-value.js'
import { fromHex, sameBytes, toHex } from '../base/hex.js'
import { ID_BYTES } from '../format/record.js'
import type { ChunkIndex, IndexBatch, IndexPage } from './chunk-index.js'

const PAGE_ENTRIES = 4096

/** The index where no disk will take one: roughly 200 bytes of memory per chunk. */
export class MemoryIndex implements ChunkIndex {
  readonly #values = new Map<string, Uint8Array>()
  readonly #packs = new Map<string, PackState>()

  getMany(ids: Uint8Array): Promise<Uint8Array> {
    const count = ids.length / ID_BYTES
    const values = new Uint8Array(count * INDEX_VALUE_BYTES)
    for (let index = 0; index < count; index++) {
      const value = this.#values.get(idAt(ids, index))
      if (value !== undefined) values.set(value, index * INDEX_VALUE_BYTES)
    }
    return Promise.resolve(values)
  }

  putBatch(batch: IndexBatch): Promise<void> {
    for (let index = 0; index < batch.ids.length / ID_BYTES; index++) {
      this.#values.set(idAt(batch.ids, index), valueAt(batch.values, index).slice())
    }
    for (const pack of batch.packs) this.#packs.set(pack.id, pack.state)
    return Promise.resolve()
  }

  deleteBatch(ids: Uint8Array, values: Uint8Array): Promise<void> {
    for (let index = 0; index < ids.length / ID_BYTES; index++) {
      const present = this.#values.get(idAt(ids, index))
      if (present !== undefined && sameBytes(present, valueAt(values, index))) this.#values.delete(idAt(ids, index))
    }
    return Promise.resolve()
  }

  async *iterate(after?: Uint8Array): AsyncGenerator<IndexPage> {
    const first = after === undefined ? '' : toHex(after)
    const keys = [...this.#values.keys()].filter(key => key > first).sort()
    for (let from = 0; from < keys.length; from += PAGE_ENTRIES) {
      const page = keys.slice(from, from + PAGE_ENTRIES)
      const ids = new Uint8Array(page.length * ID_BYTES)
      const values = new Uint8Array(page.length * INDEX_VALUE_BYTES)
      page.forEach((key, index) => {
        ids.set(fromHex(key), index * ID_BYTES)
        values.set(this.#values.get(key) ?? new Uint8Array(INDEX_VALUE_BYTES), index * INDEX_VALUE_BYTES)
      })
      yield await Promise.resolve({ ids, values })
    }
  }

  packs(): Promise<ReadonlyMap<string, PackState>> {
    return Promise.resolve(new Map(this.#packs))
  }

  getPacks(packIds: readonly string[]): Promise<(PackState | undefined)[]> {
    return Promise.resolve(packIds.map(id => this.#packs.get(id)))
  }

  deletePacks(packIds: readonly string[]): Promise<void> {
    for (const id of packIds) this.#packs.delete(id)
    return Promise.resolve()
  }

  clear(): Promise<void> {
    this.#values.clear()
    this.#packs.clear()
    return Promise.resolve()
  }

  close(): Promise<void> {
    return Promise.resolve()
  }
}

function idAt(ids: Uint8Array, index: number): string {
  return toHex(ids.subarray(index * ID_BYTES, (index + 1) * ID_BYTES))
}

function valueAt(values: Uint8Array, index: number): Uint8Array {
  return values.subarray(index * INDEX_VALUE_BYTES, (index + 1) * INDEX_VALUE_BYTES)
}
