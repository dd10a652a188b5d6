import { readdir, stat } from 'node:fs/promises'
import { join } from 'node:path'

import { BackupError, messageOf } from '../base/errors.js'
import type { Pace } from '../base/pace.js'
import type { LoadedConfig } from '../config/load.js'
import { resolveJobs } from '../config/resolve.js'
import { retentionOf } from '../config/settings.js'
import { type KnownDomain, targetsOf } from '../daemon/plan-tasks.js'
import type { StoreFacts } from '../daemon/metrics.js'
import type { PullTask, StoreTask, Task, Together } from '../daemon/task.js'
import type { JobEnd, JobResult } from '../daemon/task-runner.js'
import type { Progress } from '../jobs/progress.js'
import { PERIODS } from '../model/calendar.js'
import { shortId } from '../model/point-ref.js'
import type { DomainRef, RecoveryPoint } from '../model/recovery-point.js'
import type { RetentionPolicy } from '../model/retention.js'
import { formatSize } from '../model/size.js'
import type { Store } from '../store/store.js'
import { sumOf } from './point-view.js'
import { localTimeZone } from './points.js'
import { Paces } from './paces.js'
import { pullFor } from './pull-requests.js'
import type { RunContext, Session } from './session.js'
import { StoreShelf } from './store-shelf.js'
import { type TargetPlace, targetPlace } from './targets.js'
import { verifyStore } from './verify-store.js'
import { type Machine, makeGcJob, makePullJob, openPlace, statusOfPoint } from './wire.js'

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

  /** One end per task: a target that cannot be opened, or fails, fails alone. */
  async run(
    work: { readonly tasks: Together<Task>; readonly loaded: LoadedConfig; readonly progress: Progress },
    signal: AbortSignal,
  ): Promise<readonly JobEnd[]> {
    const { tasks, loaded } = work
    const context = this.#context(loaded, work.progress, signal)
    const [task] = tasks
    if (task.verb !== 'pull') {
      const place = targetPlace(task.target, loaded.config)
      const open = () => openPlace(context, place)
      return [done(await this.#shelf.use(place.path, open, store => this.#maintain(context, store, task)))]
    }
    const ends = new Map<string, JobEnd>()
    await this.#withStores(context, { targets: tasks.map(({ target }) => target), ends }, async targets => {
      for (const [target, end] of await this.#pull(context, targets, task)) ends.set(target, end)
    })
    return tasks.map(({ target }) => ends.get(target) ?? { kind: 'failed', error: undefined })
  }

  /** Those that cannot be opened have their end at once; `work` is done where any can. */
  async #withStores(
    context: RunContext,
    { targets, ends }: { readonly targets: readonly string[]; readonly ends: Map<string, JobEnd> },
    work: (opened: readonly OpenTarget[]) => Promise<void>,
    opened: readonly OpenTarget[] = [],
  ): Promise<void> {
    const [name, ...others] = targets
    if (name === undefined) {
      if (opened.length > 0) await work(opened)
      return
    }
    let isOpen = false
    try {
      const place = targetPlace(name, (await context.config()).config)
      const open = () => openPlace(context, place)
      await this.#shelf.use(place.path, open, async store => {
        isOpen = true
        const one = { name, store, pace: this.#paces.ofTarget(place) }
        await this.#withStores(context, { targets: others, ends }, work, [...opened, one])
      })
    } catch (error) {
      if (isOpen) throw error
      ends.set(name, { kind: 'failed', error })
      await this.#withStores(context, { targets: others, ends }, work, opened)
    }
  }

  /** What the configured targets hold; those that cannot be opened are left out. */
  async survey(loaded: LoadedConfig, signal: AbortSignal): Promise<readonly StoreFacts[]> {
    const context = this.#context(loaded, { report: () => undefined }, signal)
    const facts: StoreFacts[] = []
    for (const name of Object.keys(loaded.config.targets ?? {})) {
      try {
        const place = targetPlace(name, loaded.config)
        const points = await this.#points(context, place)
        facts.push({ target: name, points: perDomain(points), stored: await packBytes(place.path) })
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

  async #pull(
    context: RunContext,
    targets: readonly OpenTarget[],
    { domain, job }: PullTask,
  ): Promise<ReadonlyMap<string, JobEnd>> {
    const machine = this.#machine()
    const { settings } = job
    if (settings.disableIfPoweredOff && (await machine.hypervisor.lookup(domain.uuid)).id < 0) {
      context.progress.report({ kind: 'log', level: 'info', message: 'shut off, and disable_if_powered_off is set' })
      return new Map(targets.map(({ name }) => [name, done({ status: 'skipped', warnings: [], figures: {} })]))
    }
    const pull = pullFor(domain, settings, { mode: 'auto', scratchLimitBytes: undefined, comment: undefined })
    const pullJob = await makePullJob(context, { targets, machine }, { ...pull, pace: this.#paces.ofJob(job) })
    const ends = new Map<string, JobEnd>()
    for (const outcome of await pullJob.run(pull.request, context.signal)) {
      const { name } = outcome.target
      if (outcome.kind === 'failed') {
        ends.set(name, outcome)
        continue
      }
      if (outcome.kind === 'skipped') {
        const { warnings, changedBytes } = outcome
        context.progress.report({ kind: 'log', level: 'info', message: tooLittleLog(changedBytes) })
        ends.set(name, done({ status: 'skipped', warnings, figures: { changed_bytes: changedBytes } }))
        continue
      }
      const { point, warnings } = outcome
      const result = { status: statusOfPoint(warnings), point: point.id, warnings, figures: figuresOf(point) }
      const store = targets.find(target => target.name === name)?.store
      const pruned =
        store === undefined || !settings.prune
          ? result
          : await this.#pruneAfter(context, store, { result, name, domain })
      ends.set(name, done(pruned))
    }
    return ends
  }

  async #pruneAfter(
    context: RunContext,
    store: Store,
    made: { readonly result: JobResult; readonly name: string; readonly domain: DomainRef },
  ): Promise<JobResult> {
    const { result, name, domain } = made
    try {
      const expired = await this.#prune(context, store, name, domain)
      return { ...result, figures: { ...result.figures, expired_points: expired } }
    } catch (error) {
      // The point is made: what was to go goes the next time.
      const warning = { code: 'W_CLEANUP', message: `older points were not pruned: ${messageOf(error)}` } as const
      return { ...result, warnings: [...result.warnings, warning] }
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
        return await verifyStore(context, store, task)
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
      note: message => progress.report({ kind: 'log', level: 'info', message }),
      confirm: question =>
        Promise.reject(
          new BackupError('E_REFUSED', question, { hints: ['run it by hand, with --yes if that is right'] }),
        ),
    }
  }
}

interface OpenTarget {
  readonly name: string
  readonly store: Store
  readonly pace: Pace | undefined
}

function done(result: JobResult): JobEnd {
  return { kind: 'done', ...result }
}

/** Why a run made no point, for the history. */
export function tooLittleLog(changedBytes: number): string {
  return `skipped: too little changed (${formatSize(changedBytes)}, and min_change asks for more)`
}

const DONE = { status: 'success', warnings: [] } as const

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

/** Of a store in a directory. */
async function packBytes(location: string): Promise<number> {
  const packs = join(location, 'packs')
  const files = await readdir(packs, { recursive: true, withFileTypes: true })
  let sum = 0
  for (const file of files) {
    // A gc may take one away meanwhile.
    if (file.isFile()) sum += (await stat(join(file.parentPath, file.name)).catch(() => undefined))?.size ?? 0
  }
  return sum
}

function perDomain(points: readonly RecoveryPoint[]): StoreFacts['points'] {
  const found = new Map<string, { domain: string; count: number; oldest: number }>()
  for (const { domain, time } of points) {
    const one = found.get(domain.uuid) ?? { domain: domain.name, count: 0, oldest: time }
    found.set(domain.uuid, { domain: domain.name, count: one.count + 1, oldest: Math.min(one.oldest, time) })
  }
  return [...found.values()]
}
