import { scrypt } from 'node:crypto'

import { BackupError } from '../base/errors.js'
import { fromHex, isHex, sameBytes, toHex } from '../base/hex.js'
import { invariant } from '../base/invariant.js'
import type { RandomSource } from '../base/random.js'
import { damaged } from '../format/damage.js'
import { decodeExportedKey, isExportedKey } from '../format/exported-key.js'
import {
  DEFAULT_COST,
  type KeySlot,
  MAX_LABEL_BYTES,
  SLOT_SECRET_BYTES,
  type ScryptCost,
  decodeKeySlot,
  encodeKeySlot,
  memoryOf,
  openKeySlot,
} from '../format/key-slot.js'
import { SALT_BYTES } from '../format/pack.js'
import type { StoreFile } from '../format/store-file.js'
import { isKeyOf } from './keys.js'
import { KEY_FOLDER } from './layout.js'
import type { ObjectStore } from './object-store.js'

/** Every slot costs a third of a second per wrong passphrase; nobody has this many keyholders. */
export const MAX_SLOTS = 32

export interface FoundSlots {
  /** Oldest first. */
  readonly slots: readonly KeySlot[]
  readonly unreadable: readonly { readonly file: string; readonly error: Error }[]
}

/** The slots of a store; those that carry another store's id count as unreadable. Rejects with E_DAMAGED where the folder is gone. */
export async function readSlots(objects: ObjectStore, storeId: string): Promise<FoundSlots> {
  const slots: KeySlot[] = []
  const unreadable: { file: string; error: Error }[] = []
  for (const file of await objects.list(KEY_FOLDER)) {
    const bytes = await objects.get(file)
    if (bytes === undefined) continue
    try {
      const slot = decodeKeySlot(bytes)
      if (toHex(slot.storeId) !== storeId) throw damaged(file, 'it belongs to another store')
      if (slotKeyOf(slot.slotId) !== file) throw damaged(file, 'it has the name of another slot')
      slots.push(slot)
    } catch (error) {
      if (!(error instanceof BackupError)) throw error
      unreadable.push({ file, error })
    }
  }
  slots.sort((a, b) => a.created - b.created || (toHex(a.slotId) < toHex(b.slotId) ? -1 : 1))
  return { slots, unreadable }
}

export interface Unlocked {
  /** The caller's to wipe. */
  readonly master: Uint8Array
  /** The slot that the passphrase opened; undefined where an exported key was given. */
  readonly slot: KeySlot | undefined
}

/**
 * Finds the master key with a passphrase, or takes it from an exported key.
 * Rejects with E_KEY where it opens nothing, E_DAMAGED where it opens a slot of
 * a store that store.json does not describe.
 */
export async function unlockMaster(
  file: StoreFile,
  { slots, unreadable }: FoundSlots,
  passphrase: string,
): Promise<Unlocked> {
  if (isExportedKey(passphrase)) return { master: importedMaster(file, passphrase), slot: undefined }
  for (const slot of slots.slice(0, MAX_SLOTS)) {
    const secret = await secretOf(passphrase, slot.salt, slot.scrypt)
    const master = openKeySlot(slot, secret)
    secret.fill(0)
    if (master === undefined) continue
    if (isKeyOf(master, file)) return { master, slot }
    master.fill(0)
    throw damaged('store.json', 'its key check is not that of the key in its slots')
  }
  const [first] = unreadable
  if (slots.length === 0) {
    throw new BackupError('E_KEY', 'this store has no key slot that can be read', {
      why: first?.error.message,
      hints: ['with a printed key: virtvault key import', 'put back the directory keys/ from a copy of the store'],
    })
  }
  throw new BackupError('E_KEY', 'the passphrase is wrong', {
    why: `It opens none of ${slots.length} key slots${first === undefined ? '' : `; ${first.file} cannot be read`}.`,
    hints: ['virtvault key list shows the slots'],
  })
}

/** Takes the master key out of an exported key. Throws E_KEY where it is mistyped or another store's. */
export function importedMaster(file: StoreFile, text: string): Uint8Array {
  const { master, store } = decodeExportedKey(text)
  if (sameBytes(store, fromHex(file.id).subarray(0, store.length)) && isKeyOf(master, file)) return master
  master.fill(0)
  throw new BackupError('E_KEY', 'the exported key is not the key of this store', {
    why: `It was made for the store ${toHex(store)}…, this one is ${file.id.slice(0, 8)}….`,
  })
}

export interface NewSlot {
  readonly storeId: string
  readonly master: Uint8Array
  readonly passphrase: string
  /** At most 64 bytes of UTF-8. */
  readonly label: string
  /** Wall-clock milliseconds. */
  readonly created: number
  readonly cost?: ScryptCost | undefined
}

/** Writes a slot, durably, and gives its id in hex. Rejects with E_USAGE for an empty passphrase or a long label. */
export async function writeSlot(objects: ObjectStore, random: RandomSource, options: NewSlot): Promise<string> {
  const { storeId, master, label, created, cost = DEFAULT_COST } = options
  if (options.passphrase === '') throw new BackupError('E_USAGE', 'an empty passphrase protects nothing')
  if (isExportedKey(options.passphrase)) {
    throw new BackupError('E_USAGE', 'a passphrase must not look like an exported key')
  }
  if (Buffer.byteLength(label) > MAX_LABEL_BYTES || label.includes('\0')) {
    throw new BackupError('E_USAGE', `a label has at most ${MAX_LABEL_BYTES} bytes`)
  }
  const header = {
    storeId: fromHex(storeId),
    slotId: random(16),
    scrypt: cost,
    salt: random(SALT_BYTES),
    created,
    label,
  }
  const secret = await secretOf(options.passphrase, header.salt, cost)
  const bytes = encodeKeySlot(header, secret, master)
  // A slot that does not give the key back must never be relied on.
  const reopened = openKeySlot(decodeKeySlot(bytes), secret)
  secret.fill(0)
  invariant(reopened !== undefined && sameBytes(reopened, master), 'a new key slot opens')
  reopened.fill(0)
  if (!(await objects.putNew(slotKeyOf(header.slotId), bytes))) {
    throw new BackupError('E_EXISTS', `${slotKeyOf(header.slotId)} exists`)
  }
  return toHex(header.slotId)
}

export function slotKeyOf(slotId: Uint8Array | string): string {
  return `${KEY_FOLDER}/${typeof slotId === 'string' ? slotId : toHex(slotId)}.slot`
}

/** The slot that an id or the beginning of one names. Throws E_NOT_FOUND, E_USAGE where it names several. */
export function findSlot(slots: readonly KeySlot[], idOrPrefix: string): KeySlot {
  const found = slots.filter(slot => toHex(slot.slotId).startsWith(idOrPrefix.toLowerCase()))
  const [first, second] = found
  if (first === undefined || !isHex(idOrPrefix.toLowerCase(), idOrPrefix.length) || idOrPrefix === '') {
    throw new BackupError('E_NOT_FOUND', `there is no key slot ${JSON.stringify(idOrPrefix)}`, {
      hints: ['virtvault key list shows them'],
    })
  }
  if (second !== undefined) {
    throw new BackupError('E_USAGE', `${found.length} key slots begin with ${idOrPrefix}`, {
      hints: ['type more of it'],
    })
  }
  return first
}

/** 64 bytes; the caller wipes them. The passphrase counts in Unicode's composed form, so that every keyboard gives the same. */
function secretOf(passphrase: string, salt: Uint8Array, cost: ScryptCost): Promise<Uint8Array> {
  const bytes = Buffer.from(passphrase.normalize('NFC'), 'utf8')
  const { cost: N, blockSize: r, parallelism: p } = cost
  return new Promise((resolve, reject) => {
    scrypt(bytes, salt, SLOT_SECRET_BYTES, { N, r, p, maxmem: memoryOf(cost) + 1024 * 1024 }, (error, secret) => {
      bytes.fill(0)
      if (error === null) resolve(secret)
      else reject(new BackupError('E_IO', 'there is not enough memory to try the passphrase', { cause: error }))
    })
  })
}
