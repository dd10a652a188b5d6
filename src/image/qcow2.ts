import { throwIfAborted } from '../base/async.js'
import { BackupError } from '../base/errors.js'
import { invariant } from '../base/invariant.js'
import { ImageFile } from './image-file.js'
import type { ImageFileOptions, ImageOutcome, ImagePiece, ImageWriter, ResumePort } from './image-writer.js'
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
import { MappingTables, type PlacedTables } from './qcow2-tables.js'

/** Finished L2 tables are written in batches of about this size, between the data. */
export const TABLE_BATCH_BYTES = 1 << 20
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
 * offset) and the tables come behind the data. With a data file it is the guest
 * offset itself: that file is the raw disk, this one holds tables alone, for the
 * whole disk, since "raw" promises that they say nothing that the file does not.
 *
 * Without its header the file is not an image: what is interrupted never opens.
 * Going on with one that was left under its partial name is to do it all again,
 * allocation for allocation, and to write only what is not there.
 */
export class Qcow2Writer implements ImageWriter {
  readonly size: number
  readonly startsZeroed: boolean
  readonly resume: ResumePort | undefined
  readonly #file: ImageFile
  readonly #dataFile: ImageFile | undefined
  readonly #geometry: Qcow2Geometry
  readonly #tables: MappingTables
  readonly #explicitZeros: boolean
  readonly #fillsZeros: boolean
  /** Where the first guest byte is, when all have a fixed place. */
  readonly #base: number
  readonly #isFixed: boolean
  /** First free byte of the file, a multiple of the cluster size. */
  #next: number
  /** The guest cluster allocated last; a later piece may continue in it. */
  #last = { cluster: -1, host: 0 }
  /** No piece may start below. */
  #cursor = 0
  #dataBytes = 0
  #broken = false

  private constructor(files: OpenFiles, geometry: Qcow2Geometry, options: Qcow2Options) {
    this.size = options.size
    this.#fillsZeros = options.preallocation === 'full'
    // What is never written is what the image below holds.
    this.startsZeroed = !this.#fillsZeros && options.backing === undefined
    this.#file = files.image
    this.resume =
      options.partial === undefined
        ? undefined
        : {
            isAdopted: files.image.isAdopted,
            recall: (pieces, bytes, settle, signal) => this.#recall({ pieces, bytes, settle }, signal),
            keep: () => files.image.keep(),
          }
    this.#dataFile = files.data
    this.#geometry = geometry
    this.#explicitZeros = options.explicitZeros === true
    this.#isFixed = isFixed(options)
    this.#tables = new MappingTables(geometry)
    this.#base = files.data === undefined ? geometry.clusterSize : 0
    const isHere = this.#isFixed && files.data === undefined
    this.#next = geometry.clusterSize + (isHere ? geometry.clusters * geometry.clusterSize : 0)
  }

  /**
   * Creates the temporary files. Rejects with E_UNSUPPORTED for a shape that
   * qcow2 or QEMU's limits do not allow, E_EXISTS, E_REFUSED, E_NO_SPACE, E_IO.
   */
  static async create(options: Qcow2Options, signal: AbortSignal): Promise<Qcow2Writer> {
    const geometry = checkQcow2(options)
    invariant(geometry.compression === 'none', 'compressed clusters have a writer of their own')
    invariant(options.partial === undefined || !isFixed(options), 'only plain images have a partial name')
    const image = await ImageFile.create(options)
    let data: ImageFile | undefined
    try {
      if (geometry.dataFile !== undefined) data = await ImageFile.create({ ...options, path: geometry.dataFile })
      // Every host cluster has its place before the first byte comes.
      const bytes = data === undefined ? geometry.clusterSize * (1 + geometry.clusters) : geometry.size
      if (options.preallocation === 'falloc' || options.preallocation === 'full') {
        await (data ?? image).reserve(bytes, signal)
      }
      await data?.truncate(geometry.size)
      // It may have been killed after its header was written.
      if (image.isAdopted) await image.write(new Uint8Array(geometry.clusterSize), 0)
    } catch (error) {
      await data?.[Symbol.asyncDispose]()
      await image[Symbol.asyncDispose]()
      throw error
    }
    return new Qcow2Writer({ image, data }, geometry, options)
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
        await (this.#dataFile ?? this.#file).write(bytes.subarray(start, start + length), position)
      }
      if (tables !== undefined) await this.#file.write(tables.bytes, tables.position)
    } catch (error) {
      this.#broken = true
      throw error
    }
  }

  async #recall(
    what: {
      readonly pieces: readonly ImagePiece[]
      readonly bytes: Uint8Array
      readonly settle: () => Promise<boolean>
    },
    signal: AbortSignal,
  ): Promise<boolean> {
    throwIfAborted(signal)
    const { bytes } = what
    const writes = this.#place(what.pieces, bytes.length)
    const tables = this.#takeTables(TABLE_BATCH_BYTES)
    const part = ({ start, length }: HostWrite) => bytes.subarray(start, start + length)
    try {
      for (const one of writes) await this.#file.read(part(one), one.position)
      const isRight = await what.settle()
      if (!isRight) for (const one of writes) await this.#file.write(part(one), one.position)
      // Tables are small, and nobody has checked them.
      if (tables !== undefined) await this.#file.write(tables.bytes, tables.position)
      return isRight
    } catch (error) {
      this.#broken = true
      throw error
    }
  }

  async zero(offset: number, length: number, signal: AbortSignal): Promise<void> {
    throwIfAborted(signal)
    this.#advance({ offset, length })
    if (this.#fillsZeros) await (this.#dataFile ?? this.#file).fillZeros(this.#base + offset, length, signal)
    if (!this.#explicitZeros || this.#isFixed) return
    const { clusterSize, clusters, extendedL2 } = this.#geometry
    const end = offset + length === this.size ? clusters : Math.floor((offset + length) / clusterSize)
    for (let cluster = Math.ceil(offset / clusterSize); cluster < end; cluster++) {
      const { view, at } = this.#tables.entryOf(cluster)
      putZeroCluster(view, at, extendedL2)
    }
    const tables = this.#takeTables(TABLE_BATCH_BYTES)
    if (tables !== undefined) await this.#file.write(tables.bytes, tables.position)
  }

  async markDamaged(): Promise<void> {
    await this.#file.markDamaged()
    await this.#dataFile?.markDamaged()
  }

  async commit(signal: AbortSignal): Promise<ImageOutcome> {
    invariant(!this.#broken, 'a qcow2 image is committed after a failed write')
    throwIfAborted(signal)
    if (this.#isFixed) await this.#writeIdentityTables(signal)
    else await this.#writeLastTables()

    const { clusterSize } = this.#geometry
    const l1Table = this.#next
    const l1 = this.#tables.l1Bytes
    await this.#file.write(l1, l1Table)
    const refcountTable = l1Table + roundUp(l1.length, clusterSize)
    const plan = planRefcounts(this.#geometry, refcountTable / clusterSize)
    await this.#writeRefcounts(refcountTable, plan, signal)
    await this.#file.truncate(plan.total * clusterSize)
    // The magic must not reach the disk before what it promises.
    await this.#file.sync()
    await this.#file.write(
      encodeHeader(
        { ...this.#geometry, dataFile: this.#dataFile?.path },
        { l1Table, refcountTable, refcountTableClusters: plan.tableClusters },
      ),
      0,
    )
    const dataFileBytes = (await this.#dataFile?.prepare()) ?? 0
    const imageBytes = await this.#file.prepare()
    // The image names the data file, so that one is there first.
    await this.#dataFile?.commit()
    try {
      await this.#file.commit()
    } catch (error) {
      await this.#dataFile?.withdraw()
      throw error
    }
    return { dataBytes: this.#dataBytes, fileBytes: imageBytes + dataFileBytes }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.#dataFile?.[Symbol.asyncDispose]()
    } finally {
      await this.#file[Symbol.asyncDispose]()
    }
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
      if (this.#isFixed) addWrite(writes, this.#base + piece.offset, start, piece.length)
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
      invariant(
        this.#geometry.backing === undefined || (within === 0 && (length === clusterSize || end === this.size)),
        'a cluster over another image is written whole',
      )
      addWrite(writes, this.#hostOf(cluster) + within, start + at - piece.offset, length)
      at += length
    }
  }

  /** Host offset of a guest cluster, allocated if it is not the one allocated last. */
  #hostOf(cluster: number): number {
    if (cluster === this.#last.cluster) return this.#last.host
    const { clusterSize, extendedL2 } = this.#geometry
    const host = this.#next
    this.#next += clusterSize
    const { view, at } = this.#tables.entryOf(cluster)
    putEntry(view, at, host)
    if (extendedL2) putAllSubclusters(view, at)
    this.#last = { cluster, host }
    return host
  }

  /** Finished tables with their place in the file, once they fill `minimum` bytes. */
  #takeTables(minimum: number): PlacedTables | undefined {
    const tables = this.#tables.take(minimum, this.#next)
    this.#next += tables?.bytes.length ?? 0
    return tables
  }

  async #writeLastTables(): Promise<void> {
    this.#tables.finish()
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
        putEntry(view, at, this.#base + cluster * clusterSize)
        if (extendedL2) putAllSubclusters(view, at)
      }
      for (let i = 0; i < count; i++) this.#tables.putL1(first + i, this.#next + i * clusterSize)
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

interface OpenFiles {
  readonly image: ImageFile
  readonly data: ImageFile | undefined
}

/** Throws E_UNSUPPORTED for options that no image can have. Touches nothing. */
export function checkQcow2(options: Qcow2Options): Qcow2Geometry {
  const geometry = qcow2Geometry(options)
  if (options.explicitZeros === true && geometry.version === 2) {
    throw new BackupError('E_UNSUPPORTED', 'a qcow2 image with compat 0.10 has no explicit zero clusters')
  }
  if (geometry.backing !== undefined) {
    invariant(options.explicitZeros === true, 'over another image zeros are told')
    if ((options.preallocation ?? 'off') !== 'off') {
      throw new BackupError('E_UNSUPPORTED', 'a qcow2 image on another one cannot be preallocated', {
        why: 'What is allocated hides what is below.',
        hints: ['ask for an image that holds everything:   --flatten'],
      })
    }
  }
  if (geometry.compression !== 'none' && (options.preallocation ?? 'off') !== 'off') {
    throw new BackupError('E_UNSUPPORTED', 'a qcow2 image cannot be preallocated and compressed', {
      why: 'How much room a compressed cluster takes is known only when it is written.',
    })
  }
  return geometry
}

function isFixed({ preallocation, dataFile }: Qcow2Options): boolean {
  return dataFile !== undefined || (preallocation ?? 'off') !== 'off'
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
