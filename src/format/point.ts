import { type Warning, WARNING_CODES } from '../base/errors.js'
import { fromHex, isHex, toHex } from '../base/hex.js'
import type {
  BackingImage,
  Consistency,
  DiskBelow,
  DiskSource,
  DiskStatistics,
  PointBlob,
  PointCheckpoint,
  PointDisk,
  RecoveryPoint,
  TreeRoot,
} from '../model/recovery-point.js'
import { expectIntact } from './damage.js'
import {
  ENVELOPE_MAGIC,
  type EnvelopeExpectation,
  type EnvelopeSeal,
  decodeEnvelope,
  encodeEnvelope,
  envelopeVersion,
} from './envelope.js'
import { Fields } from './fields.js'
import { ID_BYTES } from './record.js'

const WHAT = 'a recovery point'
const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/
/** 2^53 - 1 is no whole number of sectors; nothing sane is near it. */
const MAX_DISK_BYTES = 2 ** 52

export type PointSeal = Omit<EnvelopeSeal, 'magic' | 'version'>
export type PointExpectation = Omit<EnvelopeExpectation, 'magic' | 'version'>

/** Of points that leave out images, which who does not know them would take for zeros. */
const BELOW_VERSION = 2

/** Whether `text` is a domain's uuid as libvirt writes it; it names a directory in the store. */
export function isDomainUuid(text: string): boolean {
  return UUID.test(text)
}

export function encodePoint(point: RecoveryPoint, seal: PointSeal): Uint8Array {
  const map = {
    id: fromHex(point.id),
    store_id: fromHex(point.storeId),
    run_id: point.runId,
    sequence: point.sequence,
    domain_uuid: point.domain.uuid,
    domain_name: point.domain.name,
    time_ms: point.time,
    mode: point.mode,
    consistency: {
      kind: point.consistency.kind,
      frozen_ms: point.consistency.frozenMs,
      reason: point.consistency.reason,
    },
    disks: point.disks.map(encodeDisk),
    skipped: point.skipped,
    blobs: point.blobs,
    checkpoint: point.checkpoint,
    parent: point.parent === undefined ? undefined : fromHex(point.parent),
    warnings: point.warnings,
    duration_ms: point.durationMs,
    tags: point.tags,
    comment: point.comment,
    tool_version: point.toolVersion,
  }
  const version = point.disks.some(({ below }) => below !== undefined) ? BELOW_VERSION : 1
  return encodeEnvelope(map, { ...seal, magic: ENVELOPE_MAGIC.point, version })
}

/** Throws E_DAMAGED, E_STORE_FORMAT. */
export function decodePoint(bytes: Uint8Array, expected: PointExpectation): RecoveryPoint {
  const envelope = { ...expected, magic: ENVELOPE_MAGIC.point, version: BELOW_VERSION } as const
  const fields = new Fields(decodeEnvelope(bytes, envelope), WHAT)
  const uuid = fields.text('domain_uuid')
  expectIntact(isDomainUuid(uuid), WHAT, 'the domain uuid is none')
  const storeId = toHex(fields.bytes('store_id', 16))
  expectIntact(storeId === toHex(expected.storeId), WHAT, 'it belongs to another store')
  const runId = fields.text('run_id')
  expectIntact(isHex(runId, 32), WHAT, 'the run id is none')
  const disks = fields.maps('disks', decodeDisk)
  const leavesOut = disks.some(({ below }) => below !== undefined)
  expectIntact(leavesOut === (envelopeVersion(bytes) === BELOW_VERSION), WHAT, 'its disks are not of its version')
  return {
    id: toHex(fields.bytes('id', 16)),
    storeId,
    runId,
    sequence: fields.count('sequence'),
    domain: { uuid, name: fields.text('domain_name') },
    time: fields.count('time_ms'),
    mode: fields.oneOf('mode', ['full', 'incremental']),
    consistency: fields.map('consistency', decodeConsistency),
    disks,
    skipped: fields.maps('skipped', skipped => ({ target: skipped.text('target'), reason: skipped.text('reason') })),
    blobs: fields.maps('blobs', decodeBlob),
    checkpoint: fields.optionalMap('checkpoint', decodeCheckpoint),
    parent: optionalId(fields, 'parent'),
    warnings: fields.maps('warnings', decodeWarning),
    durationMs: fields.count('duration_ms'),
    tags: fields.texts('tags'),
    comment: fields.optionalText('comment'),
    toolVersion: fields.text('tool_version'),
  }
}

function encodeDisk(disk: PointDisk): object {
  const { source, statistics } = disk
  return {
    target: disk.target,
    size: disk.size,
    root_kind: disk.root.kind,
    root_id: disk.root.kind === 'node' ? disk.root.id : undefined,
    mode: disk.mode,
    source: {
      path: source.path,
      source_type: source.sourceType,
      format: source.format,
      identity: source.identity,
      cluster_size: source.clusterSize,
      compat: source.compat,
      extended_l2: source.extendedL2,
      lazy_refcounts: source.lazyRefcounts,
      compression_type: source.compressionType,
      data_file: source.dataFile,
      encryption: source.encryption,
      backing_files: source.backingFiles,
      backing_identities: source.backingIdentities,
    },
    statistics: {
      dirty_bytes: statistics.dirtyBytes,
      read_bytes: statistics.readBytes,
      new_bytes: statistics.newBytes,
      stored_bytes: statistics.storedBytes,
      new_chunks: statistics.newChunks,
      new_nodes: statistics.newNodes,
    },
    below: disk.below === undefined ? undefined : encodeBelow(disk.below),
  }
}

function encodeBelow({ images, contentId }: DiskBelow): object {
  return {
    content_id: contentId,
    images: images.map(image => ({
      path: image.path,
      format: image.format,
      virtual_size: image.virtualSize,
      file_bytes: image.fileBytes,
      modified_ms: image.modified,
      identity: image.identity,
    })),
  }
}

function decodeDisk(fields: Fields): PointDisk {
  const size = fields.count('size')
  expectIntact(size <= MAX_DISK_BYTES, WHAT, `disk size ${size}`)
  const root = decodeRoot(fields)
  const below = fields.optionalMap('below', decodeBelow)
  expectIntact(root.kind !== 'below' || below !== undefined, WHAT, 'a disk is as images that it does not name')
  return {
    target: fields.text('target'),
    size,
    root,
    ...(below === undefined ? {} : { below }),
    mode: fields.oneOf('mode', ['full', 'incremental']),
    source: fields.map('source', decodeSource),
    statistics: fields.map('statistics', decodeStatistics),
  }
}

function decodeRoot(fields: Fields): TreeRoot {
  const kind = fields.oneOf('root_kind', ['hole', 'zero', 'below', 'node'])
  return kind === 'node' ? { kind, id: fields.bytes('root_id', ID_BYTES) } : { kind }
}

function decodeBelow(fields: Fields): DiskBelow {
  const images = fields.maps('images', decodeImage)
  expectIntact(images.length > 0, WHAT, 'it leaves out images, and names none')
  return { images, contentId: fields.bytes('content_id', ID_BYTES) }
}

function decodeImage(fields: Fields): BackingImage {
  const virtualSize = fields.count('virtual_size')
  expectIntact(virtualSize <= MAX_DISK_BYTES, WHAT, `image size ${virtualSize}`)
  return {
    path: fields.text('path'),
    format: fields.text('format'),
    virtualSize,
    fileBytes: fields.optionalCount('file_bytes'),
    modified: fields.optionalCount('modified_ms'),
    identity: fields.optionalText('identity'),
  }
}

function decodeSource(fields: Fields): DiskSource {
  return {
    path: fields.text('path'),
    sourceType: fields.text('source_type'),
    format: fields.text('format'),
    identity: fields.optionalText('identity'),
    clusterSize: fields.optionalCount('cluster_size'),
    compat: fields.optionalText('compat'),
    extendedL2: fields.optionalFlag('extended_l2'),
    lazyRefcounts: fields.optionalFlag('lazy_refcounts'),
    compressionType: fields.optionalText('compression_type'),
    dataFile: fields.optionalText('data_file'),
    encryption: fields.optionalText('encryption'),
    backingFiles: fields.optionalTexts('backing_files'),
    backingIdentities: fields.optionalTexts('backing_identities'),
  }
}

function decodeStatistics(fields: Fields): DiskStatistics {
  return {
    dirtyBytes: fields.count('dirty_bytes'),
    readBytes: fields.count('read_bytes'),
    newBytes: fields.count('new_bytes'),
    storedBytes: fields.count('stored_bytes'),
    newChunks: fields.count('new_chunks'),
    newNodes: fields.count('new_nodes'),
  }
}

function optionalId(fields: Fields, key: string): string | undefined {
  return fields.has(key) ? toHex(fields.bytes(key, 16)) : undefined
}

function decodeConsistency(fields: Fields): Consistency {
  return {
    kind: fields.oneOf('kind', ['filesystem', 'crash', 'offline']),
    frozenMs: fields.optionalCount('frozen_ms'),
    reason: fields.optionalText('reason'),
  }
}

function decodeBlob(fields: Fields): PointBlob {
  return {
    name: fields.text('name'),
    id: fields.bytes('id', ID_BYTES),
    length: fields.count('length'),
    path: fields.optionalText('path'),
  }
}

function decodeCheckpoint(fields: Fields): PointCheckpoint {
  return { name: fields.text('name'), xml: fields.text('xml'), disks: fields.texts('disks') }
}

function decodeWarning(fields: Fields): Warning {
  return { code: fields.oneOf('code', WARNING_CODES), message: fields.text('message') }
}
