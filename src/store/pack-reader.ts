import { forEachLimited, throwIfAborted } from '../base/async.js'
import { BufferPool } from '../base/buffer-pool.js'
import { errorCodeOf, messageOf } from '../base/errors.js'
import { toHex } from '../base/hex.js'
import { encodePlace } from '../format/index-value.js'
import { ID_BYTES, RECORD_HEADER_BYTES } from '../format/record.js'
import { native } from '../native/binding.js'
import { RECORD_STATUS } from '../native/codec.js'
import { type DamagedPiece, DamagedChunksError } from './damaged-chunks.js'
import type { IndexHolder } from './index-holder.js'
import type { StoreKeys } from './keys.js'
import { packKeyOf } from './layout.js'
import type { Located, Locator } from './locator.js'
import type { ObjectStore } from './object-store.js'
import type { PackCatalog } from './pack-catalog.js'

/** One read from a pack. */
const MAX_READ_BYTES = 8 * 1024 * 1024
/** Bytes of no interest that are read along rather than beginning another read. */
const MAX_GAP_BYTES = 128 * 1024
const READS_AT_ONCE = 4

export interface PackReaderOptions {
  readonly objects: ObjectStore
  readonly index: IndexHolder
  readonly packs: PackCatalog
  readonly locator: Locator
  readonly keys: StoreKeys
}

/** Pieces wanted: `ids` has 32 bytes per piece, piece i goes to `outSpans` pair i of `out`, whose length it must have. */
export interface Wanted {
  readonly ids: Uint8Array
  readonly out: Uint8Array
  readonly outSpans: Uint32Array
  /** One of RECORD_KIND. */
  readonly kind: number
}

/** Reads records from packs, in pack order, checked against their ids (I5). */
export class PackReader {
  readonly #objects: ObjectStore
  readonly #index: IndexHolder
  readonly #packs: PackCatalog
  readonly #locator: Locator
  readonly #keys: StoreKeys
  /**
   * A buffer of its own for each read cost a quarter of a restore's CPU time in
   * garbage collection and page faults.
   */
  readonly #buffers = new BufferPool(READS_AT_ONCE, MAX_READ_BYTES)

  constructor(options: PackReaderOptions) {
    this.#objects = options.objects
    this.#index = options.index
    this.#packs = options.packs
    this.#locator = options.locator
    this.#keys = options.keys
  }

  /** Rejects with a DamagedChunksError; the pieces that it does not name are in place. */
  async read(wanted: Wanted, signal: AbortSignal): Promise<void> {
    const all = Array.from({ length: wanted.ids.length / ID_BYTES }, (_, piece) => piece)
    let failed = await this.#readPieces(wanted, all, signal)
    if (failed.length > 0) {
      // A gc may have moved them, or another process have added packs.
      this.#locator.forget(failed.map(({ pack }) => pack).filter(pack => pack !== undefined))
      await this.#index.catchUp()
      failed = await this.#readPieces(
        wanted,
        failed.map(({ piece }) => piece),
        signal,
      )
    }
    if (failed.length > 0) {
      // The index may have lost or spoiled entries without knowing (I4).
      await this.#index.reindexAll()
      failed = await this.#readPieces(
        wanted,
        failed.map(({ piece }) => piece),
        signal,
      )
    }
    for (const { piece, pack } of failed) {
      if (pack !== undefined)
        this.#locator.distrust(pack, wanted.ids.subarray(piece * ID_BYTES, (piece + 1) * ID_BYTES))
    }
    if (failed.length > 0) failed = await this.#readCopies(wanted, failed, signal)
    if (failed.length > 0) throw new DamagedChunksError(failed, all.length)
  }

  /** Plain lengths of records, to make room for what is read; undefined where absent. */
  async plainLengths(ids: Uint8Array): Promise<(number | undefined)[]> {
    let places = await this.#locator.locate(ids)
    if (places.includes(undefined)) {
      await this.#index.catchUp()
      places = await this.#locator.locate(ids)
    }
    if (places.includes(undefined)) {
      await this.#index.reindexAll()
      places = await this.#locator.locate(ids)
    }
    return places.map(place => place?.plainLength)
  }

  /** Tries what other packs have of pieces whose first copy is bad, and lets the index name the good one. */
  async #readCopies(wanted: Wanted, failed: readonly DamagedPiece[], signal: AbortSignal): Promise<DamagedPiece[]> {
    const idOf = (piece: number) => wanted.ids.subarray(piece * ID_BYTES, (piece + 1) * ID_BYTES)
    const copies = await this.#packs.copies(new Set(failed.map(({ piece }) => toHex(idOf(piece)))))
    let left = failed
    for (let turn = 0; left.length > 0; turn++) {
      const turns = left.flatMap(damage => {
        const others = copies.get(toHex(idOf(damage.piece)))?.filter(({ pack }) => pack !== damage.pack) ?? []
        const copy = others[turn]
        return copy === undefined ? [] : [{ piece: damage.piece, copy }]
      })
      if (turns.length === 0) break
      const places = await this.#locator.locateAt(turns.map(({ copy }) => copy))
      const found = turns.flatMap(({ piece }, at) => {
        const place = places[at]
        return place === undefined ? [] : [{ piece, place }]
      })
      const bad = new Set((await this.#readFound(wanted, found, signal)).map(({ piece }) => piece))
      const good = found.filter(({ piece }) => !bad.has(piece))
      const ids = gatherIds(
        wanted.ids,
        good.map(({ piece }) => piece),
      )
      const values = Buffer.concat(good.map(({ piece, place }) => encodePlace(idOf(piece), place)))
      await this.#index.use(index => index.putBatch({ ids, values, packs: [] }))
      left = left.filter(({ piece }) => !good.some(one => one.piece === piece))
    }
    return [...left]
  }

  async #readPieces(wanted: Wanted, pieces: readonly number[], signal: AbortSignal): Promise<DamagedPiece[]> {
    const failed: DamagedPiece[] = []
    const found: Found[] = []
    const places = await this.#locator.locate(gatherIds(wanted.ids, pieces))
    pieces.forEach((piece, index) => {
      const place = places[index]
      if (place !== undefined) found.push({ piece, place })
      else failed.push({ piece, pack: undefined, offset: undefined, reason: 'it is in no pack' })
    })
    return [...failed, ...(await this.#readFound(wanted, found, signal))]
  }

  async #readFound(wanted: Wanted, found: Found[], signal: AbortSignal): Promise<DamagedPiece[]> {
    const failed: DamagedPiece[] = []
    await forEachLimited(coalesce(found), READS_AT_ONCE, async run => {
      throwIfAborted(signal)
      failed.push(...(await this.#readRun(wanted, run, signal)))
    })
    return failed
  }

  async #readRun(wanted: Wanted, run: ReadRun, signal: AbortSignal): Promise<DamagedPiece[]> {
    const pooled = run.length <= MAX_READ_BYTES ? await this.#buffers.take(signal) : undefined
    try {
      return await this.#readInto(pooled ?? Buffer.allocUnsafeSlow(run.length), wanted, run)
    } finally {
      if (pooled !== undefined) this.#buffers.give(pooled)
    }
  }

  async #readInto(buffer: Uint8Array, wanted: Wanted, run: ReadRun): Promise<DamagedPiece[]> {
    const why = (reason: string) =>
      run.found.map(({ piece, place }) => ({ piece, pack: run.pack, offset: place.offset, reason }))
    try {
      const bytes = buffer.subarray(0, run.length)
      const length = await this.#objects.read(packKeyOf(run.pack), bytes, run.offset)
      if (length === undefined) return why('the pack is gone')
      const cipher = await this.#locator.cipher(run.pack)
      const statuses = await native().decodeRecords(bytes.subarray(0, length), wanted.out, {
        offsets: Uint32Array.from(run.found, ({ place }) => place.offset - run.offset),
        ids: gatherIds(
          wanted.ids,
          run.found.map(({ piece }) => piece),
        ),
        kind: wanted.kind,
        outSpans: gatherSpans(wanted.outSpans, run.found),
        cipher,
        idKey: this.#keys.idKey,
      })
      if (statuses.every(status => status === RECORD_STATUS.ok)) return []
      return why('').flatMap((damage, index) => {
        const status = statuses[index]
        return status === RECORD_STATUS.ok ? [] : [{ ...damage, reason: reasonOf(status) }]
      })
    } catch (error) {
      // A pack that cannot be read hurts its own pieces only.
      const code = errorCodeOf(error)
      if (code !== 'E_DAMAGED' && code !== 'E_IO') throw error
      return why(messageOf(error))
    }
  }
}

interface Found {
  readonly piece: number
  readonly place: Located
}

interface ReadRun {
  readonly pack: string
  readonly offset: number
  length: number
  readonly found: Found[]
}

/** Reads that cover all places: in pack order, near ones together. */
function coalesce(found: Found[]): ReadRun[] {
  found.sort((a, b) =>
    a.place.pack === b.place.pack ? a.place.offset - b.place.offset : a.place.pack < b.place.pack ? -1 : 1,
  )
  const runs: ReadRun[] = []
  for (const one of found) {
    const { pack, offset } = one.place
    const end = offset + RECORD_HEADER_BYTES + one.place.storedLength
    const last = runs.at(-1)
    if (
      last !== undefined &&
      last.pack === pack &&
      offset - (last.offset + last.length) <= MAX_GAP_BYTES &&
      end - last.offset <= MAX_READ_BYTES
    ) {
      last.length = Math.max(last.length, end - last.offset)
      last.found.push(one)
    } else {
      runs.push({ pack, offset, length: end - offset, found: [one] })
    }
  }
  return runs
}

function gatherIds(ids: Uint8Array, pieces: readonly number[]): Uint8Array {
  const gathered = new Uint8Array(pieces.length * ID_BYTES)
  pieces.forEach((piece, index) =>
    gathered.set(ids.subarray(piece * ID_BYTES, (piece + 1) * ID_BYTES), index * ID_BYTES),
  )
  return gathered
}

function gatherSpans(spans: Uint32Array, found: readonly Found[]): Uint32Array {
  const gathered = new Uint32Array(found.length * 2)
  found.forEach(({ piece }, index) => {
    gathered[2 * index] = spans[2 * piece] ?? 0
    gathered[2 * index + 1] = spans[2 * piece + 1] ?? 0
  })
  return gathered
}

function reasonOf(status: number | undefined): string {
  switch (status) {
    case RECORD_STATUS.badHeader:
      return 'the record has no valid header'
    case RECORD_STATUS.badCrc:
      return 'the record has a wrong checksum'
    case RECORD_STATUS.badTag:
      return 'the record fails its authentication'
    case RECORD_STATUS.badCompression:
      return 'the record does not decompress'
    case RECORD_STATUS.badId:
      return 'the bytes are not what the id names'
    case RECORD_STATUS.badLength:
    case undefined:
    default:
      return 'the record has another length'
  }
}
