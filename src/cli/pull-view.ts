import type { DomainOutcome } from '../jobs/pull-domains.js'
import { formatDuration } from '../model/duration.js'
import { shortId } from '../model/point-ref.js'
import type { RecoveryPoint } from '../model/recovery-point.js'
import { formatSize } from '../model/size.js'
import type { Envelope } from './base-command.js'
import { type ErrorReport, renderError, reportError } from './error-report.js'
import { EXIT, exitOfItems } from './exit-codes.js'
import { inSeconds, plural, renderRows } from './output.js'
import { sumOf } from './point-view.js'
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
  const failed = outcomes.filter(({ status }) => status === 'failed').length
  return {
    schema: 'virtvault/backup_pull/1',
    ok: exit === EXIT.ok,
    status: failed === outcomes.length ? 'failed' : exit === EXIT.ok ? 'success' : 'partial',
    exit,
    started: new Date(run.started).toISOString(),
    seconds: inSeconds(run.durationMs),
    target: run.targets.length === 1 ? run.targets[0] : undefined,
    targets: run.targets,
    totals: {
      domains: new Set(outcomes.map(({ domain }) => domain.uuid)).size,
      points: outcomes.length - failed,
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
    const [name = '', ...row] = outcome.status === 'failed' ? failedRow(outcome) : madeRow(outcome)
    return several ? [name, outcome.target, ...row] : [name, ...row]
  })
  const lines = renderRows(rows, several ? [4, 5, 6, 8] : [3, 4, 5, 7])
  const body = run.outcomes.flatMap((outcome, index) => [lines[index] ?? '', ...remarks(outcome)])
  const made = run.outcomes.filter(({ status }) => status !== 'failed').length
  const failed = run.outcomes.length - made
  const warnings = run.outcomes.reduce((sum, outcome) => sum + warningsOf(outcome).length, 0)
  const end = [
    `${plural(made, 'point')} on ${run.targets.map(printable).join(', ')}`,
    ...(failed > 0 ? [`${failed} failed`] : []),
    ...(warnings > 0 ? [plural(warnings, 'warning')] : []),
    formatDuration(run.durationMs),
    `${formatSize(total(run.outcomes, 'storedBytes'))} written`,
  ]
  return [...body, `${end.join(', ')}.`]
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

function madeRow({ point, durationMs }: Extract<DomainOutcome, { readonly point: RecoveryPoint }>): string[] {
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

function frozenText({ consistency: { kind, frozenMs } }: RecoveryPoint): string {
  if (kind === 'offline') return 'shut off'
  return kind === 'filesystem' ? `frozen ${formatDuration(frozenMs ?? 0)}` : 'not quiesced'
}

function remarks(outcome: DomainOutcome): string[] {
  if (outcome.status === 'failed') return renderError(reportError(outcome.error)).map(line => `    ${line}`)
  return outcome.warnings.map(({ code, message }) => `    ! ${code} ${printable(message)}`)
}

function warningsOf(outcome: DomainOutcome): readonly object[] {
  return outcome.status === 'failed' ? [] : outcome.warnings
}

function total(outcomes: readonly DomainOutcome[], field: 'readBytes' | 'newBytes' | 'storedBytes'): number {
  return outcomes.reduce((sum, outcome) => sum + (outcome.status === 'failed' ? 0 : sumOf(outcome.point, field)), 0)
}

function resultDocument(outcome: DomainOutcome): object {
  const { domain, target, status, durationMs } = outcome
  const common = { domain: domain.name, uuid: domain.uuid, target, status, seconds: inSeconds(durationMs) }
  if (outcome.status === 'failed') return { ...common, error: errorFields(reportError(outcome.error)) }
  const { point } = outcome
  return {
    ...common,
    point: point.id,
    mode: point.mode,
    parent: point.parent,
    consistency: point.consistency.kind,
    quiesced: point.consistency.kind === 'filesystem',
    frozen_seconds: point.consistency.frozenMs === undefined ? undefined : point.consistency.frozenMs / 1000,
    disks: point.disks.map(({ target, size, mode, statistics }) => ({
      target,
      mode,
      virtual_bytes: size,
      dirty_bytes: statistics.dirtyBytes,
      read_bytes: statistics.readBytes,
      new_bytes: statistics.newBytes,
      stored_bytes: statistics.storedBytes,
      new_chunks: statistics.newChunks,
      new_nodes: statistics.newNodes,
    })),
    skipped_disks: point.skipped,
    warnings: outcome.warnings,
  }
}

function errorFields({ code, message, why, hints, exit }: ErrorReport): object {
  return { code, message, why: why ?? null, hints, exit }
}
