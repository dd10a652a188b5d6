import { createHmac, hkdfSync, timingSafeEqual } from 'node:crypto'

import { fromHex } from '../base/hex.js'
import { invariant } from '../base/invariant.js'
import { KEY_BYTES } from '../format/key-slot.js'
import type { StoreFile } from '../format/store-file.js'

/**
 * What an encrypted store derives its keys with; the plain implementation has
 * none. Everything that encodes or decodes is given this, never a key.
 */
export interface StoreKeys {
  /** Key of the ids (HMAC-SHA-256), 32 bytes; undefined: SHA-256. */
  readonly idKey: Uint8Array | undefined
  /** AES-256 key of one pack, from the salt in its header. */
  packKey(salt: Uint8Array, packId: Uint8Array): Uint8Array | undefined
  /** AES-256 key of one point, notes or journal file, from the salt in its header. */
  pointKey(salt: Uint8Array): Uint8Array | undefined
  /** Overwrites what it holds; using it after that is a bug that throws. */
  wipe(): void
}

/** A store without encryption. */
export const plainKeys: StoreKeys = {
  idKey: undefined,
  packKey: () => undefined,
  pointKey: () => undefined,
  wipe: () => undefined,
}

/** Purposes of the keys that come from the master key: HKDF-SHA-256, salt = store id, info = one of these. */
const INFO = {
  id: 'virtvault v1 id',
  data: 'virtvault v1 data',
  point: 'virtvault v1 point',
  check: 'virtvault v1 check',
  /** From the data key: salt = the pack's salt, info = this, store id, pack id. */
  pack: 'virtvault v1 pack',
  /** From the point key: salt = the file's salt, info = this, store id. */
  file: 'virtvault v1 file',
} as const

/** The keys of an encrypted store. `master` is not kept: wipe it. */
export function deriveKeys(master: Uint8Array, storeId: Uint8Array): StoreKeys {
  const idKey = hkdf(master, storeId, INFO.id)
  const dataKey = hkdf(master, storeId, INFO.data)
  const pointKey = hkdf(master, storeId, INFO.point)
  let isWiped = false
  // A wiped key is one that everybody knows: nothing may ever be sealed with it.
  const intact = (key: Uint8Array) => {
    invariant(!isWiped, 'keys are not used after their store was closed')
    return key
  }
  return {
    get idKey() {
      return intact(idKey)
    },
    packKey: (salt, packId) => hkdf(intact(dataKey), salt, INFO.pack, storeId, packId),
    pointKey: salt => hkdf(intact(pointKey), salt, INFO.file, storeId),
    wipe: () => {
      isWiped = true
      for (const key of [idKey, dataKey, pointKey]) key.fill(0)
    },
  }
}

/**
 * What store.json holds so that a wrong key, and a store.json that was changed,
 * is found before anything is read or written with it: HMAC-SHA-256 under the
 * check key over every other member, in the form that docs/format.md gives.
 */
export function keyCheck(master: Uint8Array, file: Omit<StoreFile, 'encryption'>): Uint8Array {
  const key = hkdf(master, fromHex(file.id), INFO.check)
  const { compat, readonlyCompat, incompat } = file.features
  const lines = [
    'virtvault store v1',
    file.id,
    `${file.chunkSize} ${file.hash} zstd ${file.level} ${file.created}`,
    ...[compat, readonlyCompat, incompat].map(names => names.join(',')),
  ]
  const check = createHmac('sha256', key)
    .update(lines.map(line => `${line}\n`).join(''))
    .digest()
  key.fill(0)
  return check
}

/** Whether `master` is the key of the store that `file` describes, and `file` as it was written. */
export function isKeyOf(master: Uint8Array, file: StoreFile): boolean {
  return file.encryption !== undefined && timingSafeEqual(keyCheck(master, file), file.encryption.check)
}

function hkdf(key: Uint8Array, salt: Uint8Array, label: string, ...context: readonly Uint8Array[]): Uint8Array {
  const info = Buffer.concat([Buffer.from(label, 'latin1'), ...context])
  return new Uint8Array(hkdfSync('sha256', key, salt, info, KEY_BYTES))
}
