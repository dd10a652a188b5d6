import { forEachLimited } from '../base/async.js'
import type { Clock } from '../base/clock.js'
import { BackupError, errorCodeOf, messageOf, type Warning } from '../base/errors.js'
import type { DomainRef, RecoveryPoint } from '../model/recovery-point.js'
import type { Progress } from './progress.js'
import type { PullResult } from './pull-job.js'
import type { PullRequest } from './pull-ports.js'

/** How the pull of one domain ended. */
export type DomainOutcome =
  | {
      readonly status: 'success' | 'partial'
      readonly domain: DomainRef
      readonly point: RecoveryPoint
      readonly warnings: readonly Warning[]
      readonly durationMs: number
    }
  | { readonly status: 'failed'; readonly domain: DomainRef; readonly error: Error; readonly durationMs: number }

export interface PullDomainsPorts {
  readonly job: { run(request: PullRequest, signal: AbortSignal): Promise<PullResult> }
  readonly progress: Progress
  readonly clock: Clock
}

/**
 * Pulls several domains, at most `parallel` at once; a failure of one does not
 * keep the others back. After an abort no further one is begun. Gives one
 * outcome per request, in their order; never rejects for a domain's sake.
 */
export async function pullDomains(
  ports: PullDomainsPorts,
  work: { readonly requests: readonly PullRequest[]; readonly parallel: number },
  signal: AbortSignal,
): Promise<readonly DomainOutcome[]> {
  const outcomes = new Map<PullRequest, DomainOutcome>()
  await forEachLimited(work.requests, work.parallel, async request => {
    outcomes.set(request, await pullOne(ports, request, signal))
  })
  return work.requests.flatMap(request => outcomes.get(request) ?? [])
}

async function pullOne(ports: PullDomainsPorts, request: PullRequest, signal: AbortSignal): Promise<DomainOutcome> {
  const { domain } = request
  const started = ports.clock.monotonic()
  const elapsed = () => ports.clock.monotonic() - started
  if (signal.aborted) {
    const error = new BackupError('E_INTERRUPTED', `${domain.name} was not begun`, { cause: signal.reason })
    return { status: 'failed', domain, error, durationMs: 0 }
  }
  try {
    const { point, warnings } = await ports.job.run(request, signal)
    // What a point lacks that was asked for must not look like a full success.
    const status = warnings.some(({ code }) => code === 'W_DISK_SKIPPED') ? 'partial' : 'success'
    for (const warning of warnings) ports.progress.report({ kind: 'warning', subject: domain.name, warning })
    ports.progress.report({ kind: 'finished', subject: domain.name, status, point: point.id, ...sums(point) })
    return { status, domain, point, warnings, durationMs: elapsed() }
  } catch (error) {
    const report = { code: errorCodeOf(error), message: messageOf(error) }
    ports.progress.report({ kind: 'finished', subject: domain.name, status: 'failed', error: report })
    const failure = error instanceof Error ? error : new BackupError('E_INTERNAL', messageOf(error))
    return { status: 'failed', domain, error: failure, durationMs: elapsed() }
  }
}

function sums(point: RecoveryPoint): { readBytes: number; newBytes: number; storedBytes: number } {
  const sums = { readBytes: 0, newBytes: 0, storedBytes: 0 }
  for (const { statistics } of point.disks) {
    sums.readBytes += statistics.readBytes
    sums.newBytes += statistics.newBytes
    sums.storedBytes += statistics.storedBytes
  }
  return sums
}
