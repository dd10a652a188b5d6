import type { PrunePlan, PrunedPoint } from '../jobs/prune-job.js'
import { formatDuration } from '../model/duration.js'
import { shortId } from '../model/point-ref.js'
import type { Simulation } from '../model/retention.js'
import { formatSize } from '../model/size.js'
import type { Envelope } from './base-command.js'
import { EXIT } from './exit-codes.js'
import { formatLocalTime, plural, renderRows } from './output.js'

export interface PruneOutcome {
  readonly plan: PrunePlan
  /** undefined in a dry run. */
  readonly deleted: readonly PrunedPoint[] | undefined
  /** What only expired points hold; undefined where it could not be told. */
  readonly freeableBytes: number | undefined
}

/** Every point with its reason, domain by domain. */
export function prunePlanLines(plan: PrunePlan): string[] {
  return plan.flatMap(({ domain, group, decisions, refused }) => {
    const kept = decisions.filter(({ action }) => action === 'keep').length
    const name = group === undefined ? domain.name : `${group}/${domain.name}`
    const rows = decisions.map(({ point, action, reason }) => [
      `  ${action}`,
      `@${shortId(point.id)}`,
      formatLocalTime(point.time),
      reason,
    ])
    return [
      `${name}  keep ${kept} of ${decisions.length}`,
      ...(refused === undefined ? [] : [`  ! nothing expires: ${refused}`]),
      ...renderRows(rows),
    ]
  })
}

export function pruneSummary({ plan, deleted, freeableBytes }: PruneOutcome): string {
  const expired = plan.flatMap(({ decisions }) => decisions).filter(({ action }) => action === 'expire').length
  const frees = freeableBytes === undefined ? '' : `; gc could then free about ${formatSize(freeableBytes)}`
  if (deleted === undefined) {
    return `would expire ${plural(expired, 'point')}${frees}.  Nothing was changed (--dry-run).`
  }
  const freed = freeableBytes === undefined ? '' : `; gc can now free about ${formatSize(freeableBytes)}`
  return `expired ${plural(deleted.length, 'point')}${deleted.length > 0 ? freed : ''}.`
}

/** Exit 15 where every domain was refused for its clocks, 3 where some were. */
export function pruneDocument({ plan, deleted, freeableBytes }: PruneOutcome): Envelope {
  const refused = plan.filter(one => one.refused !== undefined).length
  const exit = refused === 0 ? EXIT.ok : refused === plan.length ? EXIT.refused : EXIT.partial
  return {
    schema: 'virtvault/prune/1',
    ok: exit === EXIT.ok,
    status: refused === 0 ? 'success' : refused === plan.length ? 'failed' : 'partial',
    exit,
    dry_run: deleted === undefined,
    freeable_bytes: freeableBytes,
    deleted: deleted?.map(({ id }) => id) ?? [],
    domains: plan.map(({ domain, group, decisions, refused: why }) => ({
      domain: domain.name,
      uuid: domain.uuid,
      group,
      refused: why,
      points: decisions.map(({ point, action, reason, keptBy }) => ({
        id: point.id,
        time: new Date(point.time).toISOString(),
        action,
        reason,
        kept_by: keptBy,
      })),
    })),
  }
}

export interface SimulatedDomain {
  readonly name: string
  readonly simulation: Simulation
}

export function simulationLines(domains: readonly SimulatedDomain[], run: { days: number; everyMs: number }): string[] {
  return domains.flatMap(({ name, simulation }) => [
    `${name}  after ${run.days} days, one backup every ${formatDuration(run.everyMs)}: ` +
      `${simulation.kept.length} of ${simulation.backups} kept, never more than ${simulation.peak}`,
    ...renderRows(simulation.kept.map(({ point, reason }) => ['  keep', formatLocalTime(point.time), reason])),
  ])
}

export function simulationDocument(domains: readonly SimulatedDomain[]): Envelope {
  return {
    schema: 'virtvault/prune_simulation/1',
    ok: true,
    status: 'success',
    exit: EXIT.ok,
    domains: domains.map(({ name, simulation }) => ({
      name,
      backups: simulation.backups,
      peak: simulation.peak,
      kept: simulation.kept.map(({ point, reason, keptBy }) => ({
        time: new Date(point.time).toISOString(),
        reason,
        kept_by: keptBy,
      })),
    })),
  }
}
