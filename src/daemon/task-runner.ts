import { BackupError, type ErrorCode, errorCodeOf, messageOf, type Warning } from '../base/errors.js'
import type { Clock } from '../base/clock.js'
import type { LoadedConfig } from '../config/load.js'
import type { Progress } from '../jobs/progress.js'
import type { RunEntry, RunSubject, StartEntry } from './history-entry.js'
import {
  type HookContext,
  type HookPorts,
  type HookScope,
  type HookVerdict,
  runHooksAfter,
  runHooksBefore,
} from './hooks.js'
import { statusOfRuns } from './notice.js'
import { RunLog } from './run-log.js'
import { ScopeGate } from './scope-gate.js'
import {
  describeTask,
  type RunFigures,
  type RunOrder,
  type RunOutcome,
  type RunStatus,
  type Task,
  type Together,
} from './task.js'

/** What the job itself gives back. */
export interface JobResult {
  readonly status: Exclude<RunStatus, 'failed'>
  readonly warnings: readonly Warning[]
  readonly point?: string | undefined
  readonly figures: RunFigures
}

/** How the job ended for one of its tasks. */
export type JobEnd = ({ readonly kind: 'done' } & JobResult) | { readonly kind: 'failed'; readonly error: unknown }

export interface TaskRunnerPorts {
  readonly clock: Clock
  /** Does the work of tasks that are one run; one end for each. Rejects where all failed alike. */
  runJob(
    work: { readonly tasks: Together<Task>; readonly loaded: LoadedConfig; readonly progress: Progress },
    signal: AbortSignal,
  ): Promise<readonly JobEnd[]>
  /** The one in use when a run begins. */
  loaded(): LoadedConfig
  readonly runInGuest: HookPorts['runInGuest']
  /** Of an error, as the commands exit. */
  exitOf(code: ErrorCode): number
  /** Whether other tasks of the same kind are still to come. */
  isBusy(isMeant: (task: Task) => boolean): boolean
  /** Must not reject: the history is not what a backup depends on. */
  record(entry: StartEntry | RunEntry): Promise<void>
}

/** Runs tasks with everything around them: hooks, log, history. Never rejects. */
export class TaskRunner {
  readonly #ports: TaskRunnerPorts
  readonly #gate = new ScopeGate()

  constructor(ports: TaskRunnerPorts) {
    this.#ports = ports
  }

  /** Settles each of the orders. */
  async run(orders: Together<RunOrder>, signal: AbortSignal): Promise<void> {
    const begun = (order: RunOrder) => ({ ...subjectOf(order.task), ...timesOf(order) })
    for (const order of orders) await this.#ports.record({ kind: 'start', ...begun(order) })
    const log = new RunLog()
    const [first, ...others] = orders
    const outcomes = await this.#run([first.task, ...others.map(({ task }) => task)], log, signal)
    const ended = this.#ports.clock.now()
    for (const [i, order] of orders.entries()) {
      const outcome = outcomes[i]
      if (outcome === undefined) continue
      await this.#ports.record({ kind: 'run', ...begun(order), ...outcome, ended, retryAt: order.settle(outcome) })
    }
  }

  /** Hooks are run once for all, but those about a point. */
  async #run(tasks: Together<Task>, log: RunLog, signal: AbortSignal): Promise<readonly RunOutcome[]> {
    const [task] = tasks
    const loaded = this.#ports.loaded()
    const hooks = loaded.config.commands ?? []
    const ports: HookPorts = { runInGuest: this.#ports.runInGuest, log: line => log.add(line) }
    const context: HookContext = {
      verb: task.verb,
      target: tasks.map(({ target }) => target).join(','),
      ...(task.verb === 'pull' ? { domain: task.domain, group: task.group } : {}),
    }
    const before = (scope: HookScope) => runHooksBefore(hooks, { scope, context }, ports, signal)
    const after = (scope: HookScope, outcome: HookOutcome, target = context.target) => {
      const exit = this.#exitOf(outcome)
      return runHooksAfter(hooks, { scope, context: { ...context, target, outcome, exit } }, ports, signal)
    }
    const scopes = scopesOf(task)

    const warnings: Warning[] = []
    const verdicts: HookVerdict[] = []
    for (const { scope, key } of scopes) verdicts.push(await this.#gate.enter(key, () => before(scope)))
    if (verdicts.every(({ kind }) => kind === 'go')) verdicts.push(await before('domain'))
    for (const verdict of verdicts) warnings.push(...verdict.warnings)
    const halt = verdicts.find(({ kind }) => kind !== 'go')
    const outcomes =
      halt === undefined ? await this.#work(tasks, { loaded, log }, signal) : tasks.map(() => halted(halt))
    for (const [i, outcome] of outcomes.entries()) {
      if (outcome.point !== undefined) warnings.push(...(await after('point', outcome, tasks[i]?.target)))
    }
    const whole = together(outcomes)
    warnings.push(...(await after('domain', whole)))
    const ids = new Set(tasks.map(({ id }) => id))
    for (const { scope, key, isMeant } of scopes.toReversed()) {
      const isMore = this.#ports.isBusy(other => !ids.has(other.id) && isMeant(other))
      const all = this.#gate.leave(key, whole, isMore)
      if (all !== undefined) warnings.push(...(await after(scope, together(all))))
    }
    return outcomes.map(outcome => ({ ...outcome, warnings: [...warnings, ...outcome.warnings], log: log.lines() }))
  }

  async #work(
    tasks: Together<Task>,
    { loaded, log }: { readonly loaded: LoadedConfig; readonly log: RunLog },
    signal: AbortSignal,
  ): Promise<readonly RunOutcome[]> {
    const ends = await this.#ports
      .runJob({ tasks, loaded, progress: log }, signal)
      .catch((error: unknown): readonly JobEnd[] => tasks.map(() => ({ kind: 'failed', error })))
    return tasks.map((task, i) => {
      const end = ends[i] ?? { kind: 'failed', error: new BackupError('E_INTERNAL', 'the job told no end') }
      if (end.kind === 'done') {
        const { kind: _, ...result } = end
        return { ...result, log: [] }
      }
      const code = errorCodeOf(end.error)
      const why = explained(end.error)
      log.add(`${describeTask(task)} failed: ${why} [${code}]`)
      return { status: 'failed', error: { code, message: why }, warnings: [], figures: {}, log: [] }
    })
  }

  /** As `backup pull` would. */
  #exitOf({ status, error }: HookOutcome): number {
    if (status === 'failed') return this.#ports.exitOf(error?.code ?? 'E_INTERNAL')
    return status === 'partial' ? 3 : 0
  }
}

type HookOutcome = Pick<RunOutcome, 'status' | 'error' | 'point' | 'figures'>

/** Several outcomes as one; a single one as it is. */
function together(outcomes: readonly HookOutcome[]): HookOutcome {
  const [only, another] = outcomes
  if (only !== undefined && another === undefined) return only
  return { status: statusOfRuns(outcomes), error: outcomes.find(one => one.error)?.error, figures: sum(outcomes) }
}

/** What happened and why, once each. */
function explained(error: unknown): string {
  const message = messageOf(error)
  if (!(error instanceof BackupError) || error.why === undefined) return message
  return error.why.startsWith(message) ? error.why : `${message}: ${error.why}`
}

interface SharedScope {
  readonly scope: HookScope
  readonly key: string
  readonly isMeant: (task: Task) => boolean
}

/** The widest first. */
function scopesOf(task: Task): readonly SharedScope[] {
  const everything: SharedScope = {
    scope: 'everything',
    key: `everything ${task.verb}`,
    isMeant: other => other.verb === task.verb,
  }
  if (task.verb !== 'pull' || task.group === undefined) return [everything]
  const { group } = task
  return [
    everything,
    { scope: 'group', key: `group ${group}`, isMeant: other => other.verb === 'pull' && other.group === group },
  ]
}

function halted(verdict: HookVerdict): RunOutcome {
  const base = { warnings: [], figures: {}, log: [] }
  if (verdict.kind === 'fail') {
    return { ...base, status: 'failed', error: { code: verdict.error.code, message: verdict.error.message } }
  }
  return { ...base, status: 'skipped' }
}

export function subjectOf(task: Task): RunSubject {
  const { id, verb, target } = task
  return task.verb === 'pull'
    ? { task: id, verb, target, domain: task.domain, group: task.group, job: task.job.id }
    : { task: id, verb, target, domain: undefined, group: undefined, job: undefined }
}

function timesOf({ id, trigger, attempt, due, started }: RunOrder) {
  return { id, trigger, attempt, due, started }
}

function sum(outcomes: readonly { readonly figures: RunFigures }[]): RunFigures {
  const total: Record<string, number> = {}
  for (const { figures } of outcomes) {
    for (const [name, value] of Object.entries(figures)) total[name] = (total[name] ?? 0) + value
  }
  return total
}
