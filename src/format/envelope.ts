import { createCipheriv, createDecipheriv } from 'node:crypto'
import { Packr } from 'msgpackr'

import { BackupError, messageOf } from '../base/errors.js'
import { sameBytes } from '../base/hex.js'
import { native } from '../native/binding.js'
import { damaged, expectIntact } from './damage.js'
import { SALT_BYTES } from './pack.js'
import { TAG_BYTES } from './record.js'

/** Files of one msgpack map: recovery points, their notes, and the journals of encrypted stores. */
export const ENVELOPE_MAGIC = { point: 'VVPOINT1', notes: 'VVNOTES1', journal: 'VVJRNAL1' } as const
export type EnvelopeMagic = (typeof ENVELOPE_MAGIC)[keyof typeof ENVELOPE_MAGIC]

const NAMES: Readonly<Record<EnvelopeMagic, string>> = {
  VVPOINT1: 'a recovery point',
  VVNOTES1: 'a notes file',
  VVJRNAL1: 'the journal of a run',
}

export const ENVELOPE_HEADER_BYTES = 72
/** Before and after compression; refused when larger, so that a lying length allocates nothing. */
const MAX_PAYLOAD_BYTES = 64 * 1024 * 1024
/** Of a point whose disks leave out images: 2. Of everything else: 1. */
export type EnvelopeVersion = 1 | 2
const FLAG_ZSTD = 1
const FLAG_ENCRYPTED = 2
const CRC_AT = 20
const ZSTD_LEVEL = 3
/** A key seals one file only, so its one nonce may be constant. */
const NONCE = new Uint8Array(12)

/** Plain maps with text keys: no extension types, no shared structures. */
const packr = new Packr({ useRecords: false, mapsAsObjects: true, int64AsType: 'number', encodeUndefinedAsNil: true })

export interface EnvelopeSeal {
  readonly magic: EnvelopeMagic
  /** 1 unless given. */
  readonly version?: EnvelopeVersion
  readonly storeId: Uint8Array
  /** 32 bytes, random in encrypted stores, zero otherwise. */
  readonly salt: Uint8Array
  /** AES-256 key of this file, from the salt; undefined in a plain store. */
  readonly key: Uint8Array | undefined
}

/** Frames a plain object as a file; fields that are undefined are left out. */
export function encodeEnvelope(map: object, seal: EnvelopeSeal): Uint8Array {
  const plain = packr.pack(withoutUndefined(map))
  const packed = native().zstdCompress(plain, ZSTD_LEVEL)
  const length = packed.length + (seal.key === undefined ? 0 : TAG_BYTES)
  const bytes = new Uint8Array(ENVELOPE_HEADER_BYTES + length)
  const view = new DataView(bytes.buffer)
  bytes.set(Buffer.from(seal.magic, 'latin1'), 0)
  view.setUint16(8, seal.version ?? 1, true)
  view.setUint16(10, FLAG_ZSTD | (seal.key === undefined ? 0 : FLAG_ENCRYPTED), true)
  view.setUint32(12, plain.length, true)
  view.setUint32(16, length, true)
  bytes.set(seal.salt, 24)
  bytes.set(seal.storeId, 56)
  if (seal.key === undefined) {
    bytes.set(packed, ENVELOPE_HEADER_BYTES)
  } else {
    const cipher = createCipheriv('aes-256-gcm', seal.key, NONCE)
    // The checksum's place is still zero.
    cipher.setAAD(bytes.subarray(0, ENVELOPE_HEADER_BYTES))
    bytes.set(cipher.update(packed), ENVELOPE_HEADER_BYTES)
    cipher.final()
    bytes.set(cipher.getAuthTag(), bytes.length - TAG_BYTES)
  }
  view.setUint32(CRC_AT, checksum(bytes), true)
  return bytes
}

export interface EnvelopeExpectation {
  readonly magic: EnvelopeMagic
  /** The highest version that can be read; 1 unless given. */
  readonly version?: EnvelopeVersion
  readonly storeId: Uint8Array
  /** Key of a file from its salt; undefined in a plain store. */
  key(salt: Uint8Array): Uint8Array | undefined
}

/** Of a file that decodeEnvelope() took. */
export function envelopeVersion(bytes: Uint8Array): number {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length).getUint16(8, true)
}

/** The msgpack value of a file, nothing of it checked yet. Throws E_DAMAGED, E_KEY, E_STORE_FORMAT (newer version). */
export function decodeEnvelope(bytes: Uint8Array, expected: EnvelopeExpectation): unknown {
  const what = NAMES[expected.magic]
  expectIntact(bytes.length > ENVELOPE_HEADER_BYTES, what, `${bytes.length} bytes`)
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  expectIntact(sameBytes(bytes.subarray(0, 8), Buffer.from(expected.magic, 'latin1')), what, 'wrong magic')
  expectIntact(view.getUint32(CRC_AT, true) === checksum(bytes), what, 'wrong checksum')
  const version = envelopeVersion(bytes)
  if (version < 1 || version > (expected.version ?? 1)) {
    throw new BackupError('E_STORE_FORMAT', `${what} has the unknown version ${version}`)
  }
  const flags = view.getUint16(10, true)
  expectIntact((flags & ~(FLAG_ZSTD | FLAG_ENCRYPTED)) === 0, what, `unknown flags ${flags}`)
  const plainLength = view.getUint32(12, true)
  expectIntact(plainLength <= MAX_PAYLOAD_BYTES, what, `plain length ${plainLength}`)
  expectIntact(view.getUint32(16, true) === bytes.length - ENVELOPE_HEADER_BYTES, what, 'wrong payload length')
  expectIntact(sameBytes(bytes.subarray(56, 72), expected.storeId), what, 'it belongs to another store')

  const key = expected.key(bytes.slice(24, 24 + SALT_BYTES))
  expectIntact((key !== undefined) === ((flags & FLAG_ENCRYPTED) !== 0), what, 'encrypted and plain are mixed')
  const packed = key === undefined ? bytes.subarray(ENVELOPE_HEADER_BYTES) : open(bytes, key, what)
  expectIntact((flags & FLAG_ZSTD) !== 0 || packed.length === plainLength, what, 'wrong plain length')
  try {
    return packr.unpack((flags & FLAG_ZSTD) === 0 ? packed : native().zstdDecompress(packed, plainLength))
  } catch (error) {
    throw damaged(what, messageOf(error), error)
  }
}

function open(bytes: Uint8Array, key: Uint8Array, what: string): Uint8Array {
  expectIntact(bytes.length >= ENVELOPE_HEADER_BYTES + TAG_BYTES, what, 'no room for its tag')
  const header = bytes.slice(0, ENVELOPE_HEADER_BYTES)
  header.fill(0, CRC_AT, CRC_AT + 4)
  const decipher = createDecipheriv('aes-256-gcm', key, NONCE)
  decipher.setAAD(header)
  decipher.setAuthTag(bytes.subarray(bytes.length - TAG_BYTES))
  const plain = decipher.update(bytes.subarray(ENVELOPE_HEADER_BYTES, bytes.length - TAG_BYTES))
  try {
    decipher.final()
  } catch (error) {
    throw damaged(what, 'its authentication tag is wrong', error)
  }
  return plain
}

/** Over everything but the checksum itself. */
function checksum(bytes: Uint8Array): number {
  const codec = native()
  return codec.crc32c(bytes.subarray(CRC_AT + 4), codec.crc32c(bytes.subarray(0, CRC_AT)))
}

function withoutUndefined(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(withoutUndefined)
  if (typeof value !== 'object' || value === null || ArrayBuffer.isView(value)) return value
  return Object.fromEntries(
    Object.entries(value)
      .filter(([, field]) => field !== undefined)
      .map(([key, field]) => [key, withoutUndefined(field)]),
  )
}
