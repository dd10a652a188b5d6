import { limitedQueue } from '../base/async.js'
import { BufferPool } from '../base/buffer-pool.js'
import { BackupError } from '../base/errors.js'
import { invariant } from '../base/invariant.js'
import { toHex } from '../base/hex.js'
import type { RandomSource } from '../base/random.js'
import {
  PACK_ID_BYTES,
  PACK_TRAILER_BYTES,
  type PackEntry,
  type PackHeader,
  type PackKind,
  SALT_BYTES,
  encodePackFooter,
  encodePackHeader,
  encodePackTrailer,
} from '../format/pack.js'
import { ID_BYTES, RECORD_HEADER_BYTES, TAG_BYTES, readRecordHeader } from '../format/record.js'
import { native } from '../native/binding.js'
import type { EncodedRecords, RecordCipher } from '../native/codec.js'
import { ByteBudget } from './byte-budget.js'
import type { StoreKeys } from './keys.js'
import { packKeyOf } from './layout.js'
import { cipherOf } from './locator.js'
import type { ObjectStore, ObjectWriter } from './object-store.js'
import type { PackContents } from './pack-catalog.js'

/** A pack is closed once it has this much; the last records may make it somewhat larger. */
export const PACK_TARGET_BYTES = 64 * 1024 * 1024
/** Or once it has so many records: what compresses to nothing must not make footers of 100 MiB. */
export const PACK_TARGET_RECORDS = 65_536
/** Plain bytes per call of the native encoder. */
const SLICE_BYTES = 4 * 1024 * 1024
const SLICE_PIECES = 16_384
const ENCODES_AT_ONCE = 4
/**
 * Buffers that records are encoded into, kept: fresh ones cost a first full 12 %
 * of its CPU time in page faults and garbage collection.
 */
const OUTPUT_BUFFERS = ENCODES_AT_ONCE + 2
/** A slice of pieces of more than a few hundred bytes. */
const OUTPUT_BYTES = SLICE_BYTES + SLICE_BYTES / 32
/** Plain bytes on their way through encoder and file, of one writer. */
const IN_FLIGHT_BYTES = 32 * 1024 * 1024
/** Full packs whose sync is awaited in the background. */
const SEALS_AT_ONCE = 2

export interface PackWriterOptions {
  readonly objects: ObjectStore
  readonly kind: PackKind
  readonly storeId: Uint8Array
  readonly keys: StoreKeys
  readonly random: RandomSource
  readonly level: number
  /** Called when a pack is durable; before that nothing may rely on it. */
  readonly onSealed: (packId: string, contents: PackContents) => Promise<void>
}

/** Pieces of `bytes` to store: `spans` holds pairs (offset, length), `ids` 32 bytes per piece. */
export interface Pieces {
  readonly bytes: Uint8Array
  readonly spans: Uint32Array
  readonly ids: Uint8Array
  /** CRC32C of each piece from when it was named, unless `bytes` was checked against the ids a moment ago. */
  readonly sums?: Uint32Array | undefined
  /** One of RECORD_KIND. */
  readonly kind: number
}

/** Records, and the pooled buffer that they are in. */
interface Encoded {
  readonly records: EncodedRecords
  readonly room: Uint8Array | undefined
}

/**
 * Appends records to packs of one kind, one open pack at a time. Encoding runs
 * ahead in parallel; bytes reach the file in order of submission. The first
 * failure condemns everything: all later calls reject with it.
 */
export class PackWriter {
  readonly #options: PackWriterOptions
  readonly #encoder = limitedQueue(ENCODES_AT_ONCE)
  readonly #outputs = new BufferPool(OUTPUT_BUFFERS, OUTPUT_BYTES)
  readonly #stopped = new AbortController()
  readonly #budget = new ByteBudget(IN_FLIGHT_BYTES)
  readonly #sealing = new Set<Promise<void>>()
  #current: OpenPack | undefined
  #failure: { readonly error: unknown } | undefined

  constructor(options: PackWriterOptions) {
    this.#options = options
  }

  /**
   * Resolves once all pieces are encoded (then `bytes` is the caller's again),
   * with the bytes that they take in the pack. They are durable after seal().
   */
  async append(pieces: Pieces): Promise<number> {
    const slices: Promise<number>[] = []
    for (const [from, to, plainBytes] of slicesOf(pieces.spans)) {
      await this.#budget.take(plainBytes)
      while (this.#sealing.size >= SEALS_AT_ONCE) await Promise.race(this.#sealing)
      slices.push(this.#submit(slicePieces(pieces, from, to), plainBytes))
    }
    // All of them settle before `bytes` is given back, also when one fails.
    const settled = await Promise.allSettled(slices)
    this.#refuseFailed()
    return settled.reduce((sum, slice) => sum + (slice.status === 'fulfilled' ? slice.value : 0), 0)
  }

  /** Makes everything durable and ends the open pack; appending may go on, in a new one. */
  async seal(): Promise<void> {
    this.#closeCurrent()
    while (this.#sealing.size > 0) await Promise.all(this.#sealing)
    this.#refuseFailed()
  }

  /** Stops, and removes what is not sealed. Never rejects. */
  async abandon(): Promise<void> {
    this.#fail(new BackupError('E_INTERRUPTED', 'the recovery point was given up'))
    this.#stopped.abort()
    const open = this.#current
    this.#current = undefined
    await open?.abandon()
    await Promise.all(this.#sealing)
  }

  #submit(pieces: Pieces, plainBytes: number): Promise<number> {
    if (this.#failure !== undefined) {
      this.#budget.give(plainBytes)
      return Promise.reject(toError(this.#failure.error))
    }
    if (this.#current?.isFull === true) this.#closeCurrent()
    this.#current ??= new OpenPack(this.#options, this.#outputs)
    const { encoded, written } = this.#current.submit(pieces, plainBytes, work =>
      this.#encoder.add(() => this.#encodeInto(pieces, plainBytes, work)),
    )
    void written.catch((error: unknown) => this.#fail(error)).finally(() => this.#budget.give(plainBytes))
    return encoded
  }

  /** Takes a buffer in the order of submission, so that the one to be written next never waits for a later one. */
  async #encodeInto(pieces: Pieces, plainBytes: number, work: Encoding): Promise<Encoded> {
    const bound = plainBytes + (pieces.spans.length / 2) * (RECORD_HEADER_BYTES + TAG_BYTES)
    const room = bound <= OUTPUT_BYTES ? await this.#outputs.take(this.#stopped.signal) : undefined
    try {
      return { records: await work(room), room }
    } catch (error) {
      if (room !== undefined) this.#outputs.give(room)
      throw error
    }
  }

  #closeCurrent(): void {
    const pack = this.#current
    if (pack === undefined) return
    this.#current = undefined
    const sealing = pack
      .seal()
      .catch(async (error: unknown) => {
        this.#fail(error)
        // What a failed sync left is not to be taken for a pack.
        await pack.abandon()
      })
      .finally(() => this.#sealing.delete(sealing))
    this.#sealing.add(sealing)
  }

  #fail(error: unknown): void {
    this.#failure ??= { error }
  }

  #refuseFailed(): void {
    if (this.#failure !== undefined) throw toError(this.#failure.error)
  }
}

type Encoding = (room: Uint8Array | undefined) => Promise<EncodedRecords>

/** One pack file being written. Record numbers are given out at submission, because they are nonces. */
class OpenPack {
  readonly #options: PackWriterOptions
  readonly #outputs: BufferPool
  readonly #header: PackHeader
  readonly #cipher: RecordCipher | undefined
  readonly #entries: PackEntry[] = []
  readonly #object: Promise<ObjectWriter>
  #tail: Promise<unknown>
  #nextRecord = 0
  #plainPending = 0
  #plainDone = 0
  #written = 0

  constructor(options: PackWriterOptions, outputs: BufferPool) {
    const { keys, random } = options
    this.#outputs = outputs
    const packId = random(PACK_ID_BYTES)
    const encrypted = keys.idKey !== undefined
    this.#options = options
    this.#header = {
      kind: options.kind,
      encrypted,
      storeId: options.storeId,
      packId,
      salt: encrypted ? random(SALT_BYTES) : new Uint8Array(SALT_BYTES),
    }
    this.#cipher = cipherOf(keys, options.storeId, this.#header)
    this.#object = options.objects.create(packKeyOf(packId))
    this.#tail = this.#object.then(object => object.append(encodePackHeader(this.#header)))
    this.#tail.catch(() => undefined)
  }

  /** Whether it will have enough when all that was submitted is written; its size is guessed from what was written so far. */
  get isFull(): boolean {
    const ratio = this.#plainDone === 0 ? 1 : this.#written / this.#plainDone
    return this.#nextRecord >= PACK_TARGET_RECORDS || this.#written + this.#plainPending * ratio >= PACK_TARGET_BYTES
  }

  submit(
    pieces: Pieces,
    plainBytes: number,
    encode: (work: Encoding) => Promise<Encoded>,
  ): { readonly encoded: Promise<number>; readonly written: Promise<void> } {
    const firstRecord = this.#nextRecord
    this.#nextRecord += pieces.spans.length / 2
    this.#plainPending += plainBytes
    const { level } = this.#options
    const encoding = encode(out =>
      native().encodeRecords(pieces.bytes, pieces.spans, {
        kind: pieces.kind,
        ids: pieces.ids,
        firstRecord,
        level,
        cipher: this.#cipher,
        verify: true,
        sums: pieces.sums,
        out,
      }),
    )
    const before = this.#tail
    const written = (async () => {
      // Both are awaited whatever happens, so that neither rejects unseen.
      const [encoded, earlier] = await Promise.allSettled([encoding, before])
      this.#plainPending -= plainBytes
      if (encoded.status === 'rejected') throw toError(encoded.reason)
      const { records, room } = encoded.value
      try {
        if (earlier.status === 'rejected') throw toError(earlier.reason)
        await this.#write(records, pieces.ids, firstRecord)
      } finally {
        if (room !== undefined) this.#outputs.give(room)
      }
      this.#plainDone += plainBytes
    })()
    this.#tail = written
    return { encoded: encoding.then(({ records }) => records.bytes.length), written }
  }

  async seal(): Promise<void> {
    await this.#tail
    const object = await this.#object
    const footerOffset = object.size
    const footer = encodePackFooter(this.#entries)
    const trailer = encodePackTrailer({
      footerOffset,
      entryCount: this.#entries.length,
      footerCrc: native().crc32c(footer),
      packId: this.#header.packId,
    })
    await object.append(Buffer.concat([footer, trailer]))
    const size = footerOffset + footer.length + PACK_TRAILER_BYTES
    invariant(object.size === size, 'a pack has the size that its trailer tells')
    await object.seal()
    const state = { size, entryCount: this.#entries.length, kind: this.#header.kind, sealed: true }
    await this.#options.onSealed(toHex(this.#header.packId), { state, entries: this.#entries })
  }

  async abandon(): Promise<void> {
    await this.#tail.catch(() => undefined)
    await this.#object.then(
      object => object.abandon(),
      () => undefined,
    )
  }

  async #write(encoded: EncodedRecords, ids: Uint8Array, firstRecord: number): Promise<void> {
    const object = await this.#object
    const start = object.size
    await object.append(encoded.bytes)
    this.#written = object.size
    const { bytes } = encoded
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
    for (let index = 0; index < encoded.places.length / 2; index++) {
      const at = encoded.places[2 * index] ?? 0
      const length = encoded.places[2 * index + 1] ?? 0
      const header = readRecordHeader(view, at)
      invariant(
        header.record === firstRecord + index && header.storedLength === length - RECORD_HEADER_BYTES,
        'records are numbered and laid out as they were asked for',
      )
      this.#entries.push({
        id: ids.slice(index * ID_BYTES, (index + 1) * ID_BYTES),
        offset: start + at,
        plainLength: header.plainLength,
        storedLength: header.storedLength,
        record: header.record,
        kind: header.kind,
        flags: header.flags,
      })
    }
  }
}

/** [first piece, end, plain bytes) of parts that one encoder call takes. */
function* slicesOf(spans: Uint32Array): Generator<readonly [number, number, number]> {
  let from = 0
  let plainBytes = 0
  for (let piece = 0; piece < spans.length / 2; piece++) {
    const length = spans[2 * piece + 1] ?? 0
    if (plainBytes > 0 && (plainBytes + length > SLICE_BYTES || piece - from >= SLICE_PIECES)) {
      yield [from, piece, plainBytes]
      from = piece
      plainBytes = 0
    }
    plainBytes += length
  }
  if (plainBytes > 0) yield [from, spans.length / 2, plainBytes]
}

function slicePieces(pieces: Pieces, from: number, to: number): Pieces {
  const { bytes, spans, ids, sums, kind } = pieces
  return {
    bytes,
    kind,
    spans: spans.subarray(2 * from, 2 * to),
    ids: ids.subarray(ID_BYTES * from, ID_BYTES * to),
    sums: sums?.subarray(from, to),
  }
}

function toError(reason: unknown): Error {
  return reason instanceof Error ? reason : new Error(String(reason))
}
