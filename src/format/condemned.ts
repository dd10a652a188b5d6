import { decodeList, encodeList, type ListShape } from './counted-list.js'
import { PACK_ID_BYTES } from './pack.js'

const SHAPE: ListShape = { magic: 'VVCOND01', headBytes: 16, entryBytes: PACK_ID_BYTES, what: 'the condemned set' }

/**
 * jobs/condemned: packs that a gc is about to rewrite or delete. A draft that
 * begins after it was published treats everything in them as absent.
 */
export interface Condemned {
  /** 16 random bytes, new with every publication. */
  readonly generation: Uint8Array
  /** 16 bytes each. */
  readonly packIds: readonly Uint8Array[]
}

/** The generation is the head of the list, the pack ids are its entries. */
export function encodeCondemned({ generation, packIds }: Condemned): Uint8Array {
  return encodeList(SHAPE, { head: generation, entries: packIds })
}

/** Throws E_DAMAGED. */
export function decodeCondemned(bytes: Uint8Array): Condemned {
  const { head, entries } = decodeList(SHAPE, bytes)
  return { generation: head, packIds: entries }
}
