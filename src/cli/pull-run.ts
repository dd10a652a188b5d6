import { BackupError, messageOf } from '../base/errors.js'
import type { ResolvedJob } from '../config/resolve.js'
import { withoutAbsent } from '../config/settings.js'
import type { DomainOutcome } from '../jobs/pull-domains.js'
import type { ForecastOutcome } from '../jobs/pull-forecast.js'
import type { PullTarget } from '../jobs/pull-ports.js'
import { SpareGuardian } from './guardian.js'
import { choosePulled, jobForPull, parallelPulls, pullFor, type PullWishes } from './pull-requests.js'
import { Paces } from './paces.js'
import type { PriorityWords } from './priority.js'
import type { PullRun } from './pull-view.js'
import type { Session } from './session.js'
import {
  connectMachine,
  findTarget,
  forecastDomain,
  lowerPriority,
  type Machine,
  makePullJob,
  openPlace,
  pullDomains,
} from './wire.js'

/** How a run goes about its work, whatever that is. */
export interface PullManner extends PriorityWords {
  /** Domains at once. */
  readonly parallel: number | undefined
}

/**
 * Pulls what the user asked for. Stores are opened before libvirt is asked for
 * anything that changes a domain; of several, one that cannot be opened fails
 * alone. Rejects where nothing could be begun; what fails for one domain and
 * target is in its outcome.
 */
export async function runPull(session: Session, asked: PullWishes, how: PullManner): Promise<PullRun> {
  const { clock, progress, signal } = session
  using guardian = new SpareGuardian()
  const started = clock.now()
  const from = clock.monotonic()
  const loaded = await session.config()
  await lowerPriority({ nice: how.nice ?? loaded.config.nice, ionice: how.ionice ?? loaded.config.ionice })
  await using machine = await connectMachine(session)
  const { resolved, wishes } = await resolvePulls(session, machine, asked)
  const paces = new Paces(clock)
  await using stores = await OpenTargets.open(session, resolved, paces)

  const pulls = []
  const refused: DomainOutcome[] = []
  for (const one of resolved) {
    const targets = stores.ofJob(one)
    for (const { name, error } of targets.refused) {
      refused.push({ status: 'failed', domain: one.domain, target: name, error, durationMs: 0 })
    }
    if (targets.open.length === 0) continue
    const prepared = pullFor(one.domain, one.settings, wishes)
    const job = await makePullJob(
      session,
      { targets: targets.open, machine },
      { ...prepared, pace: paces.ofJob(one), guardian },
    )
    pulls.push({ request: prepared.request, job })
  }
  const made = await pullDomains({ progress, clock }, { pulls, parallel: parallelPulls(how.parallel, loaded) }, signal)
  const order = resolved.map(({ domain }) => domain.uuid)
  const outcomes = [...made, ...refused].sort((a, b) => order.indexOf(a.domain.uuid) - order.indexOf(b.domain.uuid))
  const { recordPulls } = await import('./daemon-wire.js')
  await recordPulls(session, { outcomes, jobs: resolved, started })
  const targets = stores.names
  return { outcomes, targets, started, durationMs: clock.monotonic() - from, interrupted: undefined }
}

/** Says what runPull() would do, target by target; changes nothing. Rejects as it does. */
export async function runForecast(session: Session, asked: PullWishes): Promise<readonly ForecastOutcome[]> {
  await using machine = await connectMachine(session)
  const { resolved, wishes } = await resolvePulls(session, machine, asked)
  await using stores = await OpenTargets.open(session, resolved, new Paces(session.clock))
  const outcomes: ForecastOutcome[] = []
  for (const one of resolved) {
    const { request } = pullFor(one.domain, one.settings, wishes)
    const targets = stores.ofJob(one)
    outcomes.push(...(await forecastDomain(session, { targets: targets.open, machine }, request)))
    for (const { name, error } of targets.refused) {
      outcomes.push({ kind: 'failed', domain: one.domain, target: name, error })
    }
  }
  return outcomes
}

interface ResolvedPulls {
  readonly resolved: readonly ResolvedJob[]
  readonly wishes: PullWishes
}

/** Which domains are meant, and what holds for each. */
async function resolvePulls(session: Session, machine: Machine, asked: PullWishes): Promise<ResolvedPulls> {
  const wishes = { ...asked, settings: withoutAbsent(asked.settings) }
  const loaded = await session.config()
  const found = await machine.hypervisor.listDomains()
  const { domains, idleExclusions } = choosePulled(
    found.map(({ uuid, name }) => ({ uuid, name })).sort((a, b) => (a.name < b.name ? -1 : 1)),
    wishes,
    loaded,
  )
  for (const text of idleExclusions) session.note(`"${text}" leaves nothing out`)
  const { metadataOf } = await import('./daemon-wire.js')
  const metadata = await metadataOf(session, machine, domains)
  const resolved = domains.map(domain => {
    const own = metadata.get(domain.uuid) ?? []
    return jobForPull(domain, wishes, { loaded, metadata: own })
  })
  return { resolved, wishes }
}

/** The stores that some jobs write to: the one that the command line names, else each job's own. */
class OpenTargets implements AsyncDisposable {
  readonly #open = new Map<string, PullTarget>()
  readonly #refused = new Map<string, Error>()
  /** As the configuration names them; undefined stands for its default. */
  readonly #named = new Map<string | undefined, string>()
  readonly #only: string | undefined

  readonly #paces: Paces

  private constructor(only: string | undefined, paces: Paces) {
    this.#only = only
    this.#paces = paces
  }

  /** Rejects with the first failure where not one can be opened. */
  static async open(session: Session, jobs: readonly ResolvedJob[], paces: Paces): Promise<OpenTargets> {
    const targets = new OpenTargets(session.settings.target, paces)
    try {
      for (const wanted of new Set(jobs.flatMap(job => targets.#wanted(job)))) await targets.#openOne(session, wanted)
      const [failure] = targets.#refused.values()
      if (targets.#open.size === 0 && failure !== undefined) throw failure
      return targets
    } catch (error) {
      await targets[Symbol.asyncDispose]()
      throw error
    }
  }

  get names(): readonly string[] {
    return [...new Set(this.#named.values())]
  }

  ofJob(job: ResolvedJob): {
    readonly open: readonly PullTarget[]
    readonly refused: readonly { readonly name: string; readonly error: Error }[]
  } {
    const names = [...new Set(this.#wanted(job).flatMap(wanted => this.#named.get(wanted) ?? []))]
    return {
      open: names.flatMap(name => this.#open.get(name) ?? []),
      refused: names.flatMap(name => {
        const error = this.#refused.get(name)
        return error === undefined ? [] : [{ name, error }]
      }),
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const { store } of this.#open.values()) await store[Symbol.asyncDispose]()
  }

  #wanted({ settings }: ResolvedJob): readonly (string | undefined)[] {
    if (this.#only !== undefined) return [this.#only]
    return settings.targets.length > 0 ? settings.targets : [undefined]
  }

  async #openOne(session: Session, wanted: string | undefined): Promise<void> {
    const place = await findTarget(session, wanted)
    const { name } = place
    this.#named.set(wanted, name)
    if (this.#open.has(name) || this.#refused.has(name)) return
    try {
      this.#open.set(name, { name, store: await openPlace(session, place), pace: this.#paces.ofTarget(place) })
    } catch (error) {
      this.#refused.set(name, error instanceof Error ? error : new BackupError('E_INTERNAL', messageOf(error)))
    }
  }
}
