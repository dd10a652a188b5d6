import { forEachLimited } from '../base/async.js'
import { errorCodeOf } from '../base/errors.js'
import { fromHex, sameBytes, toHex } from '../base/hex.js'
import { damaged } from '../format/damage.js'
import { INDEX_VALUE_BYTES, type PackState, type Place, encodePlaces } from '../format/index-value.js'
import {
  PACK_ENTRY_BYTES,
  PACK_HEADER_BYTES,
  PACK_KIND,
  PACK_TRAILER_BYTES,
  type FooterColumns,
  type PackEntry,
  type PackHeader,
  type PackTrailer,
  decodeFooterColumns,
  decodePackFooter,
  decodePackHeader,
  decodePackTrailer,
} from '../format/pack.js'
import { ID_BYTES, RECORD_KIND } from '../format/record.js'
import { native } from '../native/binding.js'
import type { ChunkIndex, IndexBatch } from './chunk-index.js'
import { packKeyOf, packOfKey } from './layout.js'
import type { ObjectStore } from './object-store.js'

/** Packs looked at together. */
const PACKS_AT_ONCE = 8
/** More than any pack of ours; a larger one is not scanned. */
const MAX_SCAN_BYTES = 1024 * 1024 * 1024

/** A pack as its own footer describes it. */
export interface PackContents {
  readonly state: PackState
  readonly entries: readonly PackEntry[]
}

/** One of several copies of a record. */
export interface PackedCopy {
  /** In hex. */
  readonly pack: string
  readonly place: Place
}

/** The packs as they lie in the object store, without an index. */
export class PackCatalog {
  readonly #objects: ObjectStore
  readonly #storeId: Uint8Array

  constructor(objects: ObjectStore, storeId: Uint8Array) {
    this.#objects = objects
    this.#storeId = storeId
  }

  /** Ids, in hex, of every pack file, sealed or not. */
  async list(): Promise<string[]> {
    const keys = await this.#objects.list('packs')
    return keys.map(packOfKey).filter(id => id !== undefined)
  }

  /** Bytes of the file; undefined where there is none. */
  size(packId: string): Promise<number | undefined> {
    return this.#objects.size(packKeyOf(packId))
  }

  /** undefined where there is no such pack. Rejects with E_DAMAGED. */
  async header(packId: string): Promise<PackHeader | undefined> {
    const bytes = new Uint8Array(PACK_HEADER_BYTES)
    const length = await this.#objects.read(packKeyOf(packId), bytes, 0)
    if (length === undefined) return undefined
    return this.#owned(packId, decodePackHeader(bytes.subarray(0, length)))
  }

  /** undefined where there is no such pack. Rejects with E_DAMAGED, also where it was never sealed. */
  async read(packId: string): Promise<PackContents | undefined> {
    const footer = await this.#footer(packId)
    if (footer === undefined) return undefined
    const entries = decodePackFooter(footer.bytes, footer.trailer)
    const kind = await this.#kind(packId, entries[0]?.kind)
    return { entries, state: { size: footer.size, entryCount: entries.length, kind, sealed: true } }
  }

  /** As read(), with less of it: for whoever goes through all packs. */
  async readColumns(packId: string): Promise<{ readonly size: number; readonly columns: FooterColumns } | undefined> {
    const footer = await this.#footer(packId)
    if (footer === undefined) return undefined
    const columns = decodeFooterColumns(footer.bytes, footer.trailer)
    // Only to be sure that it is ours.
    await this.#kind(packId, undefined)
    return { size: footer.size, columns }
  }

  /** Records of a pack without a valid footer, up to the first that is torn. */
  async scan(packId: string): Promise<PackContents | undefined> {
    const key = packKeyOf(packId)
    const size = await this.#objects.size(key)
    if (size === undefined || size < PACK_HEADER_BYTES || size > MAX_SCAN_BYTES) return undefined
    const bytes = new Uint8Array(size)
    const length = await this.#objects.read(key, bytes, 0)
    const { fields, ids } = await native().scanRecords(bytes.subarray(0, length ?? 0), PACK_HEADER_BYTES)
    const entries = Array.from({ length: ids.length / ID_BYTES }, (_, index): PackEntry => {
      const [offset = 0, record = 0, kind = 0, flags = 0, plainLength = 0, storedLength = 0] = fields.subarray(
        index * 6,
        index * 6 + 6,
      )
      return {
        id: ids.slice(index * ID_BYTES, (index + 1) * ID_BYTES),
        offset,
        record,
        kind,
        flags,
        plainLength,
        storedLength,
      }
    })
    const kind = await this.#kind(packId, entries[0]?.kind)
    return { entries, state: { size, entryCount: entries.length, kind, sealed: false } }
  }

  /** Other copies of records, in sealed packs: `ids` in hex, to the packs that have each, with its place there. */
  async copies(ids: ReadonlySet<string>): Promise<ReadonlyMap<string, readonly PackedCopy[]>> {
    const found = new Map<string, PackedCopy[]>()
    await forEachLimited(await this.list(), PACKS_AT_ONCE, async pack => {
      const contents = await this.#readIfSealed(pack)
      for (const entry of contents?.entries ?? []) {
        const id = toHex(entry.id)
        if (!ids.has(id)) continue
        found.set(id, [...(found.get(id) ?? []), { pack, place: { ...entry, packId: fromHex(pack) } }])
      }
    })
    return found
  }

  /** Indexes sealed packs that the index does not know. Gives how many. */
  async indexMissing(index: ChunkIndex): Promise<number> {
    // In this order: a pack sealed in between is in the listing and is indexed twice, never lost.
    const known = await index.packs()
    const missing = (await this.list()).filter(id => known.get(id)?.sealed !== true)
    let added = 0
    await forEachLimited(missing, PACKS_AT_ONCE, async id => {
      const contents = await this.#readIfSealed(id)
      if (contents === undefined) return
      await index.putBatch(indexBatchOf(id, contents))
      added++
    })
    return added
  }

  async reindexAll(index: ChunkIndex): Promise<void> {
    await forEachLimited(await this.list(), PACKS_AT_ONCE, async id => {
      const sealed = await this.#readIfSealed(id)
      if (sealed !== undefined) await index.putBatch(indexBatchOf(id, sealed))
      else await this.#salvage(index, id)
    })
  }

  async #footer(
    packId: string,
  ): Promise<{ readonly size: number; readonly trailer: PackTrailer; readonly bytes: Uint8Array } | undefined> {
    const key = packKeyOf(packId)
    const size = await this.#objects.size(key)
    if (size === undefined) return undefined
    const tail = new Uint8Array(PACK_TRAILER_BYTES)
    const length = await this.#objects.read(key, tail, Math.max(0, size - PACK_TRAILER_BYTES))
    const trailer = decodePackTrailer(tail.subarray(0, length ?? 0), size, fromHex(packId))
    const footer = new Uint8Array(trailer.entryCount * PACK_ENTRY_BYTES)
    const footerLength = await this.#objects.read(key, footer, trailer.footerOffset)
    return { size, trailer, bytes: footer.subarray(0, footerLength ?? 0) }
  }

  /**
   * From the header. Where only that is damaged, from the records, which in a
   * plain store need no header to be read. Rejects with E_DAMAGED where the
   * header says that the pack is not ours.
   */
  async #kind(packId: string, firstRecordKind: number | undefined): Promise<number> {
    const bytes = new Uint8Array(PACK_HEADER_BYTES)
    await this.#objects.read(packKeyOf(packId), bytes, 0)
    const header = await intactOnly(() => Promise.resolve().then(() => decodePackHeader(bytes)))
    if (header !== undefined) return this.#owned(packId, header).kind
    return firstRecordKind === RECORD_KIND.chunk ? PACK_KIND.data : PACK_KIND.meta
  }

  #owned(packId: string, header: PackHeader): PackHeader {
    if (!sameBytes(header.storeId, this.#storeId)) throw damaged(`pack ${packId}`, 'it belongs to another store')
    if (!sameBytes(header.packId, fromHex(packId))) throw damaged(`pack ${packId}`, 'it has the name of another pack')
    return header
  }

  async #salvage(index: ChunkIndex, packId: string): Promise<void> {
    const contents = await intactOnly(() => this.scan(packId))
    if (contents === undefined || contents.entries.length === 0) return
    // What a sealed pack has is better: only ids that nobody else has are taken from here.
    const ids = Buffer.concat(contents.entries.map(entry => entry.id))
    const present = await index.getMany(ids)
    const absent = contents.entries.filter((_, at) =>
      present.subarray(at * INDEX_VALUE_BYTES, (at + 1) * INDEX_VALUE_BYTES).every(byte => byte === 0),
    )
    await index.putBatch(indexBatchOf(packId, { ...contents, entries: absent }))
  }

  #readIfSealed(packId: string): Promise<PackContents | undefined> {
    return intactOnly(() => this.read(packId))
  }
}

/** Index entries and state of one pack, in one batch. */
export function indexBatchOf(packId: string, contents: Pick<PackContents, 'entries' | 'state'>): IndexBatch {
  const { entries, state } = contents
  const ids = new Uint8Array(entries.length * ID_BYTES)
  for (const [index, { id }] of entries.entries()) ids.set(id, index * ID_BYTES)
  return { ids, values: encodePlaces(ids, entries, fromHex(packId)), packs: [{ id: packId, state }] }
}

async function intactOnly<T>(work: () => Promise<T | undefined>): Promise<T | undefined> {
  try {
    return await work()
  } catch (error) {
    if (errorCodeOf(error) === 'E_DAMAGED') return undefined
    throw error
  }
}
