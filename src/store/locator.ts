import { forEachLimited } from '../base/async.js'
import { toHex } from '../base/hex.js'
import { type PackState, type Place, decodePlaces } from '../format/index-value.js'
import { PACK_HEADER_BYTES } from '../format/pack.js'
import { RECORD_HEADER_BYTES } from '../format/record.js'
import type { RecordCipher } from '../native/codec.js'
import type { IndexHolder } from './index-holder.js'
import type { StoreKeys } from './keys.js'
import type { PackCatalog } from './pack-catalog.js'

/** Packs looked at together. */
const LOOKS_AT_ONCE = 16

/** A place whose checksum is right, in a pack that is there, within its size. */
export interface Located extends Place {
  /** In hex. */
  readonly pack: string
  /** Bytes of the pack. */
  readonly packSize: number
  /** Whether a new point may rely on it. */
  readonly sealed: boolean
}

export interface LocatorOptions {
  readonly index: IndexHolder
  readonly packs: PackCatalog
  readonly keys: StoreKeys
  readonly storeId: Uint8Array
}

/** Answers where records are, believing nothing that the index says before it is checked. */
export class Locator {
  readonly #index: IndexHolder
  readonly #packs: PackCatalog
  readonly #keys: StoreKeys
  readonly #storeId: Uint8Array
  /** Packs that were there, with the right size, when first looked at. A look-up goes on with the one that it began with. */
  #live = new Map<string, PackState>()
  readonly #distrusted = new Set<string>()
  readonly #ciphers = new Map<string, Promise<RecordCipher | undefined>>()

  constructor(options: LocatorOptions) {
    this.#index = options.index
    this.#packs = options.packs
    this.#keys = options.keys
    this.#storeId = options.storeId
  }

  /** One answer per id (32 bytes each), in order; undefined where it counts as absent. */
  async locate(ids: Uint8Array): Promise<(Located | undefined)[]> {
    const live = this.#live
    const values = await this.#index.use(index => index.getMany(ids))
    const places = decodePlaces(ids, values)
    const packs = namesOf(places)
    const strange = new Set(packs.flatMap(pack => (pack === undefined || live.has(pack) ? [] : pack)))
    if (strange.size > 0) await this.#look([...strange], live)
    return places.map((place, at) => checked(place, packs[at], live))
  }

  /** Takes note of a pack that this process sealed. */
  learn(pack: string, state: PackState): void {
    this.#live.set(pack, state)
  }

  /** Takes note of a copy that could not be read. */
  distrust(pack: string, id: Uint8Array): void {
    this.#distrusted.add(`${pack}${toHex(id)}`)
  }

  /** Whether a copy could not be read by this process: a new point must not rely on it. */
  isDistrusted(pack: string, id: Uint8Array): boolean {
    return this.#distrusted.size > 0 && this.#distrusted.has(`${pack}${toHex(id)}`)
  }

  /** Forgets what was known of packs that may have gone. */
  forget(packs: Iterable<string>): void {
    for (const pack of packs) {
      this.#live.delete(pack)
      this.#ciphers.delete(pack)
    }
  }

  /** Looks at every pack anew from now on: for whoever is going to rely on them. */
  forgetAll(): void {
    this.#live = new Map()
  }

  /** Checks places that came from footers, as locate() does those of the index. */
  async locateAt(
    entries: readonly { readonly pack: string; readonly place: Place }[],
  ): Promise<(Located | undefined)[]> {
    const live = this.#live
    await this.#look(
      [...new Set(entries.map(({ pack }) => pack))].filter(pack => !live.has(pack)),
      live,
    )
    return entries.map(({ pack, place }) => checked(place, pack, live))
  }

  /** undefined in a plain store. Rejects with E_DAMAGED. */
  cipher(pack: string): Promise<RecordCipher | undefined> {
    if (this.#keys.idKey === undefined) return Promise.resolve(undefined)
    let cipher = this.#ciphers.get(pack)
    if (cipher === undefined) {
      cipher = this.#loadCipher(pack)
      cipher.catch(() => this.#ciphers.delete(pack))
      this.#ciphers.set(pack, cipher)
    }
    return cipher
  }

  async #loadCipher(pack: string): Promise<RecordCipher | undefined> {
    const header = await this.#packs.header(pack)
    if (header === undefined) return undefined
    return cipherOf(this.#keys, this.#storeId, header)
  }

  async #look(packs: readonly string[], live: Map<string, PackState>): Promise<void> {
    const states = await this.#index.use(index => index.getPacks(packs))
    await forEachLimited(packs.entries(), LOOKS_AT_ONCE, async ([at, pack]) => {
      const state = states[at]
      if (state !== undefined && (await this.#packs.size(pack)) === state.size) live.set(pack, state)
    })
  }
}

function checked(
  place: Place | undefined,
  pack: string | undefined,
  live: ReadonlyMap<string, PackState>,
): Located | undefined {
  if (place === undefined || pack === undefined) return undefined
  const state = live.get(pack)
  const { packId, offset, storedLength, plainLength, record, kind, flags } = place
  if (state === undefined || offset < PACK_HEADER_BYTES || offset > state.size) return undefined
  if (RECORD_HEADER_BYTES + storedLength > state.size - offset) return undefined
  const { size: packSize, sealed } = state
  return { packId, offset, storedLength, plainLength, record, kind, flags, pack, packSize, sealed }
}

/** In hex, the pack of each place. Neighbours mostly share one. */
function namesOf(places: readonly (Place | undefined)[]): (string | undefined)[] {
  let last: { readonly packId: Uint8Array; readonly name: string } | undefined
  return places.map(place => {
    if (place === undefined) return undefined
    if (last?.packId !== place.packId) last = { packId: place.packId, name: toHex(place.packId) }
    return last.name
  })
}

/** What the native codec needs for one pack; undefined in a plain store. */
export function cipherOf(
  keys: StoreKeys,
  storeId: Uint8Array,
  pack: { readonly salt: Uint8Array; readonly packId: Uint8Array },
): RecordCipher | undefined {
  const packKey = keys.packKey(pack.salt, pack.packId)
  if (packKey === undefined) return undefined
  const context = new Uint8Array(32)
  context.set(storeId, 0)
  context.set(pack.packId, 16)
  return { packKey, context }
}
