import { sameBytes } from '../base/hex.js'
import { native } from '../native/binding.js'
import { damaged, expectIntact } from './damage.js'
import { ID_BYTES, MAX_RECORD_BYTES, RECORD_FLAG, RECORD_HEADER_BYTES, RECORD_KIND, TAG_BYTES } from './record.js'

export const PACK_KIND = { data: 1, meta: 2 } as const
export type PackKind = (typeof PACK_KIND)[keyof typeof PACK_KIND]

export const PACK_VERSION = 1
export const PACK_HEADER_BYTES = 96
export const PACK_ENTRY_BYTES = 56
export const PACK_TRAILER_BYTES = 48
export const PACK_ID_BYTES = 16
export const SALT_BYTES = 32

/** A pack is never larger: the size target plus one record of the largest kind, with room to spare. */
const MAX_PACK_BYTES = 2 ** 40
const HEADER_MAGIC = 0x31304b4341505656n // "VVPACK01"
const TRAILER_MAGIC = 0x31444e454b505656n // "VVPKEND1"
const FLAG_ENCRYPTED = 1

export interface PackHeader {
  readonly kind: PackKind
  readonly encrypted: boolean
  readonly storeId: Uint8Array
  readonly packId: Uint8Array
  /** Random in encrypted stores, zero otherwise. */
  readonly salt: Uint8Array
}

export function encodePackHeader(header: PackHeader): Uint8Array {
  const bytes = new Uint8Array(PACK_HEADER_BYTES)
  const view = new DataView(bytes.buffer)
  view.setBigUint64(0, HEADER_MAGIC, true)
  view.setUint16(8, PACK_VERSION, true)
  view.setUint8(10, header.kind)
  view.setUint8(11, header.encrypted ? FLAG_ENCRYPTED : 0)
  view.setUint32(12, PACK_HEADER_BYTES, true)
  bytes.set(header.storeId, 16)
  bytes.set(header.packId, 32)
  bytes.set(header.salt, 48)
  view.setUint32(92, native().crc32c(bytes.subarray(0, 92)), true)
  return bytes
}

/** Throws E_DAMAGED. */
export function decodePackHeader(bytes: Uint8Array): PackHeader {
  const what = 'a pack header'
  expectIntact(bytes.length === PACK_HEADER_BYTES, what, `${bytes.length} bytes`)
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  expectIntact(view.getBigUint64(0, true) === HEADER_MAGIC, what, 'wrong magic')
  expectIntact(view.getUint32(92, true) === native().crc32c(bytes.subarray(0, 92)), what, 'wrong checksum')
  expectIntact(view.getUint16(8, true) === PACK_VERSION, what, `unknown version ${view.getUint16(8, true)}`)
  const kind = view.getUint8(10)
  expectIntact(kind === PACK_KIND.data || kind === PACK_KIND.meta, what, `unknown kind ${kind}`)
  const flags = view.getUint8(11)
  expectIntact(flags <= FLAG_ENCRYPTED, what, `unknown flags ${flags}`)
  expectIntact(view.getUint32(12, true) === PACK_HEADER_BYTES, what, 'wrong header length')
  expectIntact(
    bytes.subarray(80, 92).every(byte => byte === 0),
    what,
    'reserved bytes are set',
  )
  return {
    kind,
    encrypted: flags === FLAG_ENCRYPTED,
    storeId: bytes.slice(16, 32),
    packId: bytes.slice(32, 48),
    salt: bytes.slice(48, 80),
  }
}

export interface PackEntry {
  readonly id: Uint8Array
  /** Of the record's header in the pack. */
  readonly offset: number
  readonly plainLength: number
  /** Payload as stored, without the record's header. */
  readonly storedLength: number
  readonly record: number
  readonly kind: number
  readonly flags: number
}

export function encodePackFooter(entries: readonly PackEntry[]): Uint8Array {
  const bytes = new Uint8Array(entries.length * PACK_ENTRY_BYTES)
  const view = new DataView(bytes.buffer)
  let at = 0
  for (const entry of entries) {
    bytes.set(entry.id, at)
    view.setUint32(at + 32, entry.offset % 2 ** 32, true)
    view.setUint32(at + 36, Math.floor(entry.offset / 2 ** 32), true)
    view.setUint32(at + 40, entry.plainLength, true)
    view.setUint32(at + 44, entry.storedLength, true)
    view.setUint32(at + 48, entry.record, true)
    view.setUint8(at + 52, entry.kind)
    view.setUint8(at + 53, entry.flags)
    at += PACK_ENTRY_BYTES
  }
  return bytes
}

/**
 * Checks every entry against `trailer`, and that the records lie one after
 * another from the header to the footer. Throws E_DAMAGED.
 */
export function decodePackFooter(bytes: Uint8Array, trailer: PackTrailer): PackEntry[] {
  const { plainLengths } = decodeFooterColumns(bytes, trailer)
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  return Array.from(plainLengths, (plainLength, record) => {
    const at = record * PACK_ENTRY_BYTES
    return {
      id: bytes.slice(at, at + ID_BYTES),
      offset: offsetAt(view, at),
      plainLength,
      storedLength: view.getUint32(at + 44, true),
      record,
      kind: view.getUint8(at + 52),
      flags: view.getUint8(at + 53),
    }
  })
}

/** What a census wants of a footer, without an object per record. */
export interface FooterColumns {
  /** The id of record i begins at byte i * `idStride`. */
  readonly ids: Uint8Array
  readonly idStride: number
  readonly plainLengths: Uint32Array
  readonly storedLengths: Uint32Array
}

/** As decodePackFooter; `bytes` are kept. Throws E_DAMAGED. */
export function decodeFooterColumns(bytes: Uint8Array, trailer: PackTrailer): FooterColumns {
  const what = 'a pack footer'
  expectIntact(bytes.length === trailer.entryCount * PACK_ENTRY_BYTES, what, `${bytes.length} bytes`)
  expectIntact(native().crc32c(bytes) === trailer.footerCrc, what, 'wrong checksum')
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  const plainLengths = new Uint32Array(trailer.entryCount)
  const storedLengths = new Uint32Array(trailer.entryCount)
  let end = PACK_HEADER_BYTES
  for (let record = 0; record < trailer.entryCount; record++) {
    const at = record * PACK_ENTRY_BYTES
    const [plainLength, storedLength] = [view.getUint32(at + 40, true), view.getUint32(at + 44, true)]
    const wrong =
      wrongRecord({ kind: view.getUint8(at + 52), flags: view.getUint8(at + 53), plainLength, storedLength }) ??
      (view.getUint16(at + 54, true) === 0 ? undefined : 'reserved bytes are set') ??
      (offsetAt(view, at) === end ? undefined : `a record at ${offsetAt(view, at)} where ${end} is next`) ??
      (view.getUint32(at + 48, true) === record ? undefined : `record number ${record} is out of order`)
    if (wrong !== undefined) throw damaged(what, wrong)
    end += RECORD_HEADER_BYTES + storedLength
    plainLengths[record] = plainLength
    storedLengths[record] = storedLength
  }
  expectIntact(end === trailer.footerOffset, what, 'records do not end where the footer begins')
  return { ids: bytes, idStride: PACK_ENTRY_BYTES, plainLengths, storedLengths }
}

function offsetAt(view: DataView, at: number): number {
  return view.getUint32(at + 32, true) + view.getUint32(at + 36, true) * 2 ** 32
}

export interface PackTrailer {
  readonly footerOffset: number
  readonly entryCount: number
  readonly footerCrc: number
  readonly packId: Uint8Array
}

export function encodePackTrailer(trailer: PackTrailer): Uint8Array {
  const bytes = new Uint8Array(PACK_TRAILER_BYTES)
  const view = new DataView(bytes.buffer)
  view.setBigUint64(0, TRAILER_MAGIC, true)
  view.setBigUint64(8, BigInt(trailer.footerOffset), true)
  view.setUint32(16, trailer.entryCount, true)
  view.setUint32(20, trailer.footerCrc, true)
  bytes.set(trailer.packId, 24)
  view.setUint32(40, PACK_VERSION, true)
  view.setUint32(44, native().crc32c(bytes.subarray(0, 44)), true)
  return bytes
}

/** `packSize` and `packId` are what the directory says. Throws E_DAMAGED, also for a pack that was never sealed. */
export function decodePackTrailer(bytes: Uint8Array, packSize: number, packId: Uint8Array): PackTrailer {
  const what = 'a pack trailer'
  expectIntact(bytes.length === PACK_TRAILER_BYTES, what, `${bytes.length} bytes`)
  expectIntact(
    packSize >= PACK_HEADER_BYTES + PACK_TRAILER_BYTES && packSize <= MAX_PACK_BYTES,
    what,
    'wrong pack size',
  )
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  expectIntact(view.getBigUint64(0, true) === TRAILER_MAGIC, what, 'wrong magic')
  expectIntact(view.getUint32(44, true) === native().crc32c(bytes.subarray(0, 44)), what, 'wrong checksum')
  expectIntact(view.getUint32(40, true) === PACK_VERSION, what, `unknown version ${view.getUint32(40, true)}`)
  const footerOffset = Number(view.getBigUint64(8, true))
  const entryCount = view.getUint32(16, true)
  expectIntact(
    footerOffset >= PACK_HEADER_BYTES && footerOffset <= packSize - PACK_TRAILER_BYTES,
    what,
    'the footer lies outside',
  )
  expectIntact(
    entryCount * PACK_ENTRY_BYTES === packSize - PACK_TRAILER_BYTES - footerOffset,
    what,
    'the footer does not end at the trailer',
  )
  expectIntact(sameBytes(bytes.subarray(24, 40), packId), what, 'it belongs to another pack')
  return { footerOffset, entryCount, footerCrc: view.getUint32(20, true), packId: bytes.slice(24, 40) }
}

/** What is impossible about a record; undefined where nothing is. */
function wrongRecord(record: {
  readonly kind: number
  readonly flags: number
  readonly plainLength: number
  readonly storedLength: number
}): string | undefined {
  const { kind, flags, plainLength, storedLength } = record
  if (kind !== RECORD_KIND.chunk && kind !== RECORD_KIND.node && kind !== RECORD_KIND.blob) {
    return `unknown record kind ${kind}`
  }
  const known = RECORD_FLAG.zstd | RECORD_FLAG.encrypted
  if ((flags & ~known) !== 0) return `unknown record flags ${flags}`
  if (plainLength < 1 || plainLength > MAX_RECORD_BYTES) return `plain length ${plainLength}`
  const tag = (flags & RECORD_FLAG.encrypted) === 0 ? 0 : TAG_BYTES
  // Nothing is stored compressed that did not shrink.
  if (storedLength < 1 || storedLength > plainLength + tag) return `stored length ${storedLength}`
  return undefined
}
