/**
 * The parts of a qcow2 file as bytes. Section names are those of the
 * specification, docs/interop/qcow2.rst in QEMU's source.
 */
import { BackupError } from '../base/errors.js'

/** "QFI\xfb" (section "Header"). */
const MAGIC = 0x514649fb
const V2_HEADER_BYTES = 72
/** v3 with the compression_type field and its padding (section "Additional fields"). */
const V3_HEADER_BYTES = 112
/** 16 bit, the only width of v2 and QEMU's default for v3. */
const REFCOUNT_ORDER = 4
const REFCOUNT_BYTES = 2
/** QEMU's limit, section "Header", field size. */
const MAX_L1_BYTES = 32 << 20
/** QEMU's limit, section "Host cluster management". */
const MAX_REFCOUNT_TABLE_BYTES = 8 << 20

/** Bit 63 of L1 and L2 entries: refcount is exactly one. In the high half. */
const COPIED_HIGH = 0x80000000
/** Bit 62 of an L2 entry, in the high half. */
const COMPRESSED_HIGH = 0x40000000
/** Bit 0 of a standard cluster descriptor: the cluster reads as zeros. */
const ZERO_FLAG = 1n

const INCOMPATIBLE_EXTERNAL_DATA_FILE = 1n << 2n
const INCOMPATIBLE_COMPRESSION_TYPE = 1n << 3n
const INCOMPATIBLE_EXTENDED_L2 = 1n << 4n
const COMPATIBLE_LAZY_REFCOUNTS = 1n
/** The data file alone, read as raw, is the disk. */
const AUTOCLEAR_RAW_EXTERNAL_DATA = 1n << 1n
/** "DATA", section "Header extensions". */
const EXTENSION_DATA_FILE = 0x44415441
/** Section "Header extensions": the format of the backing file. */
const EXTENSION_BACKING_FORMAT = 0xe2792aca
/** Section "Header", backing_file_size. */
const MAX_BACKING_BYTES = 1023
/** Room for the header and its extensions, within the first cluster. */
const MAX_HEADER_BYTES = 8192

/** What clusters are stored with; QEMU writes none of its own while a guest runs. */
export type Qcow2Compression = 'none' | 'zlib' | 'zstd'

export interface Qcow2Geometry {
  readonly size: number
  readonly clusterSize: number
  readonly clusterBits: number
  readonly version: 2 | 3
  readonly extendedL2: boolean
  readonly lazyRefcounts: boolean
  readonly compression: Qcow2Compression
  /** Absolute path of a raw file with the data; undefined where the image holds it. */
  readonly dataFile: string | undefined
  /** The image below. */
  readonly backing: BackingFile | undefined
  readonly clusters: number
  readonly l2EntryBytes: number
  /** Guest clusters that one L2 table maps. */
  readonly l2Entries: number
  readonly l1Entries: number
}

export interface Qcow2Shape {
  readonly size: number
  /** 512 bytes to 2 MiB; 64 KiB unless said otherwise. */
  readonly clusterSize?: number | undefined
  /** '1.1' (version 3, the default) or '0.10' (version 2). */
  readonly compat?: string | undefined
  readonly lazyRefcounts?: boolean | undefined
  readonly extendedL2?: boolean | undefined
  /** Store clusters compressed, where they shrink. */
  readonly compression?: Qcow2Compression | undefined
  /** Absolute path: data goes to this file, raw, and the image holds only tables. */
  readonly dataFile?: string | undefined
  /** What is not in this image is in that one. */
  readonly backing?: BackingFile | undefined
}

/** Another image, named in the header with its format, so that nobody guesses that. */
export interface BackingFile {
  /** Absolute. */
  readonly path: string
  readonly format: string
}

/** Rejects (throws E_UNSUPPORTED) what the format or QEMU's limits do not allow. */
export function qcow2Geometry(shape: Qcow2Shape): Qcow2Geometry {
  const clusterSize = shape.clusterSize ?? 65536
  const clusterBits = Math.log2(clusterSize)
  const version = versionOf(shape.compat ?? '1.1')
  const extendedL2 = shape.extendedL2 ?? false
  const lazyRefcounts = shape.lazyRefcounts ?? false
  const compression = shape.compression ?? 'none'
  if (!Number.isInteger(clusterBits) || clusterBits < 9 || clusterBits > 21) {
    throw unsupported(`a cluster size of ${clusterSize}`, 'It is a power of two between 512 B and 2 MiB.')
  }
  const { dataFile, backing } = shape
  if (backing !== undefined) {
    if (version === 2)
      throw unsupported('an image below it with compat 0.10', 'It could not tell zeros from what is below.')
    if (dataFile !== undefined || compression !== 'none') {
      throw unsupported('an image below it together with a data file or compressed clusters', 'Ask for a plain image.')
    }
    const bytes = headerBytesOn(backing)
    if (bytes.name > MAX_BACKING_BYTES || bytes.total > Math.min(clusterSize, MAX_HEADER_BYTES)) {
      throw unsupported(`an image below it with a path as long as ${backing.path}`, 'QEMU takes 1023 bytes.')
    }
  }
  if (version === 2) {
    const [newer] = [
      ...(lazyRefcounts ? ['lazy refcounts'] : []),
      ...(extendedL2 ? ['extended L2 entries'] : []),
      ...(compression === 'zstd' ? ['clusters compressed with zstd'] : []),
      ...(dataFile === undefined ? [] : ['a separate data file']),
    ]
    if (newer !== undefined) throw unsupported(`${newer} with compat 0.10`, 'They came with compat 1.1.')
  }
  if (dataFile !== undefined && compression !== 'none') {
    throw unsupported('compressed clusters in a separate data file', 'A data file is raw.')
  }
  if (extendedL2 && clusterBits < 14) {
    throw unsupported('extended L2 entries with clusters below 16 KiB', 'Ask for a cluster size of 16 KiB or more.')
  }
  // QEMU rounds the size of what it creates up to whole sectors and opens no other.
  const size = Math.ceil(shape.size / 512) * 512
  const l2EntryBytes = extendedL2 ? 16 : 8
  const l2Entries = clusterSize / l2EntryBytes
  const clusters = Math.ceil(size / clusterSize)
  const l1Entries = Math.ceil(clusters / l2Entries)
  if (l1Entries * 8 > MAX_L1_BYTES) {
    throw unsupported(`a disk of ${size} bytes with clusters of ${clusterSize}`, 'Ask for a larger cluster size.')
  }
  if (dataFile !== undefined && headerBytesWith(dataFile) > Math.min(clusterSize, MAX_HEADER_BYTES)) {
    throw unsupported(`a data file with a path as long as ${dataFile}`, 'The path must fit into the first cluster.')
  }
  return {
    size,
    clusterSize,
    clusterBits,
    version,
    extendedL2,
    lazyRefcounts,
    compression,
    dataFile,
    backing,
    clusters,
    l2EntryBytes,
    l2Entries,
    l1Entries,
  }
}

function versionOf(compat: string): 2 | 3 {
  if (compat === '1.1' || compat === 'v3') return 3
  if (compat === '0.10' || compat === 'v2') return 2
  throw unsupported(`compat ${compat}`, 'It is 1.1 or 0.10.')
}

function unsupported(what: string, why: string): BackupError {
  return new BackupError('E_UNSUPPORTED', `a qcow2 image cannot have ${what}`, { why })
}

/** Offsets in bytes; all are multiples of the cluster size. */
export interface Qcow2Places {
  readonly l1Table: number
  readonly refcountTable: number
  readonly refcountTableClusters: number
}

/** Section "Header". */
export function encodeHeader(geometry: Qcow2Geometry, places: Qcow2Places): Uint8Array {
  const isV3 = geometry.version === 3
  // Zeros behind the header end the list of header extensions.
  const bytes = new Uint8Array(Math.min(geometry.clusterSize, MAX_HEADER_BYTES))
  const view = new DataView(bytes.buffer)
  view.setUint32(0, MAGIC)
  view.setUint32(4, geometry.version)
  view.setUint32(20, geometry.clusterBits)
  view.setBigUint64(24, BigInt(geometry.size))
  view.setUint32(36, geometry.l1Entries)
  view.setBigUint64(40, BigInt(places.l1Table))
  view.setBigUint64(48, BigInt(places.refcountTable))
  view.setUint32(56, places.refcountTableClusters)
  if (!isV3) return bytes
  const zstd = geometry.compression === 'zstd'
  view.setBigUint64(
    72,
    (zstd ? INCOMPATIBLE_COMPRESSION_TYPE : 0n) |
      (geometry.extendedL2 ? INCOMPATIBLE_EXTENDED_L2 : 0n) |
      (geometry.dataFile === undefined ? 0n : INCOMPATIBLE_EXTERNAL_DATA_FILE),
  )
  view.setBigUint64(80, geometry.lazyRefcounts ? COMPATIBLE_LAZY_REFCOUNTS : 0n)
  view.setUint32(96, REFCOUNT_ORDER)
  view.setUint32(100, V3_HEADER_BYTES)
  view.setUint8(104, zstd ? 1 : 0)
  if (geometry.dataFile !== undefined) {
    const name = new TextEncoder().encode(geometry.dataFile)
    view.setBigUint64(88, AUTOCLEAR_RAW_EXTERNAL_DATA)
    view.setUint32(V3_HEADER_BYTES, EXTENSION_DATA_FILE)
    view.setUint32(V3_HEADER_BYTES + 4, name.length)
    bytes.set(name, V3_HEADER_BYTES + 8)
  }
  if (geometry.backing !== undefined) putBacking(bytes, geometry.backing)
  return bytes
}

/** The extension with the format, the end of the extensions, and behind them the path. */
function putBacking(bytes: Uint8Array, { path, format }: BackingFile): void {
  const view = new DataView(bytes.buffer)
  const [name, kind] = [new TextEncoder().encode(path), new TextEncoder().encode(format)]
  view.setUint32(V3_HEADER_BYTES, EXTENSION_BACKING_FORMAT)
  view.setUint32(V3_HEADER_BYTES + 4, kind.length)
  bytes.set(kind, V3_HEADER_BYTES + 8)
  const at = V3_HEADER_BYTES + 8 + Math.ceil(kind.length / 8) * 8 + 8
  bytes.set(name, at)
  view.setBigUint64(8, BigInt(at))
  view.setUint32(16, name.length)
}

function headerBytesOn({ path, format }: BackingFile): { readonly name: number; readonly total: number } {
  const name = new TextEncoder().encode(path).length
  return { name, total: V3_HEADER_BYTES + 8 + Math.ceil(new TextEncoder().encode(format).length / 8) * 8 + 8 + name }
}

/** With the extension that names the data file (which may be marked as damaged later), padded, and the one that ends the list. */
function headerBytesWith(dataFile: string): number {
  const length = new TextEncoder().encode(dataFile).length + '.damaged'.length
  return V3_HEADER_BYTES + 8 + Math.ceil(length / 8) * 8 + 8
}

export const QCOW2_HEADER_BYTES = { v2: V2_HEADER_BYTES, v3: V3_HEADER_BYTES } as const

/** Section "Cluster mapping": an entry of the L1 table, or of an L2 table for a standard cluster. */
export function putEntry(table: DataView, at: number, offset: number): void {
  table.setUint32(at, (COPIED_HIGH | Math.floor(offset / 2 ** 32)) >>> 0)
  table.setUint32(at + 4, offset % 2 ** 32)
}

/**
 * Section "Cluster mapping", compressed cluster descriptor: where `length`
 * bytes are, at any byte of the file. Subclusters have no bits then.
 */
export function putCompressed(
  table: DataView,
  at: number,
  data: { readonly offset: number; readonly length: number; readonly clusterBits: number },
): void {
  const { offset, length, clusterBits } = data
  const moreSectors = Math.floor((offset + length - 1) / 512) - Math.floor(offset / 512)
  const shift = BigInt(62 - (clusterBits - 8))
  table.setBigUint64(at, (BigInt(COMPRESSED_HIGH) << 32n) | (BigInt(moreSectors) << shift) | BigInt(offset))
}

/** Section "Extended L2 Entries": all 32 subclusters allocated. */
export function putAllSubclusters(table: DataView, at: number): void {
  table.setBigUint64(at + 8, 0xffffffffn)
}

/** A cluster that reads as zeros and takes no room (version 3). */
export function putZeroCluster(table: DataView, at: number, extendedL2: boolean): void {
  if (extendedL2) table.setBigUint64(at + 8, 0xffffffffn << 32n)
  else table.setBigUint64(at, ZERO_FLAG)
}

export interface RefcountPlan {
  /** All of them. */
  readonly blocks: number
  readonly tableClusters: number
  /** Clusters of the whole file. */
  readonly total: number
}

/**
 * Section "Host cluster management": how many refcount blocks a file of `used`
 * clusters needs when they come after it, but for the first `placed`, which are within.
 */
export function planRefcounts(geometry: Qcow2Geometry, used: number, placed = 0): RefcountPlan {
  const perBlock = geometry.clusterSize / REFCOUNT_BYTES
  const perTableCluster = geometry.clusterSize / 8
  let blocks = placed
  let tableClusters = 0
  // Blocks count themselves and the table: grow until they cover.
  for (;;) {
    const total = used + blocks - placed + tableClusters
    const neededBlocks = Math.max(placed, Math.ceil(total / perBlock))
    const neededTable = Math.ceil(neededBlocks / perTableCluster)
    if (neededBlocks === blocks && neededTable === tableClusters) {
      if (tableClusters * geometry.clusterSize > MAX_REFCOUNT_TABLE_BYTES) {
        throw unsupported(`more than ${total} clusters of ${geometry.clusterSize}`, 'Ask for a larger cluster size.')
      }
      return { blocks, tableClusters, total }
    }
    blocks = neededBlocks
    tableClusters = neededTable
  }
}
