import { throwIfAborted } from '../base/async.js'
import { invariant } from '../base/invariant.js'
import { ImageFile } from './image-file.js'
import type { ImageOutcome, ImagePiece, ImageWriter } from './image-writer.js'
import { checkQcow2, type Qcow2Options, TABLE_BATCH_BYTES } from './qcow2.js'
import { ClusterGatherer, compressClusters, type GuestCluster } from './qcow2-clusters.js'
import {
  encodeHeader,
  planRefcounts,
  putAllSubclusters,
  putCompressed,
  putEntry,
  type Qcow2Geometry,
} from './qcow2-layout.js'
import { RefcountBlocks } from './qcow2-refcounts.js'
import { MappingTables } from './qcow2-tables.js'

/** How far the file may grow past a host cluster that packed bytes may still share. */
const MAX_OPEN_CLUSTERS = 1024

/** Bytes for a place in the file. */
interface HostWrite {
  readonly position: number
  readonly bytes: Uint8Array
}

/**
 * Writes a new qcow2 image with compressed clusters in one pass:
 *
 *     | header | packed … plain … L2 tables … refcount block … packed … | L1 | refcount table | rest of the blocks |
 *
 * Packed clusters lie one behind the other at any byte, over the bounds of host
 * clusters; what does not shrink has a host cluster of its own. So a host cluster
 * is used as often as packed clusters touch it, and blocks of refcounts are written
 * as soon as they are final. Memory: a batch's clusters packed, an L2 table, a
 * few refcount blocks, the L1 table.
 *
 * Without its header the file is not an image: what is interrupted never opens.
 */
export class CompressedQcow2Writer implements ImageWriter {
  readonly size: number
  readonly startsZeroed = true
  readonly #file: ImageFile
  readonly #geometry: Qcow2Geometry
  readonly #method: 'zlib' | 'zstd'
  readonly #tables: MappingTables
  readonly #refcounts: RefcountBlocks
  readonly #gatherer: ClusterGatherer
  /** Host offset of each refcount block that was written. */
  readonly #blockPlaces: number[] = []
  /** First free byte of the file, a multiple of the cluster size. */
  #next: number
  /** End of what was packed last: the rest of its host cluster is free. */
  #packEnd = 0
  /** No piece may start below. */
  #cursor = 0
  #dataBytes = 0
  #broken = false
  /** Calls place their clusters one after the other. */
  #turn: Promise<void> = Promise.resolve()

  private constructor(
    file: ImageFile,
    geometry: Qcow2Geometry & { readonly compression: 'zlib' | 'zstd' },
    size: number,
  ) {
    this.size = size
    this.#file = file
    this.#geometry = geometry
    this.#method = geometry.compression
    this.#tables = new MappingTables(geometry)
    this.#refcounts = new RefcountBlocks(geometry)
    this.#gatherer = new ClusterGatherer(geometry.clusterSize)
    this.#next = geometry.clusterSize
    this.#refcounts.use(0, geometry.clusterSize)
  }

  /**
   * Creates the temporary file. Rejects with E_UNSUPPORTED for a shape that
   * qcow2 or QEMU's limits do not allow, E_EXISTS, E_REFUSED, E_IO.
   */
  static async create(options: Qcow2Options): Promise<CompressedQcow2Writer> {
    const geometry = checkQcow2(options)
    const { compression } = geometry
    invariant(compression !== 'none', 'a compressed image needs a method')
    invariant(options.explicitZeros !== true, 'a compressed image has no explicit zero clusters')
    return new CompressedQcow2Writer(await ImageFile.create(options), { ...geometry, compression }, options.size)
  }

  get name(): string {
    return this.#file.path
  }

  async write(pieces: readonly ImagePiece[], bytes: Uint8Array, signal: AbortSignal): Promise<void> {
    throwIfAborted(signal)
    // No await before this is done: calls gather in the order in which they are made.
    let total = 0
    for (const piece of pieces) {
      this.#advance(piece)
      invariant(piece.length <= bytes.length - total, 'image pieces hold more than the bytes given')
      total += piece.length
    }
    this.#dataBytes += total
    await this.#store(this.#gatherer.gather(pieces, bytes), signal)
  }

  zero(offset: number, length: number, signal: AbortSignal): Promise<void> {
    throwIfAborted(signal)
    this.#advance({ offset, length })
    return Promise.resolve()
  }

  markDamaged(): Promise<void> {
    return this.#file.markDamaged()
  }

  async commit(signal: AbortSignal): Promise<ImageOutcome> {
    throwIfAborted(signal)
    await this.#store(this.#gatherer.rest(), signal)
    invariant(!this.#broken, 'a qcow2 image is committed after a failed write')
    this.#tables.finish()
    await this.#writeTables(1)

    const { clusterSize } = this.#geometry
    const l1 = this.#tables.l1Bytes
    const l1Table = this.#allocate(l1.length)
    await this.#file.write(l1, l1Table)

    const refcountTable = this.#next
    const plan = planRefcounts(this.#geometry, refcountTable / clusterSize, this.#refcounts.taken)
    this.#refcounts.use(refcountTable, plan.total * clusterSize - refcountTable)
    let block = refcountTable + plan.tableClusters * clusterSize
    while (this.#blockPlaces.length < plan.blocks) {
      throwIfAborted(signal)
      await this.#file.write(this.#refcounts.take(), block)
      this.#blockPlaces.push(block)
      block += clusterSize
    }
    const table = new DataView(new ArrayBuffer(plan.tableClusters * clusterSize))
    for (const [i, place] of this.#blockPlaces.entries()) table.setBigUint64(i * 8, BigInt(place))
    await this.#file.write(new Uint8Array(table.buffer), refcountTable)
    await this.#file.truncate(plan.total * clusterSize)
    // The magic must not reach the disk before what it promises.
    await this.#file.sync()
    const places = { l1Table, refcountTable, refcountTableClusters: plan.tableClusters }
    await this.#file.write(encodeHeader(this.#geometry, places), 0)
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

  /** Compresses at once, beside other calls; places and writes when its turn comes. */
  async #store(clusters: readonly GuestCluster[], signal: AbortSignal): Promise<void> {
    const packing = compressClusters(clusters, this.#method, signal)
    const before = this.#turn
    const turn = (async () => {
      const packed = await packing
      await before
      for (const write of joined(this.#place(clusters, packed))) {
        throwIfAborted(signal)
        await this.#file.write(write.bytes, write.position)
      }
      await this.#writeTables(TABLE_BATCH_BYTES)
      await this.#writeBlocks()
    })()
    this.#turn = turn
    try {
      await turn
    } catch (error) {
      this.#broken = true
      throw error
    }
  }

  /** Allocates for the clusters, notes where they are, and says which bytes go where. */
  #place(clusters: readonly GuestCluster[], packed: readonly (Uint8Array | undefined)[]): HostWrite[] {
    const { clusterBits, clusterSize, extendedL2 } = this.#geometry
    // What is packed first: so it stays together, and at most one host cluster a call has a free end.
    const places = packed.map(payload => (payload === undefined ? undefined : this.#pack(payload.length)))
    return clusters.map(({ index, bytes }, i) => {
      const { view, at } = this.#tables.entryOf(index)
      const payload = packed[i]
      const offset = places[i]
      if (payload === undefined || offset === undefined) {
        const host = this.#allocate(clusterSize)
        putEntry(view, at, host)
        if (extendedL2) putAllSubclusters(view, at)
        return { position: host, bytes }
      }
      putCompressed(view, at, { offset, length: payload.length, clusterBits })
      return { position: offset, bytes: payload }
    })
  }

  /** Room for packed bytes: behind the last ones where they fit, or where the file ends there. */
  #pack(length: number): number {
    const { clusterSize } = this.#geometry
    const free = (clusterSize - (this.#packEnd % clusterSize)) % clusterSize
    const canShare = free > 0 && this.#refcounts.hasRoom(this.#packEnd)
    let offset = this.#next
    if (canShare && (length <= free || this.#packEnd + free === this.#next)) offset = this.#packEnd
    this.#packEnd = offset + length
    this.#next = Math.max(this.#next, Math.ceil(this.#packEnd / clusterSize) * clusterSize)
    this.#refcounts.use(offset, length)
    return offset
  }

  /** Host clusters of their own at the end of the file. */
  #allocate(length: number): number {
    const { clusterSize } = this.#geometry
    const offset = this.#next
    this.#next += Math.ceil(length / clusterSize) * clusterSize
    this.#refcounts.use(offset, this.#next - offset)
    return offset
  }

  async #writeTables(minimum: number): Promise<void> {
    const tables = this.#tables.take(minimum, this.#next)
    if (tables === undefined) return
    this.#allocate(tables.bytes.length)
    await this.#file.write(tables.bytes, tables.position)
  }

  /** Refcount blocks that are final: below the end of the file, and the host cluster that may still be shared. */
  async #writeBlocks(): Promise<void> {
    const { clusterSize } = this.#geometry
    // Where packed bytes ended long ago, their host cluster is left as it is: it must not hold blocks back.
    if (this.#next - this.#packEnd > MAX_OPEN_CLUSTERS * clusterSize) this.#packEnd = 0
    for (;;) {
      const isShared = this.#packEnd % clusterSize !== 0
      const end = isShared ? Math.floor(this.#packEnd / clusterSize) * clusterSize : this.#next
      const bytes = this.#refcounts.takeBelow(end)
      if (bytes === undefined) return
      const place = this.#allocate(clusterSize)
      this.#blockPlaces.push(place)
      await this.#file.write(bytes, place)
    }
  }
}

/** Neighbours as one write. */
function joined(writes: readonly HostWrite[]): HostWrite[] {
  const runs: { position: number; length: number; parts: Uint8Array[] }[] = []
  for (const { position, bytes } of writes.toSorted((a, b) => a.position - b.position)) {
    const before = runs.at(-1)
    if (before !== undefined && before.position + before.length === position) {
      before.length += bytes.length
      before.parts.push(bytes)
    } else {
      runs.push({ position, length: bytes.length, parts: [bytes] })
    }
  }
  return runs.map(({ position, parts: [first, ...rest] }) => ({
    position,
    bytes:
      rest.length === 0 && first !== undefined
        ? first
        : Buffer.concat([...(first === undefined ? [] : [first]), ...rest]),
  }))
}
