import type { ForecastDisk, ForecastOutcome, PullForecast } from '../jobs/pull-forecast.js'
import { shortId } from '../model/point-ref.js'
import { formatSize } from '../model/size.js'
import type { Envelope } from './base-command.js'
import { errorFields, renderError, reportError } from './error-report.js'
import { EXIT, exitOfItems } from './exit-codes.js'
import { plural, renderRows } from './output.js'
import { printable } from './printable.js'

/** What `backup pull --dry-run` prints: per domain its disks, what would be read of each, and why. */
export function forecastLines(outcomes: readonly ForecastOutcome[]): string[] {
  const body = outcomes.flatMap(outcome => {
    if (outcome.kind === 'failed') {
      const lines = renderError(reportError(outcome.error)).map(line => `    ${line}`)
      return [printable(`${outcome.domain.name}  on ${outcome.target}  would fail`), ...lines]
    }
    return linesOf(outcome.forecast)
  })
  return [...body, 'Nothing was changed (--dry-run).']
}

function linesOf(forecast: PullForecast): string[] {
  const { domain, target, latest, tooLittle } = forecast
  const since = latest === undefined ? '' : `  since @${shortId(latest.id)}`
  const verdict = tooLittle === undefined ? '' : `  would be skipped: ${formatSize(tooLittle)} changed (--min-change)`
  const rows = [
    ...forecast.disks.map(diskRow),
    ...forecast.skipped.map(({ target, reason }) => [target, 'left out', '', reason]),
  ]
  const dead =
    forecast.deadRuns === 0 ? [] : [`    ! would first clean up after ${plural(forecast.deadRuns, 'dead run')}`]
  return [
    `${printable(domain.name)}  on ${printable(target)}${since}${verdict}`,
    ...renderRows(rows).map(line => `    ${line}`),
    ...forecast.warnings.map(({ code, message }) => `    ! ${code} ${printable(message)}`),
    ...dead,
  ]
}

function diskRow({ target, mode, why, bytes, size }: ForecastDisk): string[] {
  const of = size === undefined ? '' : ` of ${formatSize(size)}`
  const about = mode === 'incremental' ? 'changed' : 'allocated'
  return [target, mode, bytes === undefined ? `all${of}` : `${formatSize(bytes)}${of} ${about}`, why ?? '']
}

/** `virtvault/backup_pull_plan/1`. */
export function forecastDocument(outcomes: readonly ForecastOutcome[]): Envelope {
  const exit = exitOfItems(
    outcomes.map(outcome =>
      outcome.kind === 'failed'
        ? { status: 'failed', exit: reportError(outcome.error).exit }
        : { status: outcome.forecast.tooLittle === undefined ? 'success' : 'skipped' },
    ),
  )
  const failed = outcomes.filter(({ kind }) => kind === 'failed').length
  return {
    schema: 'virtvault/backup_pull_plan/1',
    ok: exit === EXIT.ok,
    status: failed === 0 ? 'success' : failed === outcomes.length ? 'failed' : 'partial',
    exit,
    dry_run: true,
    results: outcomes.map(outcome => (outcome.kind === 'failed' ? failedFields(outcome) : fieldsOf(outcome.forecast))),
  }
}

function failedFields({ domain, target, error }: Extract<ForecastOutcome, { readonly kind: 'failed' }>): object {
  return { domain: domain.name, uuid: domain.uuid, target, status: 'failed', error: errorFields(reportError(error)) }
}

function fieldsOf({
  domain,
  target: store,
  latest,
  disks,
  skipped,
  warnings,
  tooLittle,
  deadRuns,
}: PullForecast): object {
  return {
    domain: domain.name,
    uuid: domain.uuid,
    target: store,
    status: tooLittle === undefined ? 'success' : 'skipped',
    changed_bytes: tooLittle,
    parent: latest?.id,
    disks: disks.map(({ target, mode, why, bytes, size }) => ({
      target,
      mode,
      why,
      virtual_bytes: size,
      [mode === 'incremental' ? 'dirty_bytes' : 'allocated_bytes']: bytes,
    })),
    skipped_disks: skipped,
    warnings,
    dead_runs: deadRuns,
  }
}
