import type { ChunkIndex, IndexBatch, IndexPage } from '../../src/store/chunk-index.js'
import type { IndexProvider } from '../../src/store/index-holder.js'
import { MemoryIndex } from '../../src/store/memory-index.js'
import type { PackState } from '../../src/format/index-value.js'

/** A memory index that asks before each of its changes. */
export class MeteredIndex implements ChunkIndex {
  readonly inner: ChunkIndex
  readonly #beforeChange: () => void

  /** `beforeChange` may throw: then nothing is changed. */
  constructor(inner: ChunkIndex, beforeChange: () => void) {
    this.inner = inner
    this.#beforeChange = beforeChange
  }

  getMany(ids: Uint8Array): Promise<Uint8Array> {
    return this.inner.getMany(ids)
  }

  putBatch(batch: IndexBatch): Promise<void> {
    return this.#changed(() => this.inner.putBatch(batch))
  }

  deleteBatch(ids: Uint8Array, values: Uint8Array): Promise<void> {
    return this.#changed(() => this.inner.deleteBatch(ids, values))
  }

  iterate(after?: Uint8Array): AsyncIterable<IndexPage> {
    return this.inner.iterate(after)
  }

  packs(): Promise<ReadonlyMap<string, PackState>> {
    return this.inner.packs()
  }

  getPacks(packIds: readonly string[]): Promise<(PackState | undefined)[]> {
    return this.inner.getPacks(packIds)
  }

  deletePacks(packIds: readonly string[]): Promise<void> {
    return this.#changed(() => this.inner.deletePacks(packIds))
  }

  clear(): Promise<void> {
    return this.#changed(() => this.inner.clear())
  }

  close(): Promise<void> {
    return this.inner.close()
  }

  async #changed(work: () => Promise<void>): Promise<void> {
    await Promise.resolve()
    this.#beforeChange()
    await work()
  }
}

/** Gives the same index to whoever opens it. */
export function providerOf(index: ChunkIndex): IndexProvider {
  return {
    open: () => Promise.resolve(index),
    destroy: () => index.clear(),
    openTemporary: () => Promise.resolve(new MemoryIndex()),
  }
}

/** Another one with the same entries. */
export async function copyOf(index: ChunkIndex): Promise<MemoryIndex> {
  const copy = new MemoryIndex()
  for await (const page of index.iterate()) await copy.putBatch({ ...page, packs: [] })
  const packs = Array.from(await index.packs(), ([id, state]) => ({ id, state }))
  await copy.putBatch({ ids: new Uint8Array(0), values: new Uint8Array(0), packs })
  return copy
}
