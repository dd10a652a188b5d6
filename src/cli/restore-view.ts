import type { MeasuredDisk, RestoreResult } from '../jobs/restore-job.js'
import type { RestorePlan } from '../jobs/restore-plan.js'
import { formatDuration } from '../model/duration.js'
import { shortId } from '../model/point-ref.js'
import { formatSize } from '../model/size.js'
import type { Envelope } from './base-command.js'
import { EXIT } from './exit-codes.js'
import { inSeconds, plural, renderRows } from './output.js'
import { printable } from './printable.js'

/** The document of a restore that was carried out; damage that was kept is exit 7. */
export function restoreDocument(plan: RestorePlan, result: RestoreResult): Envelope {
  const isComplete = result.status === 'complete'
  return {
    schema: 'virtvault/restore/1',
    ok: isComplete,
    status: isComplete ? 'success' : 'partial',
    exit: isComplete ? EXIT.ok : EXIT.damage,
    ...pointFields(plan),
    seconds: inSeconds(result.durationMs),
    data_bytes: result.dataBytes,
    disks: result.disks.map(disk => ({
      target: disk.target,
      image: disk.image,
      virtual_bytes: disk.size,
      data_bytes: disk.dataBytes,
      file_bytes: disk.fileBytes,
      seconds: inSeconds(disk.durationMs),
      lost: disk.lost,
      map: disk.map,
      notes: disk.notes,
    })),
    files: result.files,
    lost_files: result.lostFiles,
  }
}

export function restoreSummary(plan: RestorePlan, result: RestoreResult): string[] {
  const rows = result.disks.map(disk => [
    disk.target,
    disk.image,
    formatSize(disk.size),
    `data ${formatSize(disk.dataBytes)}`,
    formatDuration(disk.durationMs),
    disk.lost.length > 0 ? `DAMAGED: ${plural(disk.lost.length, 'range')} lost, see ${disk.map ?? 'above'}` : '',
  ])
  return [
    ...renderRows(rows, [2, 3, 4]),
    ...result.disks.flatMap(disk => disk.notes.map(note => `  ! ${disk.target}: ${printable(note)}`)),
    ...result.files.map(file => `also ${printable(file)}`),
    ...result.lostFiles.map(name => `! ${printable(name)} is lost`),
    `${result.status === 'complete' ? 'Restored' : 'Restored with damage'} ${nameOf(plan)}: ` +
      `${plural(result.disks.length, 'disk')}, ${formatSize(result.dataBytes)} of data, ${formatDuration(result.durationMs)}.`,
  ]
}

export function restorePlanDocument(plan: RestorePlan, measured: readonly MeasuredDisk[]): Envelope {
  return {
    schema: 'virtvault/restore_plan/1',
    ok: true,
    status: 'success',
    exit: EXIT.ok,
    dry_run: true,
    ...pointFields(plan),
    disks: plan.disks.map(({ disk, spec, notes }) => ({
      target: disk.target,
      image: 'path' in spec ? spec.path : undefined,
      virtual_bytes: disk.size,
      data_bytes: measured.find(({ target }) => target === disk.target)?.dataBytes,
      notes,
    })),
    files: plan.files.map(({ path }) => path),
  }
}

export function restorePlanLines(plan: RestorePlan, measured: readonly MeasuredDisk[]): string[] {
  const rows = plan.disks.map(({ disk, spec }) => [
    disk.target,
    'path' in spec ? spec.path : '-',
    formatSize(disk.size),
    `data ${formatSize(measured.find(({ target }) => target === disk.target)?.dataBytes ?? 0)}`,
  ])
  return [
    ...renderRows(rows, [2, 3]),
    ...plan.disks.flatMap(({ disk, notes }) => notes.map(note => `  ! ${disk.target}: ${printable(note)}`)),
    ...plan.files.map(({ path }) => `also ${printable(path)}`),
    `Would restore ${nameOf(plan)}.  Nothing was written (--dry-run).`,
  ]
}

function nameOf({ point }: RestorePlan): string {
  return printable(`${point.domain.name}@${shortId(point.id)}`)
}

function pointFields({ point }: RestorePlan): { point: string; domain: string; uuid: string } {
  return { point: point.id, domain: point.domain.name, uuid: point.domain.uuid }
}
