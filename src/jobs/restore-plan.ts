import { join, resolve } from 'node:path'

import { BackupError } from '../base/errors.js'
import type { ImageSpec } from '../image/image-factory.js'
import type { FileOwner, ImageFormat, Preallocation } from '../image/image-writer.js'
import type { DiskSource, PointBlob, PointDisk, RecoveryPoint } from '../model/recovery-point.js'
import { refuseLeftOut } from './left-out.js'
import type { DiskExport } from './pull-disk.js'
import type { RestoredBelow } from './restore-below.js'
import { pointName } from './restore-damage.js'
import { fileNames } from './restore-names.js'

/** Where the disks of a point go. */
export type RestoreDestination =
  | ({ readonly kind: 'directory' } & DirectoryDestination)
  /** Existing block devices or NBD exports, by disk target. */
  | { readonly kind: 'places'; readonly places: ReadonlyMap<string, ExistingPlace> }
  /** One disk, raw, on standard output. */
  | { readonly kind: 'stream' }

export interface DirectoryDestination {
  readonly path: string
  /**
   * own: `vda.qcow2`, with XML, NVRAM and the like beside. shared: images of
   * other domains are there too (a storage pool): `web01-vda.qcow2`, and nothing beside.
   */
  readonly layout?: 'own' | 'shared' | undefined
  readonly format: ImageFormat
  readonly preallocation?: Preallocation | undefined
  readonly owner?: FileOwner | undefined
  readonly mode?: number | undefined
  readonly qcow2?: Qcow2Wishes | undefined
}

/** Properties of qcow2 images; what is undefined is as in the original disk, but for the last two. */
export interface Qcow2Wishes {
  readonly clusterSize?: number | undefined
  readonly compat?: string | undefined
  readonly lazyRefcounts?: boolean | undefined
  readonly extendedL2?: boolean | undefined
  /** original: with the method that the original's header names; whether it had compressed clusters is not known. */
  readonly compression?: 'none' | 'zlib' | 'zstd' | 'original' | undefined
  /** Data in a raw file beside the image. */
  readonly dataFile?: boolean | undefined
}

export type ExistingPlace =
  | { readonly kind: 'device'; readonly path: string }
  | { readonly kind: 'export'; readonly uri: string }

export interface RestoreRequest {
  readonly point: RecoveryPoint
  /** Disk targets; all of the point unless given. */
  readonly disks?: readonly string[] | undefined
  readonly destination: RestoreDestination
  /** Replace files, overwrite devices that hold something. */
  readonly force?: boolean | undefined
  /** By target: the images that the point leaves out, where they are now. */
  readonly backing?: ReadonlyMap<string, FoundBacking> | undefined
  /** Images hold everything, also what is in those that the point leaves out. */
  readonly flatten?: boolean | undefined
  /** Of the store; an image on others has clusters no larger. */
  readonly chunkSize?: number | undefined
  /** stop: nothing appears. keep: an image marked as damaged and a map of what is lost. */
  readonly onDamage: 'stop' | 'keep'
}

/** Images that a point leaves out, found and open. */
export interface FoundBacking {
  /** Of the topmost: absolute. */
  readonly path: string
  readonly format: string
  readonly images: DiskExport
  readonly notes: readonly string[]
}

export interface PlannedDisk {
  readonly disk: PointDisk
  readonly spec: ImageSpec
  /** Where the point leaves out images. */
  readonly below?: RestoredBelow | undefined
  /** What the user should know about this disk, one sentence each. */
  readonly notes: readonly string[]
}

export interface PlannedFile {
  readonly blob: PointBlob
  readonly path: string
}

export interface RestorePlan {
  readonly point: RecoveryPoint
  readonly disks: readonly PlannedDisk[]
  /** Domain XML, NVRAM and the like, beside the images. */
  readonly files: readonly PlannedFile[]
  readonly onDamage: 'stop' | 'keep'
  readonly force: boolean
}

/**
 * Says what a restore will write, and touches nothing. Throws E_NO_DISK for a
 * disk that the point has not, E_USAGE for a destination that does not fit,
 * E_UNSUPPORTED for a disk that lies on images which nobody has found.
 */
export function planRestore(request: RestoreRequest): RestorePlan {
  const { point, destination } = request
  const force = request.force === true
  const disks = chooseDisks(point, request.disks)
  const specs = specsOf(disks, { point, destination, force })
  return {
    point,
    disks: disks.map((disk, i) => planDisk(request, disk, at(specs, i))),
    files:
      destination.kind === 'directory' && destination.layout !== 'shared' ? planFiles(point, destination.path) : [],
    onDamage: request.onDamage,
    force,
  }
}

function planDisk(request: RestoreRequest, disk: PointDisk, spec: ImageSpec): PlannedDisk {
  if (disk.below === undefined) return { disk, spec, notes: notesOn(disk, spec) }
  const found = request.backing?.get(disk.target)
  if (found === undefined) {
    refuseLeftOut(request.point, [disk], 'restored without them')
    throw new RangeError('bug: a disk that leaves out images was not refused')
  }
  if (spec.kind !== 'qcow2' || request.flatten === true) {
    const notes = [...found.notes, `It holds all of the disk: what the point leaves out is from ${found.path}.`]
    return { disk, spec, below: { kind: 'copy', images: found.images }, notes: [...notesOn(disk, spec), ...notes] }
  }
  const overlay = overlaySpec(spec, found, request.chunkSize ?? DEFAULT_CLUSTER_BYTES)
  const notes = [...found.notes, `It lies on ${found.path}, which must stay as it is, and where it is.`]
  return { disk, spec: overlay, below: { kind: 'leave' }, notes: [...notesOn(disk, overlay), ...notes] }
}

/** qcow2's own, where none was asked for. */
const DEFAULT_CLUSTER_BYTES = 64 << 10

/** Clusters larger than chunks would be written in part, and hide what is below the rest. */
function overlaySpec(
  spec: ImageSpec & { readonly kind: 'qcow2' },
  { path, format }: FoundBacking,
  chunkSize: number,
): ImageSpec & { readonly kind: 'qcow2' } {
  const { compat, ...rest } = spec
  const clusterSize = Math.min(spec.clusterSize ?? DEFAULT_CLUSTER_BYTES, chunkSize)
  const isOld = compat === OLD_COMPAT
  return { ...rest, clusterSize, compat: isOld ? undefined : compat, explicitZeros: true, backing: { path, format } }
}

/** Throws E_NO_DISK for a disk that the point has not. */
export function chooseDisks(point: RecoveryPoint, wanted: readonly string[] | undefined): readonly PointDisk[] {
  const missing = wanted?.find(target => !point.disks.some(disk => disk.target === target))
  if (missing !== undefined) {
    const skipped = point.skipped.find(disk => disk.target === missing)
    throw new BackupError('E_NO_DISK', `${pointName(point)} has no disk ${missing}`, {
      why: skipped === undefined ? undefined : `It was not backed up: ${skipped.reason}`,
      hints: [`Disks of this point: ${point.disks.map(disk => disk.target).join(', ')}`],
    })
  }
  return wanted === undefined ? point.disks : point.disks.filter(disk => wanted.includes(disk.target))
}

interface Where {
  readonly point: RecoveryPoint
  readonly destination: RestoreDestination
  readonly force: boolean
}

function specsOf(disks: readonly PointDisk[], { point, destination, force }: Where): readonly ImageSpec[] {
  switch (destination.kind) {
    case 'directory': {
      const names = fileNames(
        disks.map(({ target }) => (destination.layout === 'shared' ? `${point.domain.name}-${target}` : target)),
        'disk',
      )
      return disks.map((disk, i) => fileSpec(disk, at(names, i), { ...destination, force }))
    }
    case 'places':
      return disks.map(disk => placeSpec(point, disk, { places: destination.places, force }))
    case 'stream':
      if (disks.length === 1) return disks.map(({ size }) => ({ kind: 'stream', size }))
      throw new BackupError('E_USAGE', `standard output takes one disk, ${pointName(point)} has ${disks.length}`, {
        hints: ['Choose one with --disk.'],
      })
  }
}

function fileSpec(disk: PointDisk, name: string, to: DirectoryDestination & { readonly force: boolean }): ImageSpec {
  const { size } = disk
  const { force, preallocation, owner, mode } = to
  const file = { path: join(to.path, `${name}.${to.format}`), size, force, preallocation, owner, mode }
  if (to.format === 'raw') return { kind: 'raw', ...file }
  const { dataFile, ...shape } = qcow2Shape(disk, to.qcow2 ?? {})
  const dataPath = dataFile ? resolve(to.path, `${name}.data.raw`) : undefined
  return { kind: 'qcow2', ...file, ...shape, dataFile: dataPath }
}

const OLD_COMPAT = '0.10'
/** Extended L2 entries need clusters of this size. */
const MIN_EXTENDED_CLUSTER_BYTES = 16 << 10

/** What was asked for, and for the rest the original's properties, as far as they go with that. */
function qcow2Shape({ source }: PointDisk, asked: Qcow2Wishes) {
  const original: Partial<DiskSource> = source.format === 'qcow2' ? source : {}
  const dataFile = asked.dataFile === true
  const compression =
    asked.compression === 'original' ? (original.compressionType === 'zstd' ? 'zstd' : 'zlib') : asked.compression
  const needsNew = asked.lazyRefcounts === true || asked.extendedL2 === true || dataFile || compression === 'zstd'
  const compat = asked.compat ?? (needsNew ? undefined : original.compat)
  const clusterSize = asked.clusterSize ?? original.clusterSize
  const isOld = compat === OLD_COMPAT
  const isSmall = clusterSize !== undefined && clusterSize < MIN_EXTENDED_CLUSTER_BYTES
  return {
    clusterSize,
    compat,
    lazyRefcounts: asked.lazyRefcounts ?? (isOld ? undefined : original.lazyRefcounts),
    extendedL2: asked.extendedL2 ?? (isOld || isSmall ? undefined : original.extendedL2),
    compression,
    dataFile,
  }
}

function placeSpec(
  point: RecoveryPoint,
  { target, size }: PointDisk,
  to: { readonly places: ReadonlyMap<string, ExistingPlace>; readonly force: boolean },
): ImageSpec {
  const place = to.places.get(target)
  if (place === undefined) {
    throw new BackupError('E_USAGE', `no place was given for disk ${target} of ${pointName(point)}`, {
      hints: ['Give one, or leave the disk out by naming the others with --disk.'],
    })
  }
  return place.kind === 'device' ? { ...place, size, force: to.force } : { ...place, size }
}

/** `web01.xml` is the domain's persistent definition, or the live one where it has none. */
function planFiles(point: RecoveryPoint, directory: string): readonly PlannedFile[] {
  const [domain = 'domain'] = fileNames([point.domain.name], 'domain')
  const labels = fileNames(
    // `tpm/tpm2/NAME` becomes `tpm-tpm2-NAME`.
    point.blobs.map(blob => blob.name.replace(/^domain-/, '').replaceAll('/', '-')),
    'file',
  )
  const hasInactive = point.blobs.some(blob => blob.name === 'domain-inactive.xml')
  return point.blobs.map((blob, i) => {
    const isDefinition = blob.name === 'domain-inactive.xml' || (blob.name === 'domain-live.xml' && !hasInactive)
    const name = isDefinition ? `${domain}.xml` : `${domain}.${at(labels, i)}`
    return { blob, path: join(directory, name) }
  })
}

function notesOn({ source, size }: PointDisk, spec: ImageSpec): readonly string[] {
  const notes: string[] = []
  if (source.encryption !== undefined) {
    notes.push(`The original was encrypted (${source.encryption}); the restored image holds plain data.`)
  }
  const dataFile = spec.kind === 'qcow2' ? spec.dataFile : undefined
  if (dataFile !== undefined) {
    notes.push(`Its data is in ${dataFile}, a raw image; this path is in the qcow2 file, so both stay where they are.`)
  } else if (source.dataFile !== undefined) {
    notes.push('The original kept its data in a separate file; the image holds it itself.')
  }
  if (spec.kind === 'qcow2') {
    const lost = lostProperties(source, spec)
    if (lost.length > 0)
      notes.push(`Unlike the original it has no ${lost.join(' and no ')}: what was asked for rules it out.`)
  }
  if (spec.kind === 'qcow2' && size % 512 !== 0) {
    notes.push('The size is no multiple of 512 bytes; a qcow2 image is rounded up.')
  }
  return notes
}

function lostProperties(
  source: DiskSource,
  spec: { readonly lazyRefcounts?: boolean | undefined; readonly extendedL2?: boolean | undefined },
): string[] {
  if (source.format !== 'qcow2') return []
  return [
    ...(source.lazyRefcounts === true && spec.lazyRefcounts === undefined ? ['lazy refcounts'] : []),
    ...(source.extendedL2 === true && spec.extendedL2 === undefined ? ['extended L2 entries'] : []),
  ]
}

function at<T>(list: readonly T[], index: number): T {
  const item = list[index]
  if (item === undefined) throw new RangeError(`bug: no item ${index}`)
  return item
}
