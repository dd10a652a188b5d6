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
import { describeTask, type RunFigures, type RunOrder, type RunOutcome, type RunStatus, type Task } from './task.js'

/** What the job itself gives back. */
export interface JobResult {
  readonly status: Exclude<RunStatus, 'failed'>
  readonly warnings: readonly Warning[]
  readonly point?: string | undefined
  readonly figures: RunFigures
}

export interface TaskRunnerPorts {
  readonly clock: Clock
  /** Does the work of a task. Rejects where it failed. */
  runJob(
    work: { readonly task: Task; readonly loaded: LoadedConfig; readonly progress: Progress },
    signal: AbortSignal,
  ): Promise<JobResult>
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

/** Runs one task with everything around it: hooks, log, history. Never rejects. */
export class TaskRunner {
  readonly #ports: TaskRunnerPorts
  readonly #gate = new ScopeGate()

  constructor(ports: TaskRunnerPorts) {
    this.#ports = ports
  }

  async run(order: RunOrder, signal: AbortSignal): Promise<RunOutcome> {
    const { clock } = this.#ports
    const begun = { ...subjectOf(order.task), ...timesOf(order) }
    await this.#ports.record({ kind: 'start', ...begun })
    const log = new RunLog()
    const outcome = await this.#run(order.task, log, signal)
    const retryAt = order.retryAfter(outcome)
    await this.#ports.record({ kind: 'run', ...begun, ...outcome, ended: clock.now(), retryAt })
    return outcome
  }

  async #run(task: Task, log: RunLog, signal: AbortSignal): Promise<RunOutcome> {
    const loaded = this.#ports.loaded()
    const hooks = loaded.config.commands ?? []
    const ports: HookPorts = { runInGuest: this.#ports.runInGuest, log: line => log.add(line) }
    const context: HookContext = {
      verb: task.verb,
      target: task.target,
      ...(task.verb === 'pull' ? { domain: task.domain, group: task.group } : {}),
    }
    const before = (scope: HookScope) => runHooksBefore(hooks, { scope, context }, ports, signal)
    const after = (scope: HookScope, outcome: Pick<RunOutcome, 'status' | 'error' | 'point' | 'figures'>) => {
      const exit =
        outcome.status === 'failed'
          ? this.#ports.exitOf(outcome.error?.code ?? 'E_INTERNAL')
          : outcome.status === 'partial'
            ? 3
            : 0
      return runHooksAfter(hooks, { scope, context: { ...context, outcome, exit } }, ports, signal)
    }
    const scopes = scopesOf(task)

    const warnings: Warning[] = []
    const verdicts: HookVerdict[] = []
    for (const { scope, key } of scopes) verdicts.push(await this.#gate.enter(key, () => before(scope)))
    if (verdicts.every(({ kind }) => kind === 'go')) verdicts.push(await before('domain'))
    for (const verdict of verdicts) warnings.push(...verdict.warnings)
    const halt = verdicts.find(({ kind }) => kind !== 'go')
    const outcome = halt === undefined ? await this.#work(task, { loaded, log }, signal) : halted(halt)
    if (outcome.point !== undefined) warnings.push(...(await after('point', outcome)))
    warnings.push(...(await after('domain', outcome)))
    for (const { scope, key, isMeant } of scopes.toReversed()) {
      const isMore = this.#ports.isBusy(other => other.id !== task.id && isMeant(other))
      const all = this.#gate.leave(key, outcome, isMore)
      if (all === undefined) continue
      const status = statusOfRuns(all)
      warnings.push(...(await after(scope, { status, error: all.find(one => one.error)?.error, figures: sum(all) })))
    }
    return { ...outcome, warnings: [...warnings, ...outcome.warnings], log: log.lines() }
  }

  async #work(
    task: Task,
    { loaded, log }: { readonly loaded: LoadedConfig; readonly log: RunLog },
    signal: AbortSignal,
  ): Promise<RunOutcome> {
    try {
      const result = await this.#ports.runJob({ task, loaded, progress: log }, signal)
      return { ...result, log: [] }
    } catch (error) {
      const code = errorCodeOf(error)
      const why = explained(error)
      log.add(`${describeTask(task)} failed: ${why} [${code}]`)
      return { status: 'failed', error: { code, message: why }, warnings: [], figures: {}, log: [] }
    }
  }
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
