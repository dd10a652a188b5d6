import { BackupError, messageOf } from '../base/errors.js'
import type { LoadedConfig } from '../config/load.js'
import { groupSelectors, type ResolvedJob, resolveJobs } from '../config/resolve.js'
import { type TaskDocument, taskDocument } from '../daemon/daemon-status.js'
import type { HistoryEntry } from '../daemon/history-entry.js'
import { type KnownDomain, planTasks } from '../daemon/plan-tasks.js'
import { STALE_GRACE_MS } from '../daemon/overdue.js'
import { whenOpen } from '../model/schedule.js'
import { selectDomains } from '../model/selector.js'
import { localTimeZone } from './points.js'
import type { Session } from './session.js'
import type { Machine } from './wire.js'

/** Domains with the jobs in their metadata, and the configuration: what `job` commands look at. */
export interface JobsAtHand extends AsyncDisposable {
  readonly loaded: LoadedConfig
  readonly machine: Machine
  /** By name. */
  readonly domains: readonly KnownDomain[]
}

/** Reads all domains of libvirt. Metadata that cannot be read is told, and counts as none. Rejects as connectMachine(). */
export async function jobsAtHand(session: Session): Promise<JobsAtHand> {
  const { connectMachine } = await import('./wire.js')
  const { readJobs } = await import('./daemon-wire.js')
  const loaded = await session.config()
  const machine = await connectMachine(session)
  try {
    const domains: KnownDomain[] = []
    for (const { uuid, name, id } of await machine.hypervisor.listDomains()) {
      const jobs = await readJobs(machine.hypervisor, uuid).catch((error: unknown) => {
        session.complain(`${name}: ${messageOf(error)}`)
        return []
      })
      domains.push({ ref: { uuid, name }, isRunning: id >= 0, jobs })
    }
    domains.sort((a, b) => (a.ref.name < b.ref.name ? -1 : 1))
    return { loaded, machine, domains, [Symbol.asyncDispose]: () => machine[Symbol.asyncDispose]() }
  } catch (error) {
    await machine[Symbol.asyncDispose]()
    throw error
  }
}

/** Those that the selectors mean; all without one. Throws E_NOT_FOUND. */
export function chooseDomains(at: JobsAtHand, selectors: readonly string[]): readonly KnownDomain[] {
  if (selectors.length === 0) return at.domains
  const refs = at.domains.map(({ ref }) => ref)
  const { domains } = selectDomains(refs, { selectors }, groupSelectors(at.loaded.config))
  const uuids = new Set(domains.map(({ uuid }) => uuid))
  return at.domains.filter(({ ref }) => uuids.has(ref.uuid))
}

/** The one domain of that name or UUID. Throws E_NOT_FOUND, E_USAGE for several. */
export function oneDomain(at: JobsAtHand, selector: string): KnownDomain {
  const [domain, another] = chooseDomains(at, [selector])
  if (domain === undefined || another !== undefined) {
    throw new BackupError('E_USAGE', `"${selector}" means several domains: name one`)
  }
  return domain
}

/** The jobs of a domain, as they hold. */
export function jobsOf(at: JobsAtHand, { ref, jobs }: KnownDomain): readonly ResolvedJob[] {
  return resolveJobs(at.loaded, ref, { timeZone: localTimeZone(), env: process.env, metadata: jobs })
}

/** As a daemon would report them, from the schedule and the history: for machines where none runs. */
export function offlineTasks(
  at: Pick<JobsAtHand, 'loaded' | 'domains'>,
  history: readonly HistoryEntry[],
  { env, now }: { readonly env: NodeJS.ProcessEnv; readonly now: number },
): readonly TaskDocument[] {
  const { tasks } = planTasks(at.loaded, at.domains, { env, timeZone: localTimeZone() })
  const past = new Map<string, { last?: HistoryEntry & { kind: 'run' }; success?: number; skip?: number }>()
  for (const entry of history) {
    if (entry.kind !== 'run') continue
    const one = past.get(entry.task) ?? {}
    one.last = entry
    if (entry.status === 'skipped') one.skip = entry.started
    else if (entry.status !== 'failed') one.success = entry.started
    past.set(entry.task, one)
  }
  return tasks.map(task => {
    const { schedule, jitterMs, window } = task
    const { last, success, skip } = past.get(task.id) ?? {}
    const open = (time: number) => whenOpen(window, time + jitterMs, schedule.timeZone)
    const due = schedule.previousRun(now - jitterMs - STALE_GRACE_MS)
    const isStale = due !== undefined && last !== undefined && Math.max(success ?? 0, skip ?? 0) < due
    return taskDocument({
      task,
      memory: { last, lastSuccess: success },
      state: task.paused ? 'paused' : 'idle',
      nextRun: task.paused ? undefined : open(schedule.nextRun(now - jitterMs)),
      staleSince: isStale && !task.paused ? due : undefined,
    })
  })
}
