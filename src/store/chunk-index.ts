import type { PackState } from '../format/index-value.js'

/**
 * Maps ids to places, in batches. A cache: what it says may be stale, wrong or
 * missing, and is checked by whoever uses it (pack-table.ts).
 *
 * `ids` hold 32 bytes per entry, `values` INDEX_VALUE_BYTES per entry, in the
 * same order. Rejects with IndexBrokenError where it cannot be read or written.
 */
export interface ChunkIndex {
  /** Values of `ids`; zeroes where there is none. */
  getMany(ids: Uint8Array): Promise<Uint8Array>

  /** Replaces what was there. Synced; no pack's state is ever there without the entries that came with it. */
  putBatch(batch: IndexBatch): Promise<void>

  /** Deletes the entries that still have exactly this value. */
  deleteBatch(ids: Uint8Array, values: Uint8Array): Promise<void>

  /** Pages of entries in id order, from the first id after `after`. Not all of one moment: others write meanwhile. */
  iterate(after?: Uint8Array): AsyncIterable<IndexPage>

  /** Every pack with entries, by id in hex. States that are damaged are left out. */
  packs(): Promise<ReadonlyMap<string, PackState>>

  /** States of some packs; undefined where unknown or damaged. */
  getPacks(packIds: readonly string[]): Promise<(PackState | undefined)[]>

  deletePacks(packIds: readonly string[]): Promise<void>

  /** Forgets everything; what the packs have may be back already when it resolves. */
  clear(): Promise<void>

  close(): Promise<void>
}

export interface IndexBatch {
  readonly ids: Uint8Array
  readonly values: Uint8Array
  /** Packs whose entries these are. */
  readonly packs: readonly { readonly id: string; readonly state: PackState }[]
}

export interface IndexPage {
  readonly ids: Uint8Array
  readonly values: Uint8Array
}

/** The index cannot be used; it must be rebuilt. Never reaches a user. */
export class IndexBrokenError extends Error {
  /** unwritable: its disk is full or may not be written; it may be whole. */
  readonly kind: 'damaged' | 'unwritable'

  constructor(kind: 'damaged' | 'unwritable', cause: unknown) {
    super('the index cannot be used', { cause })
    this.name = 'IndexBrokenError'
    this.kind = kind
  }
}

/** Another process holds the index. */
export class IndexHeldError extends Error {
  constructor(cause: unknown) {
    super('another process has the index open', { cause })
    this.name = 'IndexHeldError'
  }
}
