import { forEachLimited } from '../base/async.js'
import type { Clock } from '../base/clock.js'
import { BackupError, errorCodeOf, messageOf, type Warning } from '../base/errors.js'
import type { DomainRef, RecoveryPoint } from '../model/recovery-point.js'
import type { FinishedEvent, Progress } from './progress.js'
import type { TargetOutcome } from './pull-job.js'
import type { SkippedPull } from './pull-part.js'
import type { PullRequest } from './pull-ports.js'

/** How the pull of one domain into one target ended. */
export type DomainOutcome =
  | {
      readonly status: 'success' | 'partial'
      readonly domain: DomainRef
      readonly target: string
      readonly point: RecoveryPoint
      readonly warnings: readonly Warning[]
      readonly durationMs: number
    }
  | ({
      readonly status: 'skipped'
      readonly domain: DomainRef
      readonly target: string
      readonly durationMs: number
    } & SkippedPull)
  | {
      readonly status: 'failed'
      readonly domain: DomainRef
      readonly target: string
      readonly error: Error
      readonly durationMs: number
    }

/** A domain to be pulled, and what does it. */
export interface DomainPull {
  readonly request: PullRequest
  readonly job: {
    readonly targets: readonly { readonly name: string }[]
    run(request: PullRequest, signal: AbortSignal): Promise<readonly TargetOutcome[]>
  }
}

export interface PullDomainsPorts {
  readonly progress: Progress
  readonly clock: Clock
}

/**
 * Pulls several domains, at most `parallel` at once; a failure of one does not
 * keep the others back. After an abort no further one is begun. Gives one
 * outcome per domain and target, in their order; never rejects for a domain's sake.
 */
export async function pullDomains(
  ports: PullDomainsPorts,
  work: { readonly pulls: readonly DomainPull[]; readonly parallel: number },
  signal: AbortSignal,
): Promise<readonly DomainOutcome[]> {
  const outcomes = new Map<DomainPull, readonly DomainOutcome[]>()
  await forEachLimited(work.pulls, work.parallel, async pull => {
    outcomes.set(pull, await pullOne(ports, pull, signal))
  })
  return work.pulls.flatMap(pull => outcomes.get(pull) ?? [])
}

async function pullOne(
  ports: PullDomainsPorts,
  { request, job }: DomainPull,
  signal: AbortSignal,
): Promise<readonly DomainOutcome[]> {
  const { domain } = request
  const started = ports.clock.monotonic()
  if (signal.aborted) {
    const error = new BackupError('E_INTERRUPTED', `${domain.name} was not begun`, { cause: signal.reason })
    return job.targets.map(({ name }) => ({ status: 'failed', domain, target: name, error, durationMs: 0 }))
  }
  const found = await job.run(request, signal)
  const durationMs = ports.clock.monotonic() - started
  const outcomes = found.map(one => domainOutcome(domain, one, durationMs))
  const warnings = outcomes.flatMap(one => (one.status === 'failed' ? [] : one.warnings))
  for (const warning of withoutRepeats(warnings)) {
    ports.progress.report({ kind: 'warning', subject: domain.name, warning })
  }
  ports.progress.report(finishedEvent(domain, outcomes))
  return outcomes
}

function domainOutcome(domain: DomainRef, outcome: TargetOutcome, durationMs: number): DomainOutcome {
  const { name: target } = outcome.target
  if (outcome.kind === 'failed') {
    const { error } = outcome
    const failure = error instanceof Error ? error : new BackupError('E_INTERNAL', messageOf(error))
    return { status: 'failed', domain, target, error: failure, durationMs }
  }
  if (outcome.kind === 'skipped') {
    const { latest, changedBytes, warnings } = outcome
    return { status: 'skipped', domain, target, latest, changedBytes, warnings, durationMs }
  }
  const { point, warnings } = outcome
  return { status: statusOfPoint(warnings), domain, target, point, warnings, durationMs }
}

/** What a point lacks that was asked for must not look like a full success. */
export function statusOfPoint(warnings: readonly Warning[]): 'success' | 'partial' {
  return warnings.some(({ code }) => code === 'W_DISK_SKIPPED') ? 'partial' : 'success'
}

/** One read may be told by several targets in the same words. */
function withoutRepeats(warnings: readonly Warning[]): readonly Warning[] {
  return [...new Map(warnings.map(warning => [`${warning.code} ${warning.message}`, warning])).values()]
}

/** All targets of a domain as one: partial where only some have it. */
function finishedEvent(domain: DomainRef, outcomes: readonly DomainOutcome[]): FinishedEvent {
  const failed = outcomes.find(one => one.status === 'failed')
  const made = outcomes.filter(one => 'point' in one)
  const [first] = made
  const isSkipped = first === undefined && failed === undefined && outcomes.length > 0
  if (isSkipped) return { kind: 'finished', subject: domain.name, status: 'skipped' }
  const error = failed === undefined ? undefined : { code: errorCodeOf(failed.error), message: messageOf(failed.error) }
  if (first === undefined) return { kind: 'finished', subject: domain.name, status: 'failed', error }
  const isWhole = failed === undefined && made.every(({ status }) => status === 'success')
  return {
    kind: 'finished',
    subject: domain.name,
    status: isWhole ? 'success' : 'partial',
    point: first.point.id,
    readBytes: Math.max(...made.map(({ point }) => sum(point, 'readBytes'))),
    newBytes: made.reduce((total, { point }) => total + sum(point, 'newBytes'), 0),
    storedBytes: made.reduce((total, { point }) => total + sum(point, 'storedBytes'), 0),
    error,
  }
}

function sum(point: RecoveryPoint, field: 'readBytes' | 'newBytes' | 'storedBytes'): number {
  return point.disks.reduce((total, { statistics }) => total + statistics[field], 0)
}
