import { messageOf, type Warning } from '../base/errors.js'
import { tooLittleChanged } from '../model/min-change.js'
import { planPull, type PlannedDisk } from '../model/pull-plan.js'
import type { DomainRef, RecoveryPoint, SkippedDisk } from '../model/recovery-point.js'
import { withBacking } from './below-survey.js'
import { findPullBase } from './pull-base.js'
import type { BaseCensus, PullHypervisor, PullPorts, PullRequest, PullTarget } from './pull-ports.js'

/** What a pull would do, as far as it can be told without beginning anything. */
export interface PullForecast {
  readonly domain: DomainRef
  /** The store, as the user calls it. */
  readonly target: string
  /** The point that it would build on. */
  readonly latest: RecoveryPoint | undefined
  readonly disks: readonly ForecastDisk[]
  readonly skipped: readonly SkippedDisk[]
  readonly warnings: readonly Warning[]
  /** Would be skipped, since only this much has changed; undefined: a point would be made. */
  readonly tooLittle: number | undefined
  /** Runs that died, and would be cleaned up after first. */
  readonly deadRuns: number
}

export interface ForecastDisk {
  readonly target: string
  readonly mode: 'incremental' | 'full'
  /** Why all of it would be read; undefined for an incremental. */
  readonly why: string | undefined
  /** Written since the base, in whole granules of the bitmap; for a full what is allocated. undefined where nobody knows. */
  readonly bytes: number | undefined
  readonly size: number | undefined
}

type ForecastPorts = Pick<PullPorts, 'targets' | 'hypervisor'>

/** The forecast for one domain and target. */
export type ForecastOutcome =
  | { readonly kind: 'forecast'; readonly forecast: PullForecast }
  | { readonly kind: 'failed'; readonly domain: DomainRef; readonly target: string; readonly error: Error }

/**
 * Says what a pull would read, target by target and disk by disk, and why.
 * Begins nothing, changes neither domain nor store, and takes no lock. A
 * failure of one target is its outcome: E_NO_DISK, E_NOT_FOUND, E_CHAIN_BROKEN,
 * E_LIBVIRT_CONNECT; after an abort it rejects.
 */
export async function forecastPull(
  { targets, hypervisor }: ForecastPorts,
  request: PullRequest,
  signal: AbortSignal,
): Promise<readonly ForecastOutcome[]> {
  const outcomes: ForecastOutcome[] = []
  for (const target of targets) {
    signal.throwIfAborted()
    try {
      outcomes.push({ kind: 'forecast', forecast: await forecastOne({ target, hypervisor }, request, signal) })
    } catch (error) {
      const failure = error instanceof Error ? error : new Error(messageOf(error))
      outcomes.push({ kind: 'failed', domain: request.domain, target: target.name, error: failure })
    }
  }
  return outcomes
}

async function forecastOne(
  { target, hypervisor }: { readonly target: PullTarget; readonly hypervisor: PullHypervisor },
  request: PullRequest,
  signal: AbortSignal,
): Promise<PullForecast> {
  const { domain, minChangeBytes } = request
  const { store } = target
  const survey = await withBacking(hypervisor, await hypervisor.survey(domain, signal), request, signal)
  const base = await findPullBase(store, domain, request.wish)
  const checkpoint = base.latest?.checkpoint
  const census = checkpoint === undefined ? NOTHING_KNOWN : await hypervisor.takeCensus(domain, checkpoint, signal)
  const plan = planPull(domain, survey.disks, base.wish, base.latest, census)
  const disks: ForecastDisk[] = []
  for (const disk of plan.disks) {
    const sizes = await hypervisor.diskBytes(domain, disk.target)
    const isIncremental = disk.base !== undefined && !disk.isAudit
    disks.push({
      target: disk.target,
      mode: isIncremental ? 'incremental' : 'full',
      why: isIncremental ? undefined : whyFull(disk, base.latest, plan.warnings),
      bytes: isIncremental ? census.dirtyBytes.get(disk.target) : sizes?.allocation,
      size: sizes?.capacity,
    })
  }
  const known = { dirtyBytes: census.dirtyBytes, minBytes: minChangeBytes ?? 0 }
  return {
    domain,
    target: target.name,
    latest: base.latest,
    disks,
    skipped: plan.skipped,
    warnings: [...survey.warnings, ...base.warnings, ...plan.warnings],
    tooLittle: tooLittleChanged(plan, base.latest, known),
    deadRuns: (await store.runs.dead(domain.uuid)).length,
  }
}

const NOTHING_KNOWN: BaseCensus = { known: false, soundDisks: new Set(), dirtyBytes: new Map() }

/** As the warning of this disk says it, which ends with what is done about it. */
function whyFull(disk: PlannedDisk, latest: RecoveryPoint | undefined, warnings: readonly Warning[]): string {
  const start = `${disk.target}: `
  const said = warnings.find(({ message }) => message.startsWith(start))
  if (said !== undefined) return said.message.slice(start.length).replace(/: reading everything.*$/, '')
  if (latest === undefined) return 'the first recovery point'
  return disk.isAudit ? 'asked for, and compared with what the bitmap says' : 'asked for'
}
