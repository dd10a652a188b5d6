import { forEachLimited, throwIfAborted } from '../base/async.js'
import { errorCodeOf } from '../base/errors.js'
import { type FooterColumns, PACK_HEADER_BYTES, type PackEntry } from '../format/pack.js'
import { ID_BYTES, RECORD_HEADER_BYTES } from '../format/record.js'
import { IdRecords, rangesOf } from './id-records.js'
import { ID_WORDS, IdTable } from './id-table.js'
import type { PackCatalog, PackContents } from './pack-catalog.js'
import type { LiveIds, Reachability } from './reachability.js'

const PACKS_AT_ONCE = 4
/** Of a record: id, pack, number in the pack, bytes in the pack, plain bytes. */
const ENTRY_WORDS = ID_WORDS + 4
const PACK_WORD = ID_WORDS
const RECORD_WORD = ID_WORDS + 1
const BYTES_WORD = ID_WORDS + 2
const PLAIN_WORD = ID_WORDS + 3

/** One pack file as it was found. */
export interface CountedPack {
  /** In hex. */
  readonly id: string
  readonly size: number
  /**
   * sealed: its footer tells everything. unsealed: records up to the first torn
   * one are known. unreadable: nothing is known of what it holds. stub: too
   * short to hold a record.
   */
  readonly state: 'sealed' | 'unsealed' | 'unreadable' | 'stub'
  /** false where a thorough look found the header damaged; in a plain store its records can be read all the same. */
  readonly hasHeader: boolean
  readonly records: number
  /** Of all its records, headers included. */
  readonly recordBytes: number
  /** Number of its first record among those of all packs. */
  readonly firstRecord: number
}

/** A copy of a live id. */
export interface LiveRecord {
  readonly pack: CountedPack
  readonly record: number
  /** Bytes in the pack, header included. */
  readonly bytes: number
  readonly plainBytes: number
  readonly label: number
  readonly references: number
}

export interface CensusOptions {
  /** Knows the copies that were found damaged: they count only where there is no other. */
  readonly isDamaged: (packId: string, id: Uint8Array) => boolean
  /**
   * For verify: a pack that the disk does not give back counts as unreadable
   * instead of failing all, and headers are looked at too.
   */
  readonly isThorough?: boolean | undefined
}

/**
 * What the pack files themselves say they hold. The index is not asked: a
 * deletion that trusts a cache loses what the cache forgot.
 */
export class PackCensus implements AsyncDisposable {
  readonly packs: readonly CountedPack[]
  readonly #records: IdRecords
  readonly #recordCount: number
  readonly #isDamaged: (packId: string, id: Uint8Array) => boolean

  private constructor(
    packs: readonly CountedPack[],
    records: IdRecords,
    counted: { readonly recordCount: number; readonly isDamaged: (packId: string, id: Uint8Array) => boolean },
  ) {
    this.packs = packs
    this.#records = records
    this.#recordCount = counted.recordCount
    this.#isDamaged = counted.isDamaged
  }

  /**
   * Lists the packs and reads their footers. Rejects with E_IO, E_REFUSED,
   * E_INTERRUPTED: a pack that cannot be read is not an empty one.
   */
  static async take(catalog: PackCatalog, options: CensusOptions, signal: AbortSignal): Promise<PackCensus> {
    const records = new IdRecords(ENTRY_WORDS)
    const packs: CountedPack[] = []
    let recordCount = 0
    try {
      await forEachLimited(await catalog.list(), PACKS_AT_ONCE, async id => {
        throwIfAborted(signal)
        const found = await inspect(catalog, id, options.isThorough === true)
        if (found === undefined) return
        const { columns, size, state, hasHeader } = found
        const number = packs.length
        const count = columns?.storedLengths.length ?? 0
        let recordBytes = 0
        for (let at = 0; columns !== undefined && at < count; at++) {
          const bytes = RECORD_HEADER_BYTES + (columns.storedLengths[at] ?? 0)
          recordBytes += bytes
          records.add(columns.ids, at * columns.idStride, number, at, bytes, columns.plainLengths[at] ?? 0)
        }
        packs.push({ id, size, state, hasHeader, records: count, recordBytes, firstRecord: recordCount })
        recordCount += count
        if (records.isFull) await records.spill()
      })
      return new PackCensus(packs, records, { recordCount, isDamaged: options.isDamaged })
    } catch (error) {
      await records[Symbol.asyncDispose]()
      throw error
    }
  }

  /**
   * Finds a copy of every id in `live`: exactly one record per id is the one
   * that counts, in a sealed pack where there is one.
   */
  async join(live: readonly Reachability[], visitor: Partial<JoinVisitor>, signal: AbortSignal): Promise<Liveness> {
    const liveness = new Liveness(this.packs, this.#recordCount)
    for (const range of rangesOf([this.#records, ...live])) {
      throwIfAborted(signal)
      if (live.every(marked => marked.countIn(range) === 0)) continue
      const entries = await this.#records.read(range)
      const parts = await Promise.all(live.map(marked => marked.partitions(range)))
      this.#joinPart(parts, entries, { liveness, visitor })
    }
    return liveness
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#records[Symbol.asyncDispose]()
  }

  #joinPart(
    parts: readonly LiveIds[],
    entries: Uint32Array,
    { liveness, visitor }: { readonly liveness: Liveness; readonly visitor: Partial<JoinVisitor> },
  ): void {
    const [first, ...more] = parts
    if (first === undefined) return
    const { table, labels, references } = more.length === 0 ? first : union(parts)
    const isFound = new Uint8Array(table.count)
    const bytes = new Uint8Array(entries.buffer, entries.byteOffset, entries.byteLength)
    const second: number[] = []
    const take = (at: number, number: number) => {
      const pack = this.packs[entries[at + PACK_WORD] ?? 0]
      if (pack === undefined) return
      const record = entries[at + RECORD_WORD] ?? 0
      if (isFound[number] === 1) {
        liveness.addCopy(pack, record)
        return
      }
      isFound[number] = 1
      const size = entries[at + BYTES_WORD] ?? 0
      liveness.addLive(entries[at + PACK_WORD] ?? 0, pack, { record, bytes: size })
      visitor.onLive?.({
        pack,
        record,
        bytes: size,
        plainBytes: entries[at + PLAIN_WORD] ?? 0,
        label: labels[number] ?? 0,
        references: references[number] ?? 0,
      })
    }
    for (let at = 0; at < entries.length; at += ENTRY_WORDS) {
      const number = table.find(entries, at)
      if (number === -1) continue
      const pack = this.packs[entries[at + PACK_WORD] ?? 0]
      const isGood = pack?.state === 'sealed' && !this.#isDamaged(pack.id, bytes.subarray(at * 4, at * 4 + ID_BYTES))
      if (isGood) take(at, number)
      else second.push(at, number)
    }
    for (let pair = 0; pair < second.length; pair += 2) {
      const [at = 0, number = 0] = second.slice(pair, pair + 2)
      const id = bytes.slice(at * 4, at * 4 + ID_BYTES)
      const isOnly = isFound[number] !== 1
      take(at, number)
      if (isOnly && this.#isDamaged(this.packs[entries[at + PACK_WORD] ?? 0]?.id ?? '', id)) visitor.onOnlyDamaged?.(id)
    }
    for (let number = 0; number < table.count; number++) {
      if (isFound[number] === 1) continue
      liveness.missing++
      visitor.onMissing?.(table.ids.slice(number * ID_BYTES, (number + 1) * ID_BYTES))
    }
  }
}

export interface JoinVisitor {
  /** Once per id that has a copy. */
  onLive(record: LiveRecord): void
  /** Of an id that no pack has. */
  onMissing(id: Uint8Array): void
  /** Of an id of which there is no copy but one that was found damaged. */
  onOnlyDamaged(id: Uint8Array): void
}

/** Which records of which packs recovery points need. Two bits per record. */
export class Liveness {
  readonly liveBytes: Float64Array
  readonly liveRecords: Uint32Array
  /** Ids that no pack has. */
  missing = 0
  readonly #live: Uint8Array
  readonly #copies: Uint8Array
  readonly #firstRecords: ReadonlyMap<string, number>

  constructor(packs: readonly CountedPack[], recordCount: number) {
    this.liveBytes = new Float64Array(packs.length)
    this.liveRecords = new Uint32Array(packs.length)
    this.#live = new Uint8Array(Math.ceil(recordCount / 8))
    this.#copies = new Uint8Array(Math.ceil(recordCount / 8))
    this.#firstRecords = new Map(packs.map(pack => [pack.id, pack.firstRecord]))
  }

  /** Whether this very record is needed. */
  isLive(packId: string, record: number): boolean {
    return hasBit(this.#live, this.#numberOf(packId, record))
  }

  /** Whether its id is needed, and another pack has the copy that counts. */
  isCopy(packId: string, record: number): boolean {
    return hasBit(this.#copies, this.#numberOf(packId, record))
  }

  /** `at` is the pack's place in the census. */
  addLive(at: number, pack: CountedPack, live: { readonly record: number; readonly bytes: number }): void {
    this.liveBytes[at] = (this.liveBytes[at] ?? 0) + live.bytes
    this.liveRecords[at] = (this.liveRecords[at] ?? 0) + 1
    setBit(this.#live, pack.firstRecord + live.record)
  }

  addCopy(pack: CountedPack, record: number): void {
    setBit(this.#copies, pack.firstRecord + record)
  }

  #numberOf(packId: string, record: number): number {
    return (this.#firstRecords.get(packId) ?? 0) + record
  }
}

type Inspected = Pick<CountedPack, 'size' | 'state' | 'hasHeader'> & { readonly columns?: FooterColumns | undefined }

async function inspect(catalog: PackCatalog, id: string, isThorough: boolean): Promise<Inspected | undefined> {
  const isBad = (error: unknown) => errorCodeOf(error) === 'E_DAMAGED' || (isThorough && errorCodeOf(error) === 'E_IO')
  try {
    const footer = await catalog.readColumns(id)
    if (footer === undefined) return undefined
    const hasHeader = !isThorough || (await isSound(() => catalog.header(id)))
    return { ...footer, state: 'sealed', hasHeader }
  } catch (error) {
    if (!isBad(error)) throw error
  }
  const size = await catalog.size(id)
  if (size === undefined) return undefined
  // Killed before it had written anything that counts.
  if (size < PACK_HEADER_BYTES + RECORD_HEADER_BYTES) return { size, state: 'stub', hasHeader: false }
  try {
    const contents = await catalog.scan(id)
    // Gone since: a gc was faster.
    if (contents === undefined && (await catalog.size(id)) === undefined) return undefined
    return contents === undefined
      ? { size, state: 'unreadable', hasHeader: false }
      : { columns: columnsOf(contents.entries), size, state: 'unsealed', hasHeader: true }
  } catch (error) {
    if (!isBad(error)) throw error
    return { size, state: 'unreadable', hasHeader: false }
  }
}

function columnsOf(entries: readonly PackEntry[]): FooterColumns {
  return {
    ids: Buffer.concat(entries.map(({ id }) => id)),
    idStride: ID_BYTES,
    plainLengths: Uint32Array.from(entries, ({ plainLength }) => plainLength),
    storedLengths: Uint32Array.from(entries, ({ storedLength }) => storedLength),
  }
}

async function isSound(work: () => Promise<unknown>): Promise<boolean> {
  try {
    await work()
    return true
  } catch (error) {
    const code = errorCodeOf(error)
    if (code !== 'E_DAMAGED' && code !== 'E_IO') throw error
    return false
  }
}

function union(parts: readonly LiveIds[]): LiveIds {
  const capacity = parts.reduce((sum, { table }) => sum + table.count, 0)
  const all = { table: new IdTable(capacity), labels: new Uint32Array(capacity), references: new Uint32Array(capacity) }
  for (const { table, labels, references } of parts) {
    const { ids } = table
    const words = new Uint32Array(ids.buffer, ids.byteOffset, ids.length / 4)
    for (let number = 0; number < table.count; number++) {
      const at = all.table.add(words, number * ID_WORDS)
      all.labels[at] = labels[number] ?? 0
      all.references[at] = (all.references[at] ?? 0) + (references[number] ?? 0)
    }
  }
  return all
}

function hasBit(bits: Uint8Array, at: number): boolean {
  return (((bits[at >> 3] ?? 0) >> (at & 7)) & 1) === 1
}

function setBit(bits: Uint8Array, at: number): void {
  bits[at >> 3] = (bits[at >> 3] ?? 0) | (1 << (at & 7))
}

/** Entries of `contents` that are needed. */
export function liveEntriesOf(packId: string, contents: PackContents, liveness: Liveness): PackEntry[] {
  return contents.entries.filter((_, record) => liveness.isLive(packId, record))
}
