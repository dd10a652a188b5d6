import { BackupError } from '../base/errors.js'
import { fromHex, isHex, toHex } from '../base/hex.js'
import { decodeCheckedJson, encodeCheckedJson } from './checked-json.js'
import { expectIntact } from './damage.js'
import { Fields } from './fields.js'

export const STORE_FORMAT = 1
export const MIN_CHUNK_BYTES = 64 * 1024
export const MAX_CHUNK_BYTES = 4 * 1024 * 1024
export const MAX_ZSTD_LEVEL = 19
/** In `incompat` of every encrypted store: who does not know it must not take ciphertext for damage. */
export const ENCRYPTION_FEATURE = 'encryption'
const CIPHER = 'aes-256-gcm'

/** Features that this program knows, by what not knowing one forbids. */
const KNOWN = { readonlyCompat: new Set<string>(), incompat: new Set<string>([ENCRYPTION_FEATURE]) }

/** store.json: what was decided at init. */
export interface StoreFile {
  /** 32 lower-case hex characters. */
  readonly id: string
  readonly chunkSize: number
  readonly hash: 'sha256' | 'hmac-sha256'
  /** zstd level; 0 stores plain. */
  readonly level: number
  /** Wall-clock milliseconds. */
  readonly created: number
  readonly features: StoreFeatures
  /** Of an encrypted store; its key slots are files of their own. */
  readonly encryption?: StoreEncryption | undefined
}

export interface StoreEncryption {
  /** 32 bytes that tell the right master key from a wrong one, and this file from a changed one. */
  readonly check: Uint8Array
}

export interface StoreFeatures {
  /** Unknown ones are no matter. */
  readonly compat: readonly string[]
  /** Unknown ones forbid writing. */
  readonly readonlyCompat: readonly string[]
  /** Unknown ones forbid opening. */
  readonly incompat: readonly string[]
}

/** Whether `size` may be a store's chunk size: a power of two from 64 KiB to 4 MiB. */
export function isChunkSize(size: number): boolean {
  return size >= MIN_CHUNK_BYTES && size <= MAX_CHUNK_BYTES && Number.isInteger(Math.log2(size))
}

export function encodeStoreFile(file: StoreFile): Uint8Array {
  return encodeCheckedJson({
    format: STORE_FORMAT,
    id: file.id,
    chunk_size: file.chunkSize,
    hash: file.hash,
    compression: { algorithm: 'zstd', level: file.level },
    created_ms: file.created,
    features: {
      compat: file.features.compat,
      readonly_compat: file.features.readonlyCompat,
      incompat: file.features.incompat,
    },
    encryption: file.encryption === undefined ? undefined : { algorithm: CIPHER, check: toHex(file.encryption.check) },
  })
}

/** Throws E_DAMAGED, and E_STORE_FORMAT for a store that only a newer program may open. */
export function decodeStoreFile(bytes: Uint8Array): StoreFile {
  const what = 'store.json'
  const value = decodeCheckedJson(bytes, what)
  const fields = new Fields(value, what)
  const format = fields.count('format')
  if (format !== STORE_FORMAT) throw newer(`it has format ${format}, this program knows ${STORE_FORMAT}`)
  const features = fields.map('features', features => ({
    compat: features.texts('compat'),
    readonlyCompat: features.texts('readonly_compat'),
    incompat: features.texts('incompat'),
  }))
  const strange = features.incompat.filter(feature => !KNOWN.incompat.has(feature))
  if (strange.length > 0) throw newer(`it needs ${strange.join(', ')}`)
  const id = fields.text('id')
  expectIntact(isHex(id, 32), what, 'the id is none')
  const chunkSize = fields.count('chunk_size')
  expectIntact(isChunkSize(chunkSize), what, `chunk size ${chunkSize}`)
  const level = fields.map('compression', compression => {
    compression.oneOf('algorithm', ['zstd'])
    return compression.count('level')
  })
  expectIntact(level <= MAX_ZSTD_LEVEL, what, `compression level ${level}`)
  const encryption = fields.optionalMap('encryption', decodeEncryption)
  const hash = fields.oneOf('hash', ['sha256', 'hmac-sha256'])
  const claims = [hash === 'hmac-sha256', encryption !== undefined, features.incompat.includes(ENCRYPTION_FEATURE)]
  expectIntact(new Set(claims).size === 1, what, 'it is encrypted in part')
  return { id, chunkSize, hash, level, created: fields.count('created_ms'), features, encryption }
}

function decodeEncryption(fields: Fields): StoreEncryption {
  fields.oneOf('algorithm', [CIPHER])
  const check = fields.text('check')
  expectIntact(isHex(check, 64), 'store.json', 'its key check is none')
  return { check: fromHex(check) }
}

/** Features for which this program must not write; empty for a store that it may write. */
export function featuresAgainstWriting(file: StoreFile): string[] {
  return file.features.readonlyCompat.filter(feature => !KNOWN.readonlyCompat.has(feature))
}

function newer(why: string): BackupError {
  return new BackupError('E_STORE_FORMAT', 'this store was made by a newer version', {
    why,
    hints: ['Use the version of this program that made it, or a later one.'],
  })
}
