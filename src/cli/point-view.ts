import type { PointDisk, PointNotes, RecoveryPoint } from '../model/recovery-point.js'
import { printable } from './printable.js'

/** A point with what may change about it. */
export interface NotedPoint {
  readonly point: RecoveryPoint
  readonly notes: PointNotes
}

/** One recovery point in `--json` documents: snake_case, bytes as integers, times in ISO 8601. */
export function pointDocument({ point, notes }: NotedPoint): object {
  return {
    id: point.id,
    domain: point.domain.name,
    uuid: point.domain.uuid,
    time: new Date(point.time).toISOString(),
    sequence: point.sequence,
    mode: point.mode,
    parent: point.parent,
    consistency: point.consistency.kind,
    frozen_seconds: point.consistency.frozenMs === undefined ? undefined : point.consistency.frozenMs / 1000,
    seconds: point.durationMs / 1000,
    read_bytes: sumOf(point, 'readBytes'),
    new_bytes: sumOf(point, 'newBytes'),
    stored_bytes: sumOf(point, 'storedBytes'),
    disks: point.disks.map(disk => ({
      target: disk.target,
      virtual_bytes: disk.size,
      mode: disk.mode,
      format: disk.source.format,
      source: disk.source.path,
      dirty_bytes: disk.statistics.dirtyBytes,
      read_bytes: disk.statistics.readBytes,
      new_bytes: disk.statistics.newBytes,
      stored_bytes: disk.statistics.storedBytes,
      left_out: leftOutDocument(disk),
    })),
    skipped_disks: point.skipped.map(({ target, reason }) => ({ target, reason })),
    files: point.blobs.map(({ name, length }) => ({ name, bytes: length })),
    checkpoint: point.checkpoint?.name,
    warnings: point.warnings.map(({ code, message }) => ({ code, message })),
    tags: notes.tags,
    comment: point.comment,
    hold:
      notes.hold === undefined
        ? undefined
        : { until: notes.hold.until === undefined ? undefined : iso(notes.hold.until), reason: notes.hold.reason },
    verified:
      notes.verified === undefined
        ? undefined
        : { level: notes.verified.level, time: iso(notes.verified.time), ok: notes.verified.ok },
    tool_version: point.toolVersion,
  }
}

/** What the point leaves out of a disk; undefined for nothing. */
export function leftOutDocument({ below }: PointDisk): object | undefined {
  if (below === undefined) return undefined
  return {
    content_id: Buffer.from(below.contentId).toString('hex'),
    images: below.images.map(image => ({
      path: image.path,
      format: image.format,
      virtual_bytes: image.virtualSize,
      file_bytes: image.fileBytes,
      modified: image.modified === undefined ? undefined : iso(image.modified),
    })),
  }
}

/** One line per disk of which images were left out. */
export function leftOutLines({ disks }: RecoveryPoint): string[] {
  return disks.flatMap(({ target, below }) => {
    if (below === undefined) return []
    const images = below.images.map(({ path, format }) => printable(`${path} (${format})`))
    return [`${target} leaves out ${images.join(', on ')}: restore needs it`]
  })
}

/** `inc`, `full`. */
export function shortMode(point: RecoveryPoint): string {
  return point.mode === 'incremental' ? 'inc' : 'full'
}

/** `data ok`, `boot FAILED`, `-`. */
export function verifiedText(notes: PointNotes): string {
  if (notes.verified === undefined) return '-'
  return `${notes.verified.level} ${notes.verified.ok ? 'ok' : 'FAILED'}`
}

/** `readBytes`, `newBytes` or `storedBytes` over all disks. */
export function sumOf(point: RecoveryPoint, field: 'readBytes' | 'newBytes' | 'storedBytes' | 'dirtyBytes'): number {
  return point.disks.reduce((sum, disk) => sum + disk.statistics[field], 0)
}

function iso(milliseconds: number): string {
  return new Date(milliseconds).toISOString()
}
