import type { DomainOutcome } from '../jobs/pull-domains.js'
import { formatDuration } from '../model/duration.js'
import { shortId } from '../model/point-ref.js'
import type { RecoveryPoint } from '../model/recovery-point.js'
import { formatSize } from '../model/size.js'
import type { Envelope } from './base-command.js'
import { errorFields, renderError, reportError } from './error-report.js'
import { EXIT, exitOfItems } from './exit-codes.js'
import { inSeconds, plural, renderRows } from './output.js'
import { leftOutDocument, leftOutLines, sumOf } from './point-view.js'
import { printable } from './printable.js'

export interface PullRun {
  readonly outcomes: readonly DomainOutcome[]
  /** The stores, as the user named them. */
  readonly targets: readonly string[]
  /** Wall-clock milliseconds. */
  readonly started: number
  readonly durationMs: number
  /** 129, 130 or 143 where a signal ended the run. */
  readonly interrupted: number | undefined
}

/** The document of `backup pull`; its exit code is that of all domains together. */
export function pullDocument(run: PullRun): Envelope {
  const { outcomes } = run
  const exit = exitOfRun(run)
  const { made, failed, skipped } = countsOf(outcomes)
  return {
    schema: 'virtvault/backup_pull/1',
    ok: exit === EXIT.ok,
    status:
      failed === outcomes.length
        ? 'failed'
        : skipped === outcomes.length
          ? 'skipped'
          : exit === EXIT.ok
            ? 'success'
            : 'partial',
    exit,
    started: new Date(run.started).toISOString(),
    seconds: inSeconds(run.durationMs),
    target: run.targets.length === 1 ? run.targets[0] : undefined,
    targets: run.targets,
    totals: {
      domains: new Set(outcomes.map(({ domain }) => domain.uuid)).size,
      points: made,
      skipped,
      warnings: outcomes.reduce((sum, outcome) => sum + warningsOf(outcome).length, 0),
      failed,
      read_bytes: total(outcomes, 'readBytes'),
      new_bytes: total(outcomes, 'newBytes'),
      stored_bytes: total(outcomes, 'storedBytes'),
    },
    results: outcomes.map(resultDocument),
  }
}

/** One line per domain, its warnings and errors below it, one line for all. */
export function pullSummary(run: PullRun): string[] {
  const several = run.targets.length > 1
  const rows = run.outcomes.map(outcome => {
    const [name = '', ...row] = rowOf(outcome)
    return several ? [name, outcome.target, ...row] : [name, ...row]
  })
  const lines = renderRows(rows, several ? [4, 5, 6, 8] : [3, 4, 5, 7])
  const body = run.outcomes.flatMap((outcome, index) => [lines[index] ?? '', ...remarks(outcome)])
  const { made, failed, skipped } = countsOf(run.outcomes)
  const warnings = run.outcomes.reduce((sum, outcome) => sum + warningsOf(outcome).length, 0)
  const end = [
    `${plural(made, 'point')} on ${placesOf(run).map(printable).join(', ')}`,
    ...(skipped > 0 ? [`${skipped} skipped`] : []),
    ...(failed > 0 ? [`${failed} failed`] : []),
    ...(warnings > 0 ? [plural(warnings, 'warning')] : []),
    formatDuration(run.durationMs),
    `${formatSize(total(run.outcomes, 'storedBytes'))} written`,
  ]
  return [...body, `${end.join(', ')}.`]
}

/** Where points were made; where none was, where they should have been. */
function placesOf({ outcomes, targets }: PullRun): readonly string[] {
  const withPoints = new Set(outcomes.flatMap(one => (one.status === 'failed' ? [] : one.target)))
  const made = targets.filter(name => withPoints.has(name))
  return made.length > 0 ? made : targets
}

function exitOfRun({ outcomes, interrupted }: PullRun): number {
  if (interrupted !== undefined && outcomes.some(({ status }) => status === 'failed')) return interrupted
  return exitOfItems(
    outcomes.map(outcome =>
      outcome.status === 'failed'
        ? { status: 'failed', exit: reportError(outcome.error).exit }
        : { status: outcome.status },
    ),
  )
}

function countsOf(outcomes: readonly DomainOutcome[]) {
  const failed = outcomes.filter(({ status }) => status === 'failed').length
  const skipped = outcomes.filter(({ status }) => status === 'skipped').length
  return { made: outcomes.length - failed - skipped, failed, skipped }
}

function rowOf(outcome: DomainOutcome): string[] {
  switch (outcome.status) {
    case 'failed':
      return failedRow(outcome)
    case 'skipped':
      return skippedRow(outcome)
    case 'partial':
    case 'success':
      return madeRow(outcome)
  }
}

type Made = Extract<DomainOutcome, { readonly status: 'success' | 'partial' }>

function madeRow({ point, durationMs }: Made): string[] {
  return [
    point.domain.name,
    `@${shortId(point.id)}`,
    point.mode === 'incremental' ? 'incremental' : point.parent === undefined ? 'full' : 'full-read',
    `read ${formatSize(sumOf(point, 'readBytes'))}`,
    `new ${formatSize(sumOf(point, 'newBytes'))}`,
    `stored ${formatSize(sumOf(point, 'storedBytes'))}`,
    frozenText(point),
    formatDuration(durationMs),
  ]
}

function failedRow({ domain, error }: Extract<DomainOutcome, { readonly status: 'failed' }>): string[] {
  return [domain.name, '-', 'failed', `[${reportError(error).code}]`, '', '', '', '']
}

/** The point that it names is the newest one, which this run has not made. */
function skippedRow({ domain, latest, changedBytes, durationMs }: Extract<DomainOutcome, { status: 'skipped' }>) {
  const changed = `${formatSize(changedBytes)} changed`
  return [domain.name, `@${shortId(latest.id)}`, 'skipped', changed, '', '', '', formatDuration(durationMs)]
}

function frozenText({ consistency: { kind, frozenMs } }: RecoveryPoint): string {
  if (kind === 'offline') return 'shut off'
  return kind === 'filesystem' ? `frozen ${formatDuration(frozenMs ?? 0)}` : 'not quiesced'
}

function remarks(outcome: DomainOutcome): string[] {
  if (outcome.status === 'failed') return renderError(reportError(outcome.error)).map(line => `    ${line}`)
  const leftOut = 'point' in outcome ? leftOutLines(outcome.point) : []
  return [
    ...leftOut.map(line => `    ${line}`),
    ...outcome.warnings.map(({ code, message }) => `    ! ${code} ${printable(message)}`),
  ]
}

function warningsOf(outcome: DomainOutcome): readonly object[] {
  return outcome.status === 'failed' ? [] : outcome.warnings
}

function total(outcomes: readonly DomainOutcome[], field: 'readBytes' | 'newBytes' | 'storedBytes'): number {
  return outcomes.reduce((sum, outcome) => sum + ('point' in outcome ? sumOf(outcome.point, field) : 0), 0)
}

function resultDocument(outcome: DomainOutcome): object {
  const { domain, target, status, durationMs } = outcome
  const common = { domain: domain.name, uuid: domain.uuid, target, status, seconds: inSeconds(durationMs) }
  if (outcome.status === 'failed') return { ...common, error: errorFields(reportError(outcome.error)) }
  if (outcome.status === 'skipped') {
    const { latest, changedBytes, warnings } = outcome
    return { ...common, changed_bytes: changedBytes, latest: latest.id, warnings }
  }
  const { point } = outcome
  return {
    ...common,
    point: point.id,
    mode: point.mode,
    parent: point.parent,
    consistency: point.consistency.kind,
    quiesced: point.consistency.kind === 'filesystem',
    frozen_seconds: point.consistency.frozenMs === undefined ? undefined : point.consistency.frozenMs / 1000,
    disks: point.disks.map(disk => pulledDisk(disk)),
    skipped_disks: point.skipped,
    warnings: outcome.warnings,
  }
}

function pulledDisk(disk: RecoveryPoint['disks'][number]): object {
  const { target, size, mode, statistics } = disk
  return {
    target,
    mode,
    virtual_bytes: size,
    dirty_bytes: statistics.dirtyBytes,
    read_bytes: statistics.readBytes,
    new_bytes: statistics.newBytes,
    stored_bytes: statistics.storedBytes,
    new_chunks: statistics.newChunks,
    new_nodes: statistics.newNodes,
    left_out: leftOutDocument(disk),
  }
}
