import { decodeList, encodeList, type ListShape } from './counted-list.js'
import { PACK_ID_BYTES } from './pack.js'
import { ID_BYTES } from './record.js'

const SHAPE: ListShape = {
  magic: 'VVDAMG01',
  headBytes: 0,
  entryBytes: PACK_ID_BYTES + ID_BYTES,
  what: 'the list of damage',
}

/** One copy of one id that verify could not read; a pack of zeroes: no pack has it. */
export interface DamagedCopy {
  readonly packId: Uint8Array
  readonly id: Uint8Array
}

/** Entries: pack id 16, id 32. */
export function encodeDamageList(copies: readonly DamagedCopy[]): Uint8Array {
  const entries = copies.map(({ packId, id }) => Buffer.concat([packId, id]))
  return encodeList(SHAPE, { head: new Uint8Array(0), entries })
}

/** Throws E_DAMAGED. */
export function decodeDamageList(bytes: Uint8Array): DamagedCopy[] {
  return decodeList(SHAPE, bytes).entries.map(entry => ({
    packId: entry.subarray(0, PACK_ID_BYTES),
    id: entry.subarray(PACK_ID_BYTES),
  }))
}
