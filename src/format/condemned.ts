import { native } from '../native/binding.js'
import { expectIntact } from './damage.js'
import { PACK_ID_BYTES } from './pack.js'

const MAGIC = Buffer.from('VVCOND01', 'latin1')
const HEADER_BYTES = 32
const GENERATION_BYTES = 16
const VERSION = 1

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

/** magic 8, version u32, count u32, generation 16, pack ids, crc32c of all before. */
export function encodeCondemned(condemned: Condemned): Uint8Array {
  const bytes = new Uint8Array(HEADER_BYTES + condemned.packIds.length * PACK_ID_BYTES + 4)
  const view = new DataView(bytes.buffer)
  bytes.set(MAGIC, 0)
  view.setUint32(8, VERSION, true)
  view.setUint32(12, condemned.packIds.length, true)
  bytes.set(condemned.generation, 16)
  condemned.packIds.forEach((id, index) => bytes.set(id, HEADER_BYTES + index * PACK_ID_BYTES))
  view.setUint32(bytes.length - 4, native().crc32c(bytes.subarray(0, bytes.length - 4)), true)
  return bytes
}

/** Throws E_DAMAGED. */
export function decodeCondemned(bytes: Uint8Array): Condemned {
  const what = 'the condemned set'
  expectIntact(bytes.length >= HEADER_BYTES + 4, what, `${bytes.length} bytes`)
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  expectIntact(Buffer.compare(bytes.subarray(0, 8), MAGIC) === 0, what, 'wrong magic')
  const end = bytes.length - 4
  expectIntact(view.getUint32(end, true) === native().crc32c(bytes.subarray(0, end)), what, 'wrong checksum')
  expectIntact(view.getUint32(8, true) === VERSION, what, 'unknown version')
  const count = view.getUint32(12, true)
  expectIntact(count * PACK_ID_BYTES === end - HEADER_BYTES, what, 'wrong count')
  const packIds = Array.from({ length: count }, (_, index) =>
    bytes.slice(HEADER_BYTES + index * PACK_ID_BYTES, HEADER_BYTES + (index + 1) * PACK_ID_BYTES),
  )
  return { generation: bytes.slice(16, 16 + GENERATION_BYTES), packIds }
}
