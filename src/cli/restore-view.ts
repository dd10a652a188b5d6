import type { MeasuredDisk, RestoreResult } from '../jobs/restore-job.js'
import type { RestorePlan } from '../jobs/restore-plan.js'
import { formatDuration } from '../model/duration.js'
import { shortId } from '../model/point-ref.js'
import { formatSize } from '../model/size.js'
import type { Envelope } from './base-command.js'
import { renderError, reportError } from './error-report.js'
import { EXIT, exitOfItems } from './exit-codes.js'
import { inSeconds, plural, renderRows } from './output.js'
import { printable } from './printable.js'
import type { RestoreOutcome, RestoreRun, ShownDomain } from './restore-run.js'

/** The document of a run; a single point's is flat, of several they are in `results`. */
export function restoreRunDocument(run: RestoreRun, isMany: boolean): Envelope {
  const [first] = run.outcomes
  if (!isMany && first !== undefined) return outcomeDocument(first)
  const items = run.outcomes.map(outcomeDocument)
  const exit = exitOfItems(
    items.map(({ status, exit }) =>
      status === 'failed' ? { status, exit } : { status: status === 'partial' ? status : 'success' },
    ),
  )
  return {
    schema: 'virtvault/restore_all/1',
    ok: exit === EXIT.ok,
    status: exit === EXIT.ok ? 'success' : items.every(({ ok }) => !ok) ? 'failed' : 'partial',
    exit,
    results: items,
  }
}

export function restoreRunSummary(run: RestoreRun): string[] {
  const several = run.outcomes.length > 1
  const lines = run.outcomes.flatMap(outcome => [...outcomeLines(outcome), ...(several ? [''] : [])])
  if (!several) return lines
  const failed = run.outcomes.filter(({ kind }) => kind === 'failed').length
  return [
    ...lines,
    `${plural(run.outcomes.length, 'recovery point')}, ${failed === 0 ? 'none' : String(failed)} failed.`,
  ]
}

function outcomeDocument(outcome: RestoreOutcome): Envelope {
  switch (outcome.kind) {
    case 'failed': {
      const { code, message, why, hints, exit } = reportError(outcome.error)
      const { id, domain } = outcome.point
      return {
        schema: 'virtvault/restore/1',
        ok: false,
        status: 'failed',
        exit,
        point: id,
        domain: domain.name,
        uuid: domain.uuid,
        error: { code, message, why: why ?? null, hints, exit },
      }
    }
    case 'measured':
      return { ...restorePlanDocument(outcome.plan, outcome.measured), defined: domainDocument(outcome.domain) }
    case 'restored':
      return { ...restoreDocument(outcome.plan, outcome.result), defined: domainDocument(outcome.domain) }
  }
}

function outcomeLines(outcome: RestoreOutcome): string[] {
  switch (outcome.kind) {
    case 'failed':
      return [
        `${printable(`${outcome.point.domain.name}@${shortId(outcome.point.id)}`)}: failed`,
        ...renderError(reportError(outcome.error)),
      ]
    case 'measured':
      return [...restorePlanLines(outcome.plan, outcome.measured), ...domainLines(outcome.domain)]
    case 'restored':
      return [...restoreSummary(outcome.plan, outcome.result), ...domainLines(outcome.domain)]
  }
}

function domainDocument(domain: ShownDomain | undefined): object | undefined {
  return domain === undefined
    ? undefined
    : {
        name: domain.name,
        uuid: domain.uuid,
        state: domain.state === 'images' ? 'refused' : domain.state,
        notes: domain.notes,
      }
}

function domainLines(domain: ShownDomain | undefined): string[] {
  if (domain === undefined) return []
  const name = `${printable(domain.name)} (${domain.uuid})`
  const said = {
    planned: `Would define ${name}.`,
    defined: `Defined ${name}. Start it:   virsh start ${printable(domain.name)}`,
    started: `Started ${name}.`,
    images: `! ${name} was not defined: its disks are damaged.`,
  }
  return [...domain.notes.map(note => `  ! ${printable(note)}`), said[domain.state]]
}

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
      backing: backingOf(plan, disk.target),
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

/** The image that a restored one lies on. */
function backingOf({ disks }: RestorePlan, target: string): string | undefined {
  const spec = disks.find(({ disk }) => disk.target === target)?.spec
  return spec?.kind === 'qcow2' ? spec.backing?.path : undefined
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
      image: imageOf(spec),
      backing: backingOf(plan, disk.target),
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
    imageOf(spec) ?? '-',
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

function imageOf(spec: RestorePlan['disks'][number]['spec']): string | undefined {
  if ('path' in spec) return spec.path
  return 'uri' in spec ? spec.uri : undefined
}

function nameOf({ point }: RestorePlan): string {
  return printable(`${point.domain.name}@${shortId(point.id)}`)
}

function pointFields({ point }: RestorePlan): { point: string; domain: string; uuid: string } {
  return { point: point.id, domain: point.domain.name, uuid: point.domain.uuid }
}
