import type { LoadedConfig } from '../config/load.js'
import type { Environment } from '../config/load.js'
import { type ResolvedJob, resolveJobs } from '../config/resolve.js'
import type { DomainJob } from '../model/domain-job.js'
import type { DomainRef } from '../model/recovery-point.js'
import { jitterFor, parseSchedule, parseWindow } from '../model/schedule.js'
import { parseSelector } from '../model/selector.js'
import type { PullTask, StoreTask, Task } from './task.js'

/** A domain as the hypervisor has it. */
export interface KnownDomain {
  readonly ref: DomainRef
  readonly isRunning: boolean
  /** In its own metadata. */
  readonly jobs: readonly DomainJob[]
}

export interface TaskPlan {
  readonly tasks: readonly Task[]
  /** What cannot be scheduled, and why; one line each. */
  readonly problems: readonly string[]
  /** Names that a group lists and that no domain has: backups that will never run. */
  readonly absent: readonly { readonly group: string; readonly host: string }[]
}

export interface PlanContext {
  readonly env: Environment
  /** Of the machine, where the configuration names none. */
  readonly timeZone: string
}

/**
 * Everything that is to run by itself: for each domain and job one pull per
 * target, and for each target prune, gc and verify as the configuration
 * schedules them. Jobs without a schedule run only when they are asked for,
 * and are not in it.
 */
export function planTasks(loaded: LoadedConfig, domains: readonly KnownDomain[], context: PlanContext): TaskPlan {
  const problems: string[] = []
  const pulls = domains.flatMap(domain => {
    const jobs = resolveJobs(loaded, domain.ref, { ...context, metadata: domain.jobs })
    return jobs.flatMap(job => pullTasks(job, loaded, problems))
  })
  return { tasks: [...pulls, ...storeTasks(loaded, context)], problems, absent: absentHosts(loaded, domains) }
}

/** `job` as it holds for one of its targets. */
function pullTasks(job: ResolvedJob, loaded: LoadedConfig, problems: string[]): readonly PullTask[] {
  const { domain, group, settings } = job
  if (settings.schedule === undefined) return []
  const targets = targetsOf(job, loaded)
  if (targets.length === 0) problems.push(`${domain.name}: job ${job.id} has a schedule and no target`)
  const schedule = parseSchedule(settings.schedule, settings.timeZone)
  const window = settings.window === undefined ? undefined : parseWindow(settings.window)
  return targets.map(target => {
    const id = `pull/${domain.uuid}/${job.id}/${target}`
    return {
      id,
      verb: 'pull',
      domain,
      group,
      together: `pull/${domain.uuid}/${job.id}`,
      job: { ...job, settings: { ...settings, targets: [target] } },
      target,
      schedule,
      // The same for all targets of a job, so that they follow one another.
      jitterMs: jitterFor(`${domain.uuid}/${job.id}`, settings.jitter),
      catchUp: settings.catchUp,
      window,
      priority: settings.priority,
      paused: settings.paused,
    }
  })
}

/** Those of the job, else the only one that is configured. */
export function targetsOf(job: ResolvedJob, loaded: LoadedConfig): readonly string[] {
  const { targets } = job.settings
  if (targets.length > 0) return [...new Set(targets)]
  const [only, another] = Object.keys(loaded.config.targets ?? {})
  return only !== undefined && another === undefined ? [only] : []
}

function storeTasks(loaded: LoadedConfig, { timeZone }: PlanContext): readonly StoreTask[] {
  const { prune, gc, verify, targets, timezone } = loaded.config
  const all = Object.keys(targets ?? {})
  const zone = timezone ?? timeZone
  const tasksOf = (
    verb: StoreTask['verb'],
    text: string | undefined,
    names: readonly string[],
    level?: StoreTask['level'],
  ) => {
    if (text === undefined) return []
    const schedule = parseSchedule(text, zone)
    return names.map((target): StoreTask => {
      const id = level === undefined ? `${verb}/${target}` : `${verb}/${target}/${level}`
      return {
        id,
        verb,
        target,
        level,
        schedule,
        jitterMs: 0,
        catchUp: true,
        window: undefined,
        priority: 0,
        paused: false,
      }
    })
  }
  return [
    ...tasksOf('prune', prune?.schedule, all),
    ...tasksOf('gc', gc?.schedule, gc?.targets ?? all),
    ...tasksOf('verify', verify?.schedule, verify?.targets ?? all),
    ...tasksOf('verify', verify?.boot?.schedule, verify?.targets ?? all, 'boot'),
  ]
}

function absentHosts(loaded: LoadedConfig, domains: readonly KnownDomain[]): TaskPlan['absent'] {
  const there = new Set(domains.flatMap(({ ref }) => [ref.name, ref.uuid]))
  return Object.entries(loaded.config.groups ?? {}).flatMap(([group, { hosts = [] }]) =>
    hosts.flatMap(host => {
      const text = typeof host === 'string' ? host : host.host
      const { kind, excludes } = parseSelector(text)
      return kind === 'exact' && !excludes && !there.has(text) && !there.has(text.toLowerCase())
        ? [{ group, host: text }]
        : []
    }),
  )
}
