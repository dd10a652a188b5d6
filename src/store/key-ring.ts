import { join } from 'node:path'

import { type Clock, systemClock } from '../base/clock.js'
import { type DurableFs, localFs } from '../base/durable-fs.js'
import { BackupError } from '../base/errors.js'
import { fromHex, toHex } from '../base/hex.js'
import { type RandomSource, systemRandom } from '../base/random.js'
import { encodeExportedKey } from '../format/exported-key.js'
import type { KeySlot, ScryptCost } from '../format/key-slot.js'
import { type StoreFile, decodeStoreFile } from '../format/store-file.js'
import { native } from '../native/binding.js'
import {
  type FoundSlots,
  MAX_SLOTS,
  findSlot,
  importedMaster,
  readSlots,
  slotKeyOf,
  unlockMaster,
  writeSlot,
} from './key-slots.js'
import { STORE_FILE } from './layout.js'
import { LocalObjects } from './local-objects.js'

export interface KeyRingOptions {
  readonly fs?: DurableFs | undefined
  readonly clock?: Clock | undefined
  readonly random?: RandomSource | undefined
  /** Of new slots. */
  readonly cost?: ScryptCost | undefined
}

/** A slot as people see it. What it says of itself counts only once it was opened. */
export interface SlotView {
  /** 32 hex characters. */
  readonly id: string
  readonly label: string
  /** Wall-clock milliseconds. */
  readonly created: number
  readonly cost: ScryptCost
}

/** The key slots of an encrypted store: everything about keys, and nothing about what they protect. */
export class KeyRing implements AsyncDisposable {
  readonly location: string
  readonly storeId: string
  readonly #file: StoreFile
  readonly #fs: DurableFs
  readonly #objects: LocalObjects
  readonly #clock: Clock
  readonly #random: RandomSource
  readonly #cost: ScryptCost | undefined
  #master: Uint8Array | undefined
  #opened: KeySlot | undefined

  private constructor(location: string, file: StoreFile, options: KeyRingOptions) {
    const { fs = localFs(native()), clock = systemClock, random = systemRandom } = options
    this.location = location
    this.storeId = file.id
    this.#file = file
    this.#fs = fs
    this.#objects = new LocalObjects({ fs, root: location, random })
    this.#clock = clock
    this.#random = random
    this.#cost = options.cost
  }

  /** Opens no slot yet. Rejects with E_NO_STORE, E_STORE_FORMAT, E_DAMAGED, and E_UNSUPPORTED for a store without encryption. */
  static async of(location: string, options: KeyRingOptions = {}): Promise<KeyRing> {
    const { fs = localFs(native()) } = options
    const bytes = await fs.readWhole(join(location, STORE_FILE))
    if (bytes === undefined) throw new BackupError('E_NO_STORE', `there is no store at ${location}`)
    const file = decodeStoreFile(bytes)
    if (file.encryption === undefined) {
      throw new BackupError('E_UNSUPPORTED', `the store at ${location} is not encrypted: it has no keys`, {
        why: 'Encryption is chosen when a store is made.',
        hints: ['make another with: virtvault init --encryption aes-256-gcm'],
      })
    }
    native().protectMemory()
    return new KeyRing(location, file, { ...options, fs })
  }

  /** Oldest first; needs no passphrase. Those that cannot be read stand apart. */
  async list(): Promise<{ readonly slots: readonly SlotView[]; readonly unreadable: FoundSlots['unreadable'] }> {
    const { slots, unreadable } = await readSlots(this.#objects, this.storeId)
    return { slots: slots.map(viewOf), unreadable }
  }

  /** Gives the slot that the passphrase opened, undefined for an exported key. Rejects with E_KEY. */
  async unlock(passphrase: string): Promise<SlotView | undefined> {
    const found = await readSlots(this.#objects, this.storeId)
    const { master, slot } = await unlockMaster(this.#file, found, passphrase)
    this.#take(master)
    this.#opened = slot
    return slot === undefined ? undefined : viewOf(slot)
  }

  /** Takes the key that exportKey() gave; no slot is needed. Rejects with E_KEY. */
  importKey(text: string): void {
    this.#take(importedMaster(this.#file, text))
  }

  /** What anybody can open the store with, whatever becomes of its slots. Needs unlock(). */
  exportKey(): string {
    return encodeExportedKey(fromHex(this.storeId), this.#unlocked())
  }

  /** One more passphrase. Needs unlock() or importKey(). Rejects with E_REFUSED where there are too many. */
  async add(passphrase: string, label: string): Promise<string> {
    await using _lock = await this.#lock()
    return await this.#write(passphrase, label)
  }

  /**
   * Puts `passphrase` in the place of the one that unlock() was given: the new
   * slot is durable before the old one goes. Nothing that is stored is touched.
   */
  async replace(passphrase: string): Promise<{ readonly added: string; readonly removed: string }> {
    await using _lock = await this.#lock()
    if (this.#opened === undefined) {
      throw new BackupError('E_USAGE', 'an exported key is no passphrase that could be changed', {
        hints: ['add one: virtvault key add, or virtvault key import'],
      })
    }
    const removed = toHex(this.#opened.slotId)
    const added = await this.#write(passphrase, this.#opened.label)
    await this.#objects.remove(slotKeyOf(removed))
    this.#opened = undefined
    return { added, removed }
  }

  /** The slot that an id, or the beginning of one, names. Rejects with E_NOT_FOUND, E_USAGE. */
  async find(idOrPrefix: string): Promise<SlotView> {
    return viewOf(findSlot((await readSlots(this.#objects, this.storeId)).slots, idOrPrefix))
  }

  /** Rejects with E_REFUSED for the last slot that can be read. Needs unlock(): nobody without a key takes others theirs. */
  async remove(id: string): Promise<void> {
    await using _lock = await this.#lock()
    this.#unlocked()
    const { slots } = await readSlots(this.#objects, this.storeId)
    const slot = findSlot(slots, id)
    if (slots.length < 2) {
      throw new BackupError('E_REFUSED', 'the last key slot cannot be removed', {
        why: 'Without it, nobody could read the store.',
        hints: ['add another passphrase first: virtvault key add'],
      })
    }
    await this.#objects.remove(slotKeyOf(slot.slotId))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#master?.fill(0)
    this.#master = undefined
    await this.#objects[Symbol.asyncDispose]()
  }

  async #write(passphrase: string, label: string): Promise<string> {
    const master = this.#unlocked()
    const { slots } = await readSlots(this.#objects, this.storeId)
    if (slots.length >= MAX_SLOTS) {
      throw new BackupError('E_REFUSED', `there are ${slots.length} key slots, which is all there may be`, {
        hints: ['remove one: virtvault key remove'],
      })
    }
    const created = this.#clock.now()
    return await writeSlot(this.#objects, this.#random, {
      storeId: this.storeId,
      master,
      passphrase,
      label,
      created,
      cost: this.#cost,
    })
  }

  /** Two at once could each remove the other's last slot. */
  async #lock(): Promise<AsyncDisposable> {
    const lock = await this.#fs.lock(join(this.location, 'locks', 'keys.lock'), 'exclusive')
    if (lock === undefined) throw new BackupError('E_LOCKED', 'somebody else is changing the keys of this store')
    return lock
  }

  #take(master: Uint8Array): void {
    this.#master?.fill(0)
    this.#master = master
  }

  #unlocked(): Uint8Array {
    if (this.#master === undefined) throw new BackupError('E_KEY', 'the store is still locked')
    return this.#master
  }
}

function viewOf(slot: KeySlot): SlotView {
  return { id: toHex(slot.slotId), label: slot.label, created: slot.created, cost: slot.scrypt }
}
