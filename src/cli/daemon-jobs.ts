import { BackupError, messageOf } from '../base/errors.js'
import type { LoadedConfig } from '../config/load.js'
import { resolveJobs } from '../config/resolve.js'
import { retentionOf } from '../config/settings.js'
import { type KnownDomain, targetsOf } from '../daemon/plan-tasks.js'
import type { StoreFacts } from '../daemon/metrics.js'
import type { PullTask, StoreTask, Task } from '../daemon/task.js'
import type { JobResult } from '../daemon/task-runner.js'
import type { Progress } from '../jobs/progress.js'
import { PERIODS } from '../model/calendar.js'
import { parseDuration } from '../model/duration.js'
import { shortId } from '../model/point-ref.js'
import type { DomainRef, RecoveryPoint } from '../model/recovery-point.js'
import type { RetentionPolicy } from '../model/retention.js'
import type { Store } from '../store/store.js'
import { sumOf } from './point-view.js'
import { localTimeZone } from './points.js'
import { Paces } from './paces.js'
import { pullFor } from './pull-requests.js'
import type { RunContext, Session } from './session.js'
import { StoreShelf } from './store-shelf.js'
import { type TargetPlace, targetPlace } from './targets.js'
import { type Machine, makeGcJob, makePullJob, makeVerifyJob, openPlace, statusOfPoint } from './wire.js'

/** The work behind the daemon's tasks, and behind `job run`. */
export class DaemonJobs {
  readonly #session: Session
  readonly #machine: () => Machine
  readonly #domains: () => readonly KnownDomain[]
  readonly #shelf = new StoreShelf()
  readonly #paces: Paces

  /** `domains` are those that libvirt has now, with their metadata. */
  constructor(session: Session, machine: () => Machine, domains: () => readonly KnownDomain[]) {
    this.#session = session
    this.#paces = new Paces(session.clock)
    this.#machine = machine
    this.#domains = domains
  }

  async run(
    { task, loaded, progress }: { readonly task: Task; readonly loaded: LoadedConfig; readonly progress: Progress },
    signal: AbortSignal,
  ): Promise<JobResult> {
    const context = this.#context(loaded, progress, signal)
    const place = targetPlace(task.target, loaded.config)
    return await this.#shelf.use(
      place.path,
      () => openPlace(context, place),
      store => (task.verb === 'pull' ? this.#pull(context, store, task) : this.#maintain(context, store, task)),
    )
  }

  /** What the configured targets hold; those that cannot be opened are left out. */
  async survey(loaded: LoadedConfig, signal: AbortSignal): Promise<readonly StoreFacts[]> {
    const context = this.#context(loaded, { report: () => undefined }, signal)
    const facts: StoreFacts[] = []
    for (const name of Object.keys(loaded.config.targets ?? {})) {
      try {
        const place = targetPlace(name, loaded.config)
        const points = await this.#points(context, place)
        facts.push({ target: name, points: perDomain(points) })
      } catch {
        // Its own runs say what is wrong with it.
      }
    }
    return facts
  }

  async #points(context: RunContext, place: TargetPlace): Promise<readonly RecoveryPoint[]> {
    return await this.#shelf.use(
      place.path,
      () => openPlace(context, place),
      store => store.points.list(),
    )
  }

  async #pull(context: RunContext, store: Store, task: PullTask): Promise<JobResult> {
    const { domain, job } = task
    const machine = this.#machine()
    const { settings } = job
    if (settings.disableIfPoweredOff && (await machine.hypervisor.lookup(domain.uuid)).id < 0) {
      context.progress.report({ kind: 'log', level: 'info', message: 'shut off, and disable_if_powered_off is set' })
      return { status: 'skipped', warnings: [], figures: {} }
    }
    const pull = pullFor(domain, settings, { mode: 'auto', scratchLimitBytes: undefined, comment: undefined })
    const place = targetPlace(task.target, (await context.config()).config)
    const targets = [{ name: task.target, store, pace: this.#paces.ofTarget(place) }]
    const pullJob = await makePullJob(context, { targets, machine }, { ...pull, pace: this.#paces.ofJob(job) })
    const [outcome] = await pullJob.run(pull.request, context.signal)
    if (outcome?.kind !== 'made') throw outcome?.error
    const { point, warnings } = outcome
    context.progress.report({ kind: 'finished', subject: domain.name, status: 'success' })
    const result = { status: statusOfPoint(warnings), point: point.id }
    if (!settings.prune) return { ...result, warnings, figures: figuresOf(point) }
    try {
      const expired = await this.#prune(context, store, task.target, domain)
      return { ...result, warnings, figures: { ...figuresOf(point), expired_points: expired } }
    } catch (error) {
      // The point is made: what was to go goes the next time.
      const warning = { code: 'W_CLEANUP', message: `older points were not pruned: ${messageOf(error)}` } as const
      return { ...result, warnings: [...warnings, warning], figures: figuresOf(point) }
    }
  }

  async #maintain(context: RunContext, store: Store, task: StoreTask): Promise<JobResult> {
    switch (task.verb) {
      case 'gc': {
        const job = await makeGcJob(context, store)
        const { plan } = await job.run({}, context.signal)
        return { ...DONE, figures: { freed_bytes: plan.freedBytes, store_bytes: plan.storeBytes } }
      }
      case 'prune':
        return { ...DONE, figures: { expired_points: await this.#prune(context, store, task.target) } }
      case 'verify':
        return await verifyStore(context, store)
    }
  }

  /**
   * Deletes what the jobs of each domain do not keep: of several jobs the most
   * generous, rule by rule. Points of a domain that libvirt does not know and
   * no group lists are left alone. Gives the number of deleted points.
   */
  async #prune(context: RunContext, store: Store, target: string, only?: DomainRef): Promise<number> {
    const { prune } = await import('./wire.js')
    const loaded = await context.config()
    const known = new Map(this.#domains().map(domain => [domain.ref.uuid, domain]))
    const timeZone = loaded.config.timezone ?? localTimeZone()
    const jobsOf = (domain: DomainRef) => {
      const metadata = known.get(domain.uuid)?.jobs
      const jobs = resolveJobs(loaded, domain, { timeZone, env: process.env, metadata })
      const here = jobs.filter(job => targetsOf(job, loaded).includes(target))
      return here.length > 0 ? here : jobs
    }
    const policyOf = (domain: DomainRef) => {
      const jobs = jobsOf(domain)
      return { group: jobs[0]?.group, policy: mostGenerous(jobs.map(({ settings }) => retentionOf(settings))) }
    }
    prune.refuseUnreadable(await store.points.unreadable())
    const isMeant = (domain: DomainRef) => (only === undefined ? jobsOf(domain).length > 0 : domain.uuid === only.uuid)
    const now = context.clock.now()
    const plan = prune.planPrune(await prune.readPruned(store.points, isMeant), policyOf, { now, timeZone })
    for (const { domain, refused } of plan) {
      if (refused !== undefined)
        context.warn({ code: 'W_CLOCK', message: `${domain.name}: nothing expires: ${refused}` })
    }
    const deleted = await prune.executePrune(store.points, plan, now, context.signal)
    for (const { id, domain } of deleted) {
      context.progress.report({ kind: 'log', level: 'info', message: `expired ${domain.name}@${shortId(id)}` })
    }
    return deleted.length
  }

  #context(loaded: LoadedConfig, progress: Progress, signal: AbortSignal): RunContext {
    const session = this.#session
    return {
      // Nobody is there to be asked for a passphrase.
      settings: { ...session.settings, json: true, target: undefined },
      clock: session.clock,
      signal,
      progress,
      config: () => Promise.resolve(loaded),
      warn: warning => progress.report({ kind: 'warning', subject: '', warning }),
      confirm: question =>
        Promise.reject(
          new BackupError('E_REFUSED', question, { hints: ['run it by hand, with --yes if that is right'] }),
        ),
    }
  }
}

const DONE = { status: 'success', warnings: [] } as const

/** As the configuration's `verify` says. Rejects with E_DAMAGED where it finds any. */
async function verifyStore(context: RunContext, store: Store): Promise<JobResult> {
  const { verify } = (await context.config()).config
  const level = verify?.level ?? 'quick'
  if (level !== 'quick' && level !== 'data') {
    throw new BackupError('E_UNSUPPORTED', `verify with level ${level} cannot be scheduled yet`, {
      hints: ['set verify.level to data'],
    })
  }
  const job = await makeVerifyJob(context, store)
  const sample = verify?.sample === undefined || level === 'quick' ? undefined : parseFloat(verify.sample) / 100
  const maxAge = verify?.max_age === undefined || level === 'quick' ? undefined : parseDuration(verify.max_age)
  const result = await job.run({ level, isMeant: () => true, sample, maxAge }, context.signal)
  const { hurt, unreadable } = result
  if (hurt.length > 0 || unreadable.length > 0) {
    throw new BackupError('E_DAMAGED', `${hurt.length + unreadable.length} of ${result.points} points are damaged`, {
      why: [
        ...hurt.map(({ point }) => `${point.domain.name}@${shortId(point.id)}`),
        ...unreadable.map(({ file }) => file),
      ].join(', '),
      hints: ['see where: virtvault verify'],
    })
  }
  return { ...DONE, figures: { read_bytes: result.readBytes, points: result.points } }
}

const COUNTS = ['last', ...PERIODS] as const

/** For each rule the most that any of them keeps. One without any rule keeps all, and so does the sum. */
export function mostGenerous(policies: readonly RetentionPolicy[]): RetentionPolicy {
  const isEndless = (policy: RetentionPolicy) =>
    [...COUNTS.map(rule => policy[rule]), policy.within].every(value => value === undefined || value === 0)
  if (policies.length === 0 || policies.some(isEndless)) return {}
  const counts = COUNTS.map(rule => {
    const said = policies.flatMap(policy => policy[rule] ?? [])
    return [rule, said.includes('*') ? '*' : Math.max(0, ...said.map(Number))] as const
  })
  return {
    ...Object.fromEntries(counts),
    within: Math.max(0, ...policies.map(({ within }) => within ?? 0)),
    tags: policies.flatMap(({ tags }) => tags ?? []),
  }
}

/** Of a pull, for the history and the metrics. */
export function figuresOf(point: RecoveryPoint): JobResult['figures'] {
  const { frozenMs } = point.consistency
  return {
    read_bytes: sumOf(point, 'readBytes'),
    new_bytes: sumOf(point, 'newBytes'),
    stored_bytes: sumOf(point, 'storedBytes'),
    ...(frozenMs === undefined ? {} : { frozen_seconds: frozenMs / 1000 }),
  }
}

function perDomain(points: readonly RecoveryPoint[]): StoreFacts['points'] {
  const found = new Map<string, { domain: string; count: number; oldest: number }>()
  for (const { domain, time } of points) {
    const one = found.get(domain.uuid) ?? { domain: domain.name, count: 0, oldest: time }
    found.set(domain.uuid, { domain: domain.name, count: one.count + 1, oldest: Math.min(one.oldest, time) })
  }
  return [...found.values()]
}
