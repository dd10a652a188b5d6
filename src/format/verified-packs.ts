import { native } from '../native/binding.js'
import { fromHex, toHex } from '../base/hex.js'
import { expectIntact } from './damage.js'
import { PACK_ID_BYTES } from './pack.js'

const MAGIC = Buffer.from('VVVRFY01', 'latin1')
const HEADER_BYTES = 16
const ENTRY_BYTES = PACK_ID_BYTES + 8
const VERSION = 1

/** When each pack (id in hex) was last read as a whole, in wall-clock milliseconds. */
export type VerifiedPacks = ReadonlyMap<string, number>

/** magic 8, version u32, count u32, (pack id 16, milliseconds f64) each, crc32c of all before. */
export function encodeVerifiedPacks(packs: VerifiedPacks): Uint8Array {
  const bytes = new Uint8Array(HEADER_BYTES + packs.size * ENTRY_BYTES + 4)
  const view = new DataView(bytes.buffer)
  bytes.set(MAGIC, 0)
  view.setUint32(8, VERSION, true)
  view.setUint32(12, packs.size, true)
  let at = HEADER_BYTES
  for (const [id, time] of packs) {
    bytes.set(fromHex(id), at)
    view.setFloat64(at + PACK_ID_BYTES, time, true)
    at += ENTRY_BYTES
  }
  view.setUint32(at, native().crc32c(bytes.subarray(0, at)), true)
  return bytes
}

/** Throws E_DAMAGED. */
export function decodeVerifiedPacks(bytes: Uint8Array): VerifiedPacks {
  const what = 'the list of verified packs'
  expectIntact(bytes.length >= HEADER_BYTES + 4, what, `${bytes.length} bytes`)
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  expectIntact(Buffer.compare(bytes.subarray(0, 8), MAGIC) === 0, what, 'wrong magic')
  const end = bytes.length - 4
  expectIntact(view.getUint32(end, true) === native().crc32c(bytes.subarray(0, end)), what, 'wrong checksum')
  expectIntact(view.getUint32(8, true) === VERSION, what, 'unknown version')
  const count = view.getUint32(12, true)
  expectIntact(count * ENTRY_BYTES === end - HEADER_BYTES, what, 'wrong count')
  const packs = new Map<string, number>()
  for (let at = HEADER_BYTES; at < end; at += ENTRY_BYTES) {
    const time = view.getFloat64(at + PACK_ID_BYTES, true)
    expectIntact(Number.isSafeInteger(time) && time >= 0, what, 'a time that is none')
    packs.set(toHex(bytes.subarray(at, at + PACK_ID_BYTES)), time)
  }
  return packs
}
