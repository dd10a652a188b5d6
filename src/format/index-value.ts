import { native } from '../native/binding.js'
import { PACK_ID_BYTES } from './pack.js'
import { ID_BYTES } from './record.js'

/** LevelDB keys begin with one of these. */
export const INDEX_PREFIX = { chunk: 0x63, pack: 0x70 } as const // 'c', 'p'

export const INDEX_VALUE_BYTES = 40
/** Of the checksum in a value: its last four bytes. */
const SUM_AT = 36
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

/** The value of one id, as encodePlaces() makes them. */
export function encodePlace(id: Uint8Array, place: Place): Uint8Array {
  return encodePlaces(id, [place], place.packId)
}

/**
 * Values of `ids` (32 bytes each), 40 bytes each, all in one pack. A value's
 * checksum covers its id too, so that a value under a wrong key counts as bad.
 */
export function encodePlaces(
  ids: Uint8Array,
  places: readonly Omit<Place, 'packId'>[],
  packId: Uint8Array,
): Uint8Array {
  const bytes = new Uint8Array(places.length * INDEX_VALUE_BYTES)
  const view = new DataView(bytes.buffer)
  let at = 0
  for (const place of places) {
    bytes.set(packId, at)
    view.setUint32(at + 16, place.offset % 2 ** 32, true)
    view.setUint16(at + 20, Math.floor(place.offset / 2 ** 32), true)
    view.setUint32(at + 22, place.storedLength, true)
    view.setUint32(at + 26, place.plainLength, true)
    view.setUint32(at + 30, place.record, true)
    view.setUint8(at + 34, place.kind)
    view.setUint8(at + 35, place.flags)
    at += INDEX_VALUE_BYTES
  }
  for (const [row, sum] of native().indexSums(ids, bytes).entries()) {
    view.setUint32(row * INDEX_VALUE_BYTES + SUM_AT, sum, true)
  }
  return bytes
}

/** undefined where the value is not what was written under this id. */
export function decodePlace(id: Uint8Array, bytes: Uint8Array): Place | undefined {
  if (id.length !== ID_BYTES || bytes.length !== INDEX_VALUE_BYTES) return undefined
  return decodePlaces(id, bytes)[0]
}

/**
 * One place per id (32 bytes each) from its value (40 bytes each); undefined
 * where the value is not what was written under this id. Neighbours in one pack
 * share one `packId`.
 */
export function decodePlaces(ids: Uint8Array, values: Uint8Array): (Place | undefined)[] {
  const sums = native().indexSums(ids, values)
  const view = new DataView(values.buffer, values.byteOffset, values.length)
  let last: { readonly at: number; readonly packId: Uint8Array } | undefined
  const places: (Place | undefined)[] = []
  for (let row = 0, at = 0; row < sums.length; row++, at += INDEX_VALUE_BYTES) {
    if (view.getUint32(at + SUM_AT, true) !== sums[row]) {
      places.push(undefined)
      continue
    }
    if (last === undefined || !isSamePack(view, at, last.at)) {
      last = { at, packId: values.subarray(at, at + PACK_ID_BYTES) }
    }
    places.push({
      packId: last.packId,
      offset: view.getUint32(at + 16, true) + view.getUint16(at + 20, true) * 2 ** 32,
      storedLength: view.getUint32(at + 22, true),
      plainLength: view.getUint32(at + 26, true),
      record: view.getUint32(at + 30, true),
      kind: view.getUint8(at + 34),
      flags: view.getUint8(at + 35),
    })
  }
  return places
}

function isSamePack(view: DataView, a: number, b: number): boolean {
  for (let byte = 0; byte < PACK_ID_BYTES; byte += 4) {
    if (view.getUint32(a + byte) !== view.getUint32(b + byte)) return false
  }
  return true
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
