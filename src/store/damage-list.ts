import { errorCodeOf } from '../base/errors.js'
import { toHex } from '../base/hex.js'
import { type DamagedCopy, decodeDamageList, encodeDamageList } from '../format/damage-list.js'
import { DAMAGE_FILE } from './layout.js'
import type { ObjectStore } from './object-store.js'

/** What verify found damaged, as it was when it was read. */
export class KnownDamage {
  readonly copies: readonly DamagedCopy[]
  readonly #copies: ReadonlySet<string>
  readonly #ids: ReadonlySet<string>

  constructor(copies: readonly DamagedCopy[]) {
    this.copies = copies
    this.#copies = new Set(copies.map(({ packId, id }) => copyKey(toHex(packId), id)))
    this.#ids = new Set(copies.map(({ id }) => toHex(id)))
  }

  get isEmpty(): boolean {
    return this.#ids.size === 0
  }

  /** Whether the copy of `id` in this pack is damaged. */
  hasCopy(packId: string, id: Uint8Array): boolean {
    return this.#copies.size > 0 && this.#copies.has(copyKey(packId, id))
  }

  /** Whether some copy of `id` is damaged, or was missing. */
  hasId(id: Uint8Array): boolean {
    return this.#ids.size > 0 && this.#ids.has(toHex(id))
  }
}

/**
 * Remembers damage in the store, so that a pull stores again what is hurt and
 * a gc prefers sound copies. Losing the file loses no data: verify finds the
 * damage again.
 */
export class DamageList {
  readonly #objects: ObjectStore

  constructor(objects: ObjectStore) {
    this.#objects = objects
  }

  /** Empty where there is no list, or one that cannot be read. Rejects with E_IO. */
  async read(): Promise<KnownDamage> {
    const bytes = await this.#objects.get(DAMAGE_FILE)
    if (bytes === undefined) return new KnownDamage([])
    try {
      return new KnownDamage(decodeDamageList(bytes))
    } catch (error) {
      if (errorCodeOf(error) === 'E_DAMAGED') return new KnownDamage([])
      throw error
    }
  }

  /** Replaces the list. Durable when it resolves. */
  async write(copies: readonly DamagedCopy[]): Promise<void> {
    if (copies.length === 0) await this.#objects.remove(DAMAGE_FILE)
    else await this.#objects.replace(DAMAGE_FILE, encodeDamageList(copies))
  }
}

function copyKey(packId: string, id: Uint8Array): string {
  return `${packId}${toHex(id)}`
}
