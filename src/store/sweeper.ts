import { throwIfAborted } from '../base/async.js'
import { fromHex, sameBytes, toHex } from '../base/hex.js'
import { INDEX_VALUE_BYTES, encodePlace } from '../format/index-value.js'
import { PACK_KIND, type PackEntry, type PackKind } from '../format/pack.js'
import { ID_BYTES, RECORD_HEADER_BYTES } from '../format/record.js'
import { RECORD_STATUS } from '../native/codec.js'
import type { IndexHolder } from './index-holder.js'
import { packKeyOf } from './layout.js'
import { type PackCatalog, type PackContents, indexBatchOf } from './pack-catalog.js'
import { type Liveness, liveEntriesOf } from './pack-census.js'
import { type PackRecordsParts, readPackRecords } from './pack-records.js'
import { PACK_TARGET_BYTES, PACK_TARGET_RECORDS, PackWriter, type PackWriterOptions } from './pack-writer.js'
import type { SweepWork, Swept } from './store-types.js'

export interface SweeperOptions extends PackRecordsParts {
  readonly packs: PackCatalog
  readonly index: IndexHolder
  readonly writer: Omit<PackWriterOptions, 'kind' | 'onSealed'>
  readonly liveness: Liveness
}

/**
 * Takes packs away that nobody relies on any more. Each step leaves the store
 * whole: what is needed is durable and indexed in a new pack before its old one
 * goes; the index forgets a pack before its file vanishes.
 */
export class Sweeper {
  readonly #options: SweeperOptions
  /** Rewritten packs whose live records are not yet durable elsewhere. */
  #pending: string[] = []
  #pendingBytes = 0
  #pendingRecords = 0
  readonly #swept = { deletedPacks: 0, deletedBytes: 0, writtenBytes: 0, damagedPacks: new Array<string>() }
  /** Ids whose index entry went with a pack although another has them. */
  readonly #orphans = new Set<string>()

  constructor(options: SweeperOptions) {
    this.#options = options
  }

  /**
   * Deletes first, so that a full disk has room for the rewriting. Rejects with
   * E_INTERRUPTED, E_NO_SPACE, E_IO, with some of the packs gone and all that is needed in place.
   */
  async sweep(work: SweepWork, signal: AbortSignal): Promise<Swept> {
    const data = this.#writer(PACK_KIND.data)
    const meta = this.#writer(PACK_KIND.meta)
    try {
      for (const id of work.dead) {
        throwIfAborted(signal)
        await this.#delete(id, await this.#contentsOf(id), work)
      }
      for (const id of work.rewritten) {
        throwIfAborted(signal)
        await this.#rewrite(id, { data, meta }, signal)
        if (this.#isEnoughPending()) await this.#deletePending([data, meta], work)
      }
      await this.#deletePending([data, meta], work)
      if (this.#orphans.size > 0) await this.#adoptOrphans()
      return this.#swept
    } finally {
      await Promise.all([data.abandon(), meta.abandon()])
    }
  }

  #writer(kind: PackKind): PackWriter {
    const { writer, index, locator } = this.#options
    return new PackWriter({
      ...writer,
      kind,
      onSealed: async (pack, contents) => {
        await index.use(index => index.putBatch(indexBatchOf(pack, contents)))
        locator.learn(pack, contents.state)
        this.#swept.writtenBytes += contents.state.size
      },
    })
  }

  async #rewrite(
    id: string,
    writers: { readonly data: PackWriter; readonly meta: PackWriter },
    signal: AbortSignal,
  ): Promise<void> {
    const contents = await this.#options.packs.read(id)
    if (contents === undefined) return
    const entries = liveEntriesOf(id, contents, this.#options.liveness)
    const writer = contents.state.kind === PACK_KIND.data ? writers.data : writers.meta
    for await (const batch of readPackRecords(this.#options, { id, entries }, signal)) {
      if (batch.statuses.some(status => status !== RECORD_STATUS.ok)) {
        this.#swept.damagedPacks.push(id)
        return
      }
      await writer.append({ bytes: batch.plain, spans: batch.spans, ids: batch.ids, kind: batch.kind })
    }
    this.#pending.push(id)
    this.#pendingBytes += entries.reduce((sum, entry) => sum + RECORD_HEADER_BYTES + entry.storedLength, 0)
    this.#pendingRecords += entries.length
  }

  #isEnoughPending(): boolean {
    return this.#pendingBytes >= PACK_TARGET_BYTES || this.#pendingRecords >= PACK_TARGET_RECORDS
  }

  async #deletePending(writers: readonly PackWriter[], work: SweepWork): Promise<void> {
    // I3: the new packs and their index entries, then the old packs.
    for (const writer of writers) await writer.seal()
    const pending = this.#pending
    this.#pending = []
    this.#pendingBytes = 0
    this.#pendingRecords = 0
    for (const id of pending) await this.#delete(id, await this.#contentsOf(id), work)
  }

  /** Whatever can be known of it: nothing of it is needed. */
  async #contentsOf(id: string): Promise<PackContents | undefined> {
    try {
      return await this.#options.packs.read(id)
    } catch {
      // An unsealed pack is in the index only where a rebuild salvaged it; then its place is found dead.
      return undefined
    }
  }

  async #delete(id: string, contents: PackContents | undefined, work: SweepWork): Promise<void> {
    const { index, objects, locator } = this.#options
    if (contents !== undefined) await this.#forgetEntries(id, contents.entries)
    const size = await objects.size(packKeyOf(id))
    await objects.remove(packKeyOf(id))
    // Last: until now, another process that looks for unknown packs must not take this one for new.
    await index.use(index => index.deletePacks([id]))
    locator.forget([id])
    this.#swept.deletedPacks++
    this.#swept.deletedBytes += size ?? 0
    work.onSwept(id)
  }

  /** Deletes index entries only where they still name this pack. */
  async #forgetEntries(id: string, entries: readonly PackEntry[]): Promise<void> {
    const { index, liveness } = this.#options
    const packId = fromHex(id)
    const ids = new Uint8Array(entries.length * ID_BYTES)
    const values = new Uint8Array(entries.length * INDEX_VALUE_BYTES)
    entries.forEach((entry, at) => {
      ids.set(entry.id, at * ID_BYTES)
      values.set(encodePlace(entry.id, { ...entry, packId }), at * INDEX_VALUE_BYTES)
    })
    const copies = entries.flatMap((entry, at) => (liveness.isCopy(id, entry.record) ? [at] : []))
    if (copies.length > 0) {
      const present = await index.use(index => index.getMany(ids))
      for (const at of copies) {
        const [from, to] = [at * INDEX_VALUE_BYTES, (at + 1) * INDEX_VALUE_BYTES]
        if (!sameBytes(present.subarray(from, to), values.subarray(from, to))) continue
        this.#orphans.add(toHex(ids.subarray(at * ID_BYTES, (at + 1) * ID_BYTES)))
      }
    }
    await index.use(index => index.deleteBatch(ids, values))
  }

  /** Points the index to the copies that are left. */
  async #adoptOrphans(): Promise<void> {
    const { packs, index } = this.#options
    for (const id of await packs.list()) {
      const contents = await this.#contentsOf(id)
      const entries = contents?.entries.filter(entry => this.#orphans.has(toHex(entry.id))) ?? []
      if (contents === undefined || entries.length === 0) continue
      await index.use(index => index.putBatch(indexBatchOf(id, { entries, state: contents.state })))
    }
  }
}
