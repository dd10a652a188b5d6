import type { PointNotes, RecoveryPoint } from '../model/recovery-point.js'

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
