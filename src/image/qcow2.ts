import { throwIfAborted } from '../base/async.js'
import { BackupError } from '../base/errors.js'
import { invariant } from '../base/invariant.js'
import { ImageFile } from './image-file.js'
import type { ImageFileOptions, ImageOutcome, ImagePiece, ImageWriter } from './image-writer.js'
import {
  encodeHeader,
  planRefcounts,
  putAllSubclusters,
  putEntry,
  putZeroCluster,
  type Qcow2Geometry,
  type Qcow2Shape,
  qcow2Geometry,
} from './qcow2-layout.js'

/** Finished L2 tables are written in batches of about this size, between the data. */
const TABLE_BATCH_BYTES = 1 << 20
/** Refcounts and preallocated tables are generated and written in pieces of this size. */
const METADATA_STEP_BYTES = 4 << 20

export interface Qcow2Options extends ImageFileOptions, Omit<Qcow2Shape, 'size'> {
  /** Note zero() in the tables as explicit zero clusters; a fresh image reads as zeros without. Needs compat 1.1. */
  readonly explicitZeros?: boolean | undefined
}

/** A write of `[start, start + length)` of the caller's bytes to `position` of the file. */
interface HostWrite {
  position: number
  start: number
  length: number
}

/**
 * Writes a new qcow2 image in one pass, front to back:
 *
 *     | header | data … L2 tables … data … L2 tables | L1 | refcount table | refcount blocks |
 *     └ written last                                  └──────────── at commit ──────────────┘
 *
 * Guest clusters get host clusters in the order in which they are written, so
 * a batch of scattered pieces lands in the file as one large write. Each host
 * cluster is used once, so every refcount is one and the refcounts are known
 * from the length of the file. Memory: one L2 table, a batch of finished ones
 * and the L1 table (256 KiB for 16 TiB at 64 KiB clusters).
 *
 * With preallocation the host offset of a guest byte is fixed (header + guest
 * offset) and the tables come behind the data.
 *
 * Without its header the file is not an image: what is interrupted never opens.
 */
export class Qcow2Writer implements ImageWriter {
  readonly size: number
  readonly startsZeroed = true
  readonly #file: ImageFile
  readonly #geometry: Qcow2Geometry
  readonly #l1: DataView
  readonly #explicitZeros: boolean
  readonly #preallocated: boolean
  /** First free byte of the file, a multiple of the cluster size. */
  #next: number
  /** L2 table that is being filled. */
  #table: { readonly index: number; readonly view: DataView } | undefined
  #finished: { readonly index: number; readonly bytes: Uint8Array }[] = []
  /** The guest cluster allocated last; a later piece may continue in it. */
  #last = { cluster: -1, host: 0 }
  /** No piece may start below. */
  #cursor = 0
  #dataBytes = 0
  #broken = false

  private constructor(file: ImageFile, geometry: Qcow2Geometry, options: Qcow2Options) {
    this.size = options.size
    this.#file = file
    this.#geometry = geometry
    this.#explicitZeros = options.explicitZeros === true
    this.#preallocated = (options.preallocation ?? 'off') !== 'off'
    this.#l1 = new DataView(new ArrayBuffer(geometry.l1Entries * 8))
    this.#next = geometry.clusterSize + (this.#preallocated ? geometry.clusters * geometry.clusterSize : 0)
  }

  /**
   * Creates the temporary file. Rejects with E_UNSUPPORTED for a shape that
   * qcow2 or QEMU's limits do not allow, E_EXISTS, E_REFUSED, E_NO_SPACE, E_IO.
   */
  static async create(options: Qcow2Options, signal: AbortSignal): Promise<Qcow2Writer> {
    const geometry = qcow2Geometry(options)
    if (geometry.compression !== 'none') {
      throw new BackupError('E_UNSUPPORTED', 'writing compressed qcow2 clusters is not supported', {
        hints: [`Compress the finished image: qemu-img convert -c -O qcow2 ${options.path} COMPRESSED.qcow2`],
      })
    }
    if (options.explicitZeros === true && geometry.version === 2) {
      throw new BackupError('E_UNSUPPORTED', 'a qcow2 image with compat 0.10 has no explicit zero clusters')
    }
    const file = await ImageFile.create(options)
    try {
      if (options.preallocation === 'full') {
        await file.reserve(geometry.clusterSize * (1 + geometry.clusters), signal)
      }
    } catch (error) {
      await file[Symbol.asyncDispose]()
      throw error
    }
    return new Qcow2Writer(file, geometry, options)
  }

  get name(): string {
    return this.#file.path
  }

  async write(pieces: readonly ImagePiece[], bytes: Uint8Array, signal: AbortSignal): Promise<void> {
    throwIfAborted(signal)
    // No await before this is done: calls allocate in the order in which they are made.
    const writes = this.#place(pieces, bytes.length)
    const tables = this.#takeTables(TABLE_BATCH_BYTES)
    try {
      for (const { position, start, length } of writes) {
        throwIfAborted(signal)
        await this.#file.write(bytes.subarray(start, start + length), position)
      }
      if (tables !== undefined) await this.#file.write(tables.bytes, tables.position)
    } catch (error) {
      this.#broken = true
      throw error
    }
  }

  zero(offset: number, length: number, signal: AbortSignal): Promise<void> {
    throwIfAborted(signal)
    this.#advance({ offset, length })
    if (!this.#explicitZeros || this.#preallocated) return Promise.resolve()
    const { clusterSize, clusters, l2Entries, l2EntryBytes, extendedL2 } = this.#geometry
    const end = offset + length === this.size ? clusters : Math.floor((offset + length) / clusterSize)
    for (let cluster = Math.ceil(offset / clusterSize); cluster < end; cluster++) {
      const table = this.#tableOf(cluster)
      putZeroCluster(table, (cluster % l2Entries) * l2EntryBytes, extendedL2)
    }
    const tables = this.#takeTables(TABLE_BATCH_BYTES)
    return tables === undefined ? Promise.resolve() : this.#file.write(tables.bytes, tables.position)
  }

  markDamaged(): Promise<void> {
    return this.#file.markDamaged()
  }

  async commit(signal: AbortSignal): Promise<ImageOutcome> {
    invariant(!this.#broken, 'a qcow2 image is committed after a failed write')
    throwIfAborted(signal)
    if (this.#preallocated) await this.#writeIdentityTables(signal)
    else await this.#writeLastTables()

    const { clusterSize } = this.#geometry
    const l1Table = this.#next
    await this.#file.write(new Uint8Array(this.#l1.buffer), l1Table)
    const refcountTable = l1Table + roundUp(this.#l1.byteLength, clusterSize)
    const plan = planRefcounts(this.#geometry, refcountTable / clusterSize)
    await this.#writeRefcounts(refcountTable, plan, signal)
    await this.#file.truncate(plan.total * clusterSize)
    // The magic must not reach the disk before what it promises.
    await this.#file.sync()
    await this.#file.write(
      encodeHeader(this.#geometry, { l1Table, refcountTable, refcountTableClusters: plan.tableClusters }),
      0,
    )
    return { dataBytes: this.#dataBytes, fileBytes: await this.#file.commit() }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#file[Symbol.asyncDispose]()
  }

  #advance(piece: ImagePiece): void {
    invariant(
      piece.offset >= this.#cursor && piece.offset <= this.size && piece.length <= this.size - piece.offset,
      `image pieces must ascend within the disk: [${piece.offset}, +${piece.length}) after ${this.#cursor}`,
    )
    this.#cursor = piece.offset + piece.length
  }

  /** Allocates for the pieces and says which bytes go where, neighbours merged. */
  #place(pieces: readonly ImagePiece[], available: number): HostWrite[] {
    const writes: HostWrite[] = []
    let start = 0
    for (const piece of pieces) {
      this.#advance(piece)
      invariant(piece.length <= available - start, 'image pieces hold more than the bytes given')
      if (this.#preallocated) addWrite(writes, this.#geometry.clusterSize + piece.offset, start, piece.length)
      else this.#placePiece(piece, start, writes)
      start += piece.length
    }
    this.#dataBytes += start
    return writes
  }

  #placePiece(piece: ImagePiece, start: number, writes: HostWrite[]): void {
    const { clusterSize } = this.#geometry
    const end = piece.offset + piece.length
    for (let at = piece.offset; at < end; ) {
      const cluster = Math.floor(at / clusterSize)
      const within = at - cluster * clusterSize
      const length = Math.min(end - at, clusterSize - within)
      addWrite(writes, this.#hostOf(cluster) + within, start + at - piece.offset, length)
      at += length
    }
  }

  /** Host offset of a guest cluster, allocated if it is not the one allocated last. */
  #hostOf(cluster: number): number {
    if (cluster === this.#last.cluster) return this.#last.host
    const { clusterSize, l2Entries, l2EntryBytes, extendedL2 } = this.#geometry
    const host = this.#next
    this.#next += clusterSize
    const table = this.#tableOf(cluster)
    const at = (cluster % l2Entries) * l2EntryBytes
    putEntry(table, at, host)
    if (extendedL2) putAllSubclusters(table, at)
    this.#last = { cluster, host }
    return host
  }

  #tableOf(cluster: number): DataView {
    const index = Math.floor(cluster / this.#geometry.l2Entries)
    if (this.#table?.index !== index) {
      this.#finishTable()
      this.#table = { index, view: new DataView(new ArrayBuffer(this.#geometry.clusterSize)) }
    }
    return this.#table.view
  }

  #finishTable(): void {
    const table = this.#table
    if (table === undefined) return
    this.#finished.push({ index: table.index, bytes: new Uint8Array(table.view.buffer) })
    this.#table = undefined
  }

  /** Finished tables side by side with their place in the file, once they fill `minimum` bytes. */
  #takeTables(minimum: number): { readonly bytes: Uint8Array; readonly position: number } | undefined {
    const { clusterSize } = this.#geometry
    const tables = this.#finished
    if (tables.length === 0 || tables.length * clusterSize < minimum) return undefined
    const position = this.#next
    const bytes = new Uint8Array(tables.length * clusterSize)
    for (const [i, table] of tables.entries()) {
      bytes.set(table.bytes, i * clusterSize)
      putEntry(this.#l1, table.index * 8, position + i * clusterSize)
    }
    this.#next += bytes.length
    this.#finished = []
    return { bytes, position }
  }

  async #writeLastTables(): Promise<void> {
    this.#finishTable()
    const tables = this.#takeTables(1)
    if (tables !== undefined) await this.#file.write(tables.bytes, tables.position)
  }

  /** Tables that map every guest cluster to its fixed place. */
  async #writeIdentityTables(signal: AbortSignal): Promise<void> {
    const { clusters, clusterSize, l2Entries, l2EntryBytes, l1Entries, extendedL2 } = this.#geometry
    const batch = Math.max(1, METADATA_STEP_BYTES / clusterSize)
    for (let first = 0; first < l1Entries; first += batch) {
      throwIfAborted(signal)
      const count = Math.min(batch, l1Entries - first)
      const view = new DataView(new ArrayBuffer(count * clusterSize))
      const end = Math.min(clusters, (first + count) * l2Entries)
      for (let cluster = first * l2Entries, at = 0; cluster < end; cluster++, at += l2EntryBytes) {
        putEntry(view, at, (1 + cluster) * clusterSize)
        if (extendedL2) putAllSubclusters(view, at)
      }
      for (let i = 0; i < count; i++) putEntry(this.#l1, (first + i) * 8, this.#next + i * clusterSize)
      await this.#file.write(new Uint8Array(view.buffer), this.#next)
      this.#next += view.byteLength
    }
  }

  /** Table and blocks; every cluster of the file is used exactly once. */
  async #writeRefcounts(position: number, plan: ReturnType<typeof planRefcounts>, signal: AbortSignal): Promise<void> {
    const { clusterSize } = this.#geometry
    const blocks = position + plan.tableClusters * clusterSize
    const table = new DataView(new ArrayBuffer(plan.blocks * 8))
    for (let i = 0; i < plan.blocks; i++) table.setBigUint64(i * 8, BigInt(blocks + i * clusterSize))
    await this.#file.write(new Uint8Array(table.buffer), position)

    const ones = new Uint8Array(Math.min(METADATA_STEP_BYTES, plan.total * 2))
    for (let i = 1; i < ones.length; i += 2) ones[i] = 1
    for (let done = 0; done < plan.total * 2; done += ones.length) {
      throwIfAborted(signal)
      await this.#file.write(ones.subarray(0, Math.min(ones.length, plan.total * 2 - done)), blocks + done)
    }
  }
}

function addWrite(writes: HostWrite[], position: number, start: number, length: number): void {
  const before = writes.at(-1)
  if (before !== undefined && before.position + before.length === position && before.start + before.length === start) {
    before.length += length
  } else {
    writes.push({ position, start, length })
  }
}

function roundUp(value: number, unit: number): number {
  return Math.ceil(value / unit) * unit
}
