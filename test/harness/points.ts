import type { PointContents, RecoveryPoint } from '../../src/model/recovery-point.js'

/** A crash-consistent full point of web01 without disks, but for `changes`. */
export function pointContents(changes: Partial<PointContents> = {}): PointContents {
  return {
    domain: { uuid: '7e0b2a52-0000-4000-8000-000000000001', name: 'web01' },
    time: 0,
    mode: 'full',
    consistency: { kind: 'crash' },
    disks: [],
    skipped: [],
    blobs: [],
    warnings: [],
    durationMs: 0,
    tags: [],
    toolVersion: '0',
    ...changes,
  }
}

/** The same as a point of a store. */
export function recoveryPoint(changes: Partial<RecoveryPoint> = {}): RecoveryPoint {
  return {
    ...pointContents(),
    id: 'f'.repeat(32),
    storeId: '0'.repeat(32),
    sequence: 1,
    runId: '0'.repeat(32),
    ...changes,
  }
}
