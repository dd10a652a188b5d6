import type { RollbackResult } from '../jobs/rollback-job.js'
import { formatDuration } from '../model/duration.js'
import { shortId } from '../model/point-ref.js'
import type { RecoveryPoint } from '../model/recovery-point.js'
import { formatSize } from '../model/size.js'
import type { Envelope } from './base-command.js'
import { EXIT } from './exit-codes.js'
import { inSeconds, renderRows } from './output.js'
import { printable } from './printable.js'

/** A rollback that was made, or only measured. */
export interface RollbackRun {
  readonly point: RecoveryPoint
  readonly result: RollbackResult
  readonly dryRun: boolean
}

export function rollbackDocument({ point, result, dryRun }: RollbackRun): Envelope {
  return {
    schema: 'virtvault/restore_in_place/1',
    ok: true,
    status: 'success',
    exit: EXIT.ok,
    dry_run: dryRun,
    point: point.id,
    domain: result.domain.name,
    uuid: result.domain.uuid,
    seconds: inSeconds(result.durationMs),
    disks: result.disks.map(disk => ({
      target: disk.target,
      image: disk.image,
      virtual_bytes: disk.size,
      data_bytes: disk.dataBytes,
      zero_bytes: disk.zeroBytes,
      since: disk.since ?? null,
    })),
  }
}

export function rollbackSummary({ point, result, dryRun }: RollbackRun): string[] {
  const rows = result.disks.map(disk => [
    disk.target,
    disk.image,
    `data ${formatSize(disk.dataBytes)}`,
    `zeros ${formatSize(disk.zeroBytes)}`,
    disk.since === undefined
      ? 'everything: no dirty bitmap tells what differs'
      : `differs, as known since @${shortId(disk.since)}`,
  ])
  const name = printable(`${point.domain.name}@${shortId(point.id)}`)
  return [
    ...renderRows(rows, [2, 3]),
    dryRun
      ? `Would write ${name} into these disks.  Nothing was written (--dry-run).`
      : `The disks of ${printable(result.domain.name)} are as in ${name}, ${formatDuration(result.durationMs)}. ` +
        'Its definition, UEFI variables and TPM state were not touched.',
  ]
}
