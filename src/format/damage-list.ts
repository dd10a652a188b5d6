import { native } from '../native/binding.js'
import { expectIntact } from './damage.js'
import { PACK_ID_BYTES } from './pack.js'
import { ID_BYTES } from './record.js'

const MAGIC = Buffer.from('VVDAMG01', 'latin1')
const HEADER_BYTES = 16
const ENTRY_BYTES = PACK_ID_BYTES + ID_BYTES
const VERSION = 1

/** One copy of one id that verify could not read; a pack of zeroes: no pack has it. */
export interface DamagedCopy {
  readonly packId: Uint8Array
  readonly id: Uint8Array
}

/** magic 8, version u32, count u32, (pack id 16, id 32) each, crc32c of all before. */
export function encodeDamageList(copies: readonly DamagedCopy[]): Uint8Array {
  const bytes = new Uint8Array(HEADER_BYTES + copies.length * ENTRY_BYTES + 4)
  const view = new DataView(bytes.buffer)
  bytes.set(MAGIC, 0)
  view.setUint32(8, VERSION, true)
  view.setUint32(12, copies.length, true)
  copies.forEach(({ packId, id }, index) => {
    bytes.set(packId, HEADER_BYTES + index * ENTRY_BYTES)
    bytes.set(id, HEADER_BYTES + index * ENTRY_BYTES + PACK_ID_BYTES)
  })
  view.setUint32(bytes.length - 4, native().crc32c(bytes.subarray(0, bytes.length - 4)), true)
  return bytes
}

/** Throws E_DAMAGED. */
export function decodeDamageList(bytes: Uint8Array): DamagedCopy[] {
  const what = 'the list of damage'
  expectIntact(bytes.length >= HEADER_BYTES + 4, what, `${bytes.length} bytes`)
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  expectIntact(Buffer.compare(bytes.subarray(0, 8), MAGIC) === 0, what, 'wrong magic')
  const end = bytes.length - 4
  expectIntact(view.getUint32(end, true) === native().crc32c(bytes.subarray(0, end)), what, 'wrong checksum')
  expectIntact(view.getUint32(8, true) === VERSION, what, 'unknown version')
  const count = view.getUint32(12, true)
  expectIntact(count * ENTRY_BYTES === end - HEADER_BYTES, what, 'wrong count')
  return Array.from({ length: count }, (_, index) => {
    const at = HEADER_BYTES + index * ENTRY_BYTES
    return { packId: bytes.slice(at, at + PACK_ID_BYTES), id: bytes.slice(at + PACK_ID_BYTES, at + ENTRY_BYTES) }
  })
}
