import { type DurableFs, makeDirectoryPath } from '../base/durable-fs.js'
import { BackupError } from '../base/errors.js'
import { fromHex } from '../base/hex.js'
import type { RandomSource } from '../base/random.js'
import { KEY_BYTES, type ScryptCost } from '../format/key-slot.js'
import type { StoreFile } from '../format/store-file.js'
import { native } from '../native/binding.js'
import { readSlots, unlockMaster, writeSlot } from './key-slots.js'
import { type StoreKeys, deriveKeys, keyCheck, plainKeys } from './keys.js'
import { KEY_FOLDER } from './layout.js'
import type { LocalObjects } from './local-objects.js'
import type { ObjectStore } from './object-store.js'

/** Where a store's passphrase comes from. */
export interface PassphraseSource {
  /** One is configured: a store without encryption is then not the one that was meant. */
  readonly isExpected: boolean
  /** The passphrase, or an exported key; undefined where there is none. Called for encrypted stores only. */
  ask(): Promise<string | undefined>
}

interface Places {
  readonly fs: DurableFs
  readonly objects: LocalObjects
  readonly random: RandomSource
}

/** Draws the master key of a new store and writes its first slot; what it gives back is to become store.json. */
export async function encryptStore(
  plain: StoreFile,
  wish: { readonly passphrase: string; readonly label?: string | undefined; readonly cost?: ScryptCost | undefined },
  { fs, objects, random }: Places,
): Promise<StoreFile> {
  native().protectMemory()
  const master = random(KEY_BYTES)
  await makeDirectoryPath(fs, objects.location, [KEY_FOLDER])
  await writeSlot(objects, random, {
    ...wish,
    label: wish.label ?? '',
    storeId: plain.id,
    master,
    created: plain.created,
  })
  const file = { ...plain, encryption: { check: keyCheck(master, plain) } }
  master.fill(0)
  return file
}

/**
 * The keys of the store that `file` describes. Rejects with E_KEY where there
 * is no passphrase or a wrong one, and where one is expected for a store that is
 * not encrypted: somebody who can write to it may have put a plain one in the
 * place of an encrypted one, to be given the next backup in the clear.
 */
export async function unlockStore(
  file: StoreFile,
  objects: ObjectStore,
  source: PassphraseSource | undefined,
): Promise<StoreKeys> {
  if (file.encryption === undefined) {
    if (source?.isExpected === true) throw notEncrypted()
    return plainKeys
  }
  // Before the passphrase is in memory.
  native().protectMemory()
  const passphrase = await source?.ask()
  if (passphrase === undefined) {
    throw new BackupError('E_KEY', 'this store is encrypted and no passphrase was given', {
      hints: ['export VIRTVAULT_PASSPHRASE_FILE=/etc/virtvault/store.key', 'or name one in the configuration'],
    })
  }
  const { master } = await unlockMaster(file, await readSlots(objects, file.id), passphrase)
  const keys = deriveKeys(master, fromHex(file.id))
  master.fill(0)
  return keys
}

function notEncrypted(): BackupError {
  return new BackupError('E_KEY', 'a passphrase was given, but this store is not encrypted', {
    why: 'It may be another store than you think, or somebody may have put it in the place of an encrypted one.',
    hints: ['if it is meant to be plain, take the passphrase away, or set `encryption: none` for the target'],
  })
}
