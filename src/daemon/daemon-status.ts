import { DAY_MS } from '../model/duration.js'
import type { TaskPlan } from './plan-tasks.js'
import type { TaskView } from './scheduler.js'
import type { LastRun } from './task-memory.js'

/** How everything stands, as `daemon status`, `status` and the API show it. */

export interface DaemonFacts {
  readonly version: string
  readonly started: number
  readonly now: number
  readonly uri: string | undefined
  readonly isConnected: boolean
  readonly configFiles: readonly string[]
  /** Why the configuration on disk is not the one in use. */
  readonly configProblems: readonly string[]
  readonly plan: TaskPlan
  readonly views: readonly TaskView[]
  readonly domains: number
}

export type Health = 'ok' | 'warning' | 'critical'

/** A task in JSON. */
export interface TaskDocument {
  readonly id: string
  readonly verb: string
  readonly domain?: string | undefined
  readonly uuid?: string | undefined
  readonly group?: string | undefined
  readonly job?: string | undefined
  readonly target: string
  readonly schedule: string
  readonly timezone: string
  readonly state: string
  readonly next_run?: string | undefined
  readonly last_status?: string | undefined
  readonly last_run?: string | undefined
  readonly last_success?: string | undefined
  readonly last_run_id?: string | undefined
  readonly stale_since?: string | undefined
}

export interface StatusDocument {
  readonly schema: 'virtvault/daemon_status/1'
  readonly version: string
  readonly health: Health
  readonly started: string
  readonly now: string
  readonly uri?: string | undefined
  readonly libvirt_connected: boolean
  readonly config_files: readonly string[]
  readonly config_problems: readonly string[]
  readonly problems: readonly string[]
  readonly domains: number
  readonly jobs: readonly TaskDocument[]
}

export function statusDocument(facts: DaemonFacts): StatusDocument {
  const { plan, views } = facts
  const absent = plan.absent.map(({ group, host }) => `group ${group} lists ${host}, and there is no such domain`)
  return {
    schema: 'virtvault/daemon_status/1',
    version: facts.version,
    health: healthOf(facts),
    started: iso(facts.started),
    now: iso(facts.now),
    uri: facts.uri,
    libvirt_connected: facts.isConnected,
    config_files: facts.configFiles,
    config_problems: facts.configProblems,
    problems: [...plan.problems, ...(facts.isConnected ? absent : [])],
    domains: facts.domains,
    jobs: views.map(taskDocument),
  }
}

/** What is shown of a task. */
export type ShownTask = Omit<TaskView, 'memory'> & {
  readonly memory: {
    readonly last?: Pick<LastRun, 'id' | 'started' | 'status'> | undefined
    readonly lastSuccess?: number | undefined
  }
}

export function taskDocument({ task, memory, state, nextRun, staleSince }: ShownTask): TaskDocument {
  const pull =
    task.verb === 'pull'
      ? { domain: task.domain.name, uuid: task.domain.uuid, group: task.group, job: task.job.id }
      : {}
  return {
    id: task.id,
    verb: task.verb,
    ...pull,
    target: task.target,
    schedule: task.schedule.text,
    timezone: task.schedule.timeZone,
    state,
    next_run: isoOr(nextRun),
    last_status: memory.last?.status,
    last_run: isoOr(memory.last?.started),
    last_success: isoOr(memory.lastSuccess),
    last_run_id: memory.last?.id,
    stale_since: isoOr(staleSince),
  }
}

function healthOf({ views, isConnected, configProblems, plan }: DaemonFacts): Health {
  const isBad = views.some(({ memory, staleSince }) => staleSince !== undefined || memory.last?.status === 'failed')
  if (isBad) return 'critical'
  const isPartial = views.some(({ memory }) => memory.last?.status === 'partial')
  const isDoubtful = configProblems.length > 0 || plan.problems.length > 0 || plan.absent.length > 0
  return isPartial || isDoubtful || !isConnected ? 'warning' : 'ok'
}

/** One line for a monitoring system, and what is wrong, worst first. */
export interface CheckResult {
  readonly health: Health
  readonly summary: string
  readonly lines: readonly string[]
}

/**
 * `status --check`: whether every job of a domain had a success within
 * `maxAgeMs`, and nothing failed since. Judges what is known, not whether the
 * daemon says it is well; no job at all is a failure too.
 */
export function checkJobs(
  jobs: readonly TaskDocument[],
  { now, maxAgeMs = DAY_MS + 2 * 3_600_000 }: { readonly now: number; readonly maxAgeMs?: number | undefined },
): CheckResult {
  const critical: string[] = []
  const warning: string[] = []
  for (const job of jobs) {
    const what = job.domain === undefined ? `${job.verb} of ${job.target}` : `${job.domain} to ${job.target}`
    if (job.state === 'paused') {
      warning.push(`${what} is paused`)
      continue
    }
    const age = job.last_success === undefined ? undefined : now - Date.parse(job.last_success)
    if (job.last_status === 'failed') critical.push(`${what} failed`)
    else if (job.stale_since !== undefined) critical.push(`${what} is overdue`)
    else if (job.last_status === 'skipped') continue
    else if (job.verb === 'pull' && age === undefined && job.last_run !== undefined)
      critical.push(`${what} has no success`)
    else if (job.verb === 'pull' && age === undefined) warning.push(`${what} has not run yet`)
    else if (job.verb === 'pull' && age !== undefined && age > maxAgeMs) critical.push(`${what} is too old`)
    else if (job.last_status === 'partial') warning.push(`${what} is partial`)
  }
  if (jobs.length === 0) critical.push('there is no job')
  const health = critical.length > 0 ? 'critical' : warning.length > 0 ? 'warning' : 'ok'
  const counts = `${jobs.length} jobs, ${critical.length} critical, ${warning.length} warnings`
  return { health, summary: counts, lines: [...critical, ...warning] }
}

function iso(time: number): string {
  return new Date(time).toISOString()
}

function isoOr(time: number | undefined): string | undefined {
  return time === undefined ? undefined : iso(time)
}

/** For `systemctl status`. */
export function stateLine(
  views: readonly TaskView[],
  { isConnected, problems }: { readonly isConnected: boolean; readonly problems: number },
): string {
  const running = views.filter(({ state }) => state === 'running').length
  const stale = views.filter(({ staleSince }) => staleSince !== undefined).length
  const next = Math.min(...views.map(({ nextRun }) => nextRun ?? Infinity))
  return [
    `${views.length} jobs`,
    ...(running > 0 ? [`${running} running`] : []),
    ...(stale > 0 ? [`${stale} overdue`] : []),
    ...(isConnected ? [] : ['no libvirt']),
    ...(problems > 0 ? ['configuration broken, the old one goes on'] : []),
    ...(Number.isFinite(next) ? [`next ${new Date(next).toISOString()}`] : []),
  ].join(', ')
}
