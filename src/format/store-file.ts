import { BackupError } from '../base/errors.js'
import { isHex } from '../base/hex.js'
import { decodeCheckedJson, encodeCheckedJson } from './checked-json.js'
import { expectIntact } from './damage.js'
import { Fields } from './fields.js'

export const STORE_FORMAT = 1
export const MIN_CHUNK_BYTES = 64 * 1024
export const MAX_CHUNK_BYTES = 4 * 1024 * 1024
export const MAX_ZSTD_LEVEL = 19

/** Features that this program knows, by what not knowing one forbids. */
const KNOWN = { readonlyCompat: new Set<string>(), incompat: new Set<string>(['encryption']) }

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
  /** Key slots of an encrypted store, as their own codec wrote them. */
  readonly keys?: unknown
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
    keys: file.keys,
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
  return {
    id,
    chunkSize,
    hash: fields.oneOf('hash', ['sha256', 'hmac-sha256']),
    level,
    created: fields.count('created_ms'),
    features,
    keys: fields.raw('keys'),
  }
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
