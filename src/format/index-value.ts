import { native } from '../native/binding.js'
import { ID_BYTES } from './record.js'

/** LevelDB keys begin with one of these. */
export const INDEX_PREFIX = { chunk: 0x63, pack: 0x70 } as const // 'c', 'p'

export const INDEX_VALUE_BYTES = 40
export const PACK_STATE_BYTES = 16

/** Where a record lies. */
export interface Place {
  readonly packId: Uint8Array
  /** Of the record's header in the pack. */
  readonly offset: number
  /** Payload as stored, without the record's header. */
  readonly storedLength: number
  readonly plainLength: number
  readonly record: number
  readonly kind: number
  readonly flags: number
}

/** The value's checksum covers `id` too, so that a value under a wrong key counts as bad. */
export function encodePlace(id: Uint8Array, place: Place): Uint8Array {
  const bytes = new Uint8Array(INDEX_VALUE_BYTES)
  const view = new DataView(bytes.buffer)
  bytes.set(place.packId, 0)
  view.setUint32(16, place.offset % 2 ** 32, true)
  view.setUint16(20, Math.floor(place.offset / 2 ** 32), true)
  view.setUint32(22, place.storedLength, true)
  view.setUint32(26, place.plainLength, true)
  view.setUint32(30, place.record, true)
  view.setUint8(34, place.kind)
  view.setUint8(35, place.flags)
  view.setUint32(36, checksum(id, bytes.subarray(0, 36)), true)
  return bytes
}

/** undefined where the value is not what was written under this id. */
export function decodePlace(id: Uint8Array, bytes: Uint8Array): Place | undefined {
  if (id.length !== ID_BYTES || bytes.length !== INDEX_VALUE_BYTES) return undefined
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  if (view.getUint32(36, true) !== checksum(id, bytes.subarray(0, 36))) return undefined
  return {
    packId: bytes.subarray(0, 16),
    offset: view.getUint32(16, true) + view.getUint16(20, true) * 2 ** 32,
    storedLength: view.getUint32(22, true),
    plainLength: view.getUint32(26, true),
    record: view.getUint32(30, true),
    kind: view.getUint8(34),
    flags: view.getUint8(35),
  }
}

/** What the index knows of a pack; written in one batch with the pack's entries. */
export interface PackState {
  /** Bytes of the sealed file. */
  readonly size: number
  readonly entryCount: number
  readonly kind: number
  /** false: taken from a pack without a valid footer. Readable, never relied on by a new point. */
  readonly sealed: boolean
}

export function encodePackState(packId: Uint8Array, state: PackState): Uint8Array {
  const bytes = new Uint8Array(PACK_STATE_BYTES)
  const view = new DataView(bytes.buffer)
  view.setUint32(0, state.size % 2 ** 32, true)
  view.setUint16(4, Math.floor(state.size / 2 ** 32), true)
  view.setUint8(6, state.kind)
  view.setUint8(7, state.sealed ? 1 : 0)
  view.setUint32(8, state.entryCount, true)
  view.setUint32(12, checksum(packId, bytes.subarray(0, 12)), true)
  return bytes
}

/** undefined where the value is not what was written under this pack. */
export function decodePackState(packId: Uint8Array, bytes: Uint8Array): PackState | undefined {
  if (bytes.length !== PACK_STATE_BYTES) return undefined
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  if (view.getUint32(12, true) !== checksum(packId, bytes.subarray(0, 12))) return undefined
  return {
    size: view.getUint32(0, true) + view.getUint16(4, true) * 2 ** 32,
    entryCount: view.getUint32(8, true),
    kind: view.getUint8(6),
    sealed: view.getUint8(7) === 1,
  }
}

function checksum(key: Uint8Array, value: Uint8Array): number {
  const codec = native()
  return codec.crc32c(value, codec.crc32c(key))
}
