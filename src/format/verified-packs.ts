import { fromHex, toHex } from '../base/hex.js'
import { decodeList, encodeList, type ListShape } from './counted-list.js'
import { expectIntact } from './damage.js'
import { PACK_ID_BYTES } from './pack.js'

const SHAPE: ListShape = {
  magic: 'VVVRFY01',
  headBytes: 0,
  entryBytes: PACK_ID_BYTES + 8,
  what: 'the list of verified packs',
}

/** When each pack (id in hex) was last read as a whole, in wall-clock milliseconds. */
export type VerifiedPacks = ReadonlyMap<string, number>

/** Entries: pack id 16, milliseconds f64. */
export function encodeVerifiedPacks(packs: VerifiedPacks): Uint8Array {
  const entries = Array.from(packs, ([id, time]) => {
    const entry = Buffer.alloc(SHAPE.entryBytes)
    entry.set(fromHex(id))
    entry.writeDoubleLE(time, PACK_ID_BYTES)
    return entry
  })
  return encodeList(SHAPE, { head: new Uint8Array(0), entries })
}

/** Throws E_DAMAGED. */
export function decodeVerifiedPacks(bytes: Uint8Array): VerifiedPacks {
  const packs = new Map<string, number>()
  for (const entry of decodeList(SHAPE, bytes).entries) {
    const time = Buffer.from(entry.buffer, entry.byteOffset, entry.length).readDoubleLE(PACK_ID_BYTES)
    expectIntact(Number.isSafeInteger(time) && time >= 0, SHAPE.what, 'a time that is none')
    packs.set(toHex(entry.subarray(0, PACK_ID_BYTES)), time)
  }
  return packs
}
