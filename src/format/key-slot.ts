import { createCipheriv, createDecipheriv, createHmac, timingSafeEqual } from 'node:crypto'

import { sameBytes } from '../base/hex.js'
import { native } from '../native/binding.js'
import { BackupError } from '../base/errors.js'
import { expectIntact } from './damage.js'
import { SALT_BYTES } from './pack.js'
import { TAG_BYTES } from './record.js'

/*
 * keys/<id>.slot: the store's master key, wrapped with what a passphrase gives.
 *
 *   header [0, 168)  |  commitment [168, 200)  |  wrapped key, tag [200, 248)  |  crc [248, 252)
 *
 * The header is authenticated by both that follow it.
 */
export const KEY_BYTES = 32
/** scrypt gives a wrapping key, then a commitment key. */
export const SLOT_SECRET_BYTES = 2 * KEY_BYTES
export const MAX_LABEL_BYTES = 64
const SLOT_BYTES = 252
const HEADER_BYTES = 168
const COMMITMENT_AT = HEADER_BYTES
const WRAPPED_AT = COMMITMENT_AT + 32
const TAG_AT = WRAPPED_AT + KEY_BYTES
const CRC_AT = TAG_AT + TAG_BYTES
const LABEL_AT = 104
const MAGIC = Buffer.from('VVKSLOT1', 'latin1')
const VERSION = 1
const KDF_SCRYPT = 1
/** A wrapping key comes from a fresh salt and wraps one key, so its one nonce may be constant. */
const NONCE = new Uint8Array(12)
const COMMITMENT_LABEL = 'virtvault key slot v1'

/** Parameters of scrypt; it takes 128 * cost * blockSize bytes of memory. */
export interface ScryptCost {
  /** N, a power of two. */
  readonly cost: number
  /** r */
  readonly blockSize: number
  /** p */
  readonly parallelism: number
}

/** 128 MiB and about 0.3 s on a core of 2026. */
export const DEFAULT_COST: ScryptCost = { cost: 2 ** 17, blockSize: 8, parallelism: 1 }
/** Less protects nothing, more is an attack on our memory: either comes from who wrote the file, not from us. */
const MIN_COST = 2 ** 14
const MAX_COST = 2 ** 20
const MAX_SCRYPT_BYTES = 1024 * 1024 * 1024
const MAX_PARALLELISM = 16
const BLOCK_SIZES = { least: 8, most: 32 }

export interface SlotHeader {
  readonly storeId: Uint8Array
  /** 16 bytes, random, also its name. */
  readonly slotId: Uint8Array
  readonly scrypt: ScryptCost
  readonly salt: Uint8Array
  /** Wall-clock milliseconds. */
  readonly created: number
  /** For people; at most 64 bytes of UTF-8. */
  readonly label: string
}

/** A slot as it lies on disk, well-formed, but not authenticated before it is opened. */
export interface KeySlot extends SlotHeader {
  readonly bytes: Uint8Array
}

/** Whether scrypt may be run with these parameters. */
export function isSaneCost({ cost, blockSize, parallelism }: ScryptCost): boolean {
  return (
    Number.isInteger(Math.log2(cost)) &&
    cost >= MIN_COST &&
    cost <= MAX_COST &&
    blockSize >= BLOCK_SIZES.least &&
    blockSize <= BLOCK_SIZES.most &&
    parallelism >= 1 &&
    parallelism <= MAX_PARALLELISM &&
    memoryOf({ cost, blockSize, parallelism }) <= MAX_SCRYPT_BYTES
  )
}

/** Bytes that scrypt needs. */
export function memoryOf({ cost, blockSize, parallelism }: ScryptCost): number {
  return 128 * blockSize * (cost + parallelism + 2)
}

/** Wraps `master` (32 bytes) with `secret`, which scrypt made of the passphrase and the header's salt. */
export function encodeKeySlot(header: SlotHeader, secret: Uint8Array, master: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(SLOT_BYTES)
  const view = new DataView(bytes.buffer)
  bytes.set(MAGIC, 0)
  view.setUint16(8, VERSION, true)
  view.setUint8(10, KDF_SCRYPT)
  view.setUint32(12, header.scrypt.cost, true)
  view.setUint32(16, header.scrypt.blockSize, true)
  view.setUint32(20, header.scrypt.parallelism, true)
  bytes.set(header.storeId, 24)
  bytes.set(header.slotId, 40)
  bytes.set(header.salt, 56)
  view.setBigUint64(88, BigInt(header.created), true)
  bytes.set(Buffer.from(header.label, 'utf8'), LABEL_AT)

  const { wrapKey, commitment } = keysOfSlot(bytes, secret)
  bytes.set(commitment, COMMITMENT_AT)
  const cipher = createCipheriv('aes-256-gcm', wrapKey, NONCE)
  cipher.setAAD(bytes.subarray(0, WRAPPED_AT))
  bytes.set(cipher.update(master), WRAPPED_AT)
  cipher.final()
  bytes.set(cipher.getAuthTag(), TAG_AT)
  view.setUint32(CRC_AT, native().crc32c(bytes.subarray(0, CRC_AT)), true)
  return bytes
}

/** Throws E_DAMAGED, also for parameters that nobody sane would write, and E_STORE_FORMAT (newer version). */
export function decodeKeySlot(bytes: Uint8Array): KeySlot {
  const what = 'a key slot'
  expectIntact(bytes.length === SLOT_BYTES, what, `${bytes.length} bytes`)
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  expectIntact(sameBytes(bytes.subarray(0, 8), MAGIC), what, 'wrong magic')
  expectIntact(view.getUint32(CRC_AT, true) === native().crc32c(bytes.subarray(0, CRC_AT)), what, 'wrong checksum')
  const version = view.getUint16(8, true)
  if (version !== VERSION) throw new BackupError('E_STORE_FORMAT', `${what} has the unknown version ${version}`)
  expectIntact(view.getUint8(10) === KDF_SCRYPT, what, `unknown key derivation ${view.getUint8(10)}`)
  expectIntact(view.getUint8(11) === 0 && view.getBigUint64(96, true) === 0n, what, 'reserved bytes are set')
  const scrypt: ScryptCost = {
    cost: view.getUint32(12, true),
    blockSize: view.getUint32(16, true),
    parallelism: view.getUint32(20, true),
  }
  expectIntact(isSaneCost(scrypt), what, `scrypt parameters ${Object.values(scrypt).join(', ')}`)
  const created = Number(view.getBigUint64(88, true))
  expectIntact(Number.isSafeInteger(created), what, 'impossible time')
  return {
    storeId: bytes.slice(24, 40),
    slotId: bytes.slice(40, 56),
    scrypt,
    salt: bytes.slice(56, 56 + SALT_BYTES),
    created,
    label: decodeLabel(bytes.subarray(LABEL_AT, HEADER_BYTES), what),
    bytes: Uint8Array.from(bytes),
  }
}

/**
 * The master key, the caller's to wipe; undefined where `secret` is not that of
 * this slot, or any of its bytes was changed.
 */
export function openKeySlot(slot: KeySlot, secret: Uint8Array): Uint8Array | undefined {
  const { bytes } = slot
  const { wrapKey, commitment } = keysOfSlot(bytes, secret)
  // GCM alone does not commit to its key: one file could be made to open with two passphrases.
  if (!timingSafeEqual(commitment, bytes.subarray(COMMITMENT_AT, WRAPPED_AT))) return undefined
  const decipher = createDecipheriv('aes-256-gcm', wrapKey, NONCE)
  decipher.setAAD(bytes.subarray(0, WRAPPED_AT))
  decipher.setAuthTag(bytes.subarray(TAG_AT, CRC_AT))
  const master = decipher.update(bytes.subarray(WRAPPED_AT, TAG_AT))
  try {
    decipher.final()
    return master
  } catch {
    master.fill(0)
    return undefined
  }
}

function keysOfSlot(
  bytes: Uint8Array,
  secret: Uint8Array,
): { readonly wrapKey: Uint8Array; readonly commitment: Buffer } {
  const commitment = createHmac('sha256', secret.subarray(KEY_BYTES, SLOT_SECRET_BYTES))
    .update(COMMITMENT_LABEL)
    .update(bytes.subarray(0, HEADER_BYTES))
    .digest()
  return { wrapKey: secret.subarray(0, KEY_BYTES), commitment }
}

function decodeLabel(bytes: Uint8Array, what: string): string {
  const end = bytes.indexOf(0)
  const used = end === -1 ? bytes : bytes.subarray(0, end)
  expectIntact(
    bytes.subarray(used.length).every(byte => byte === 0),
    what,
    'bytes after its label',
  )
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(used)
  } catch {
    throw new BackupError('E_DAMAGED', `${what} is damaged: its label is no text`)
  }
}
