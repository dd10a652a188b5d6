import type { ErrorCode, Warning } from '../base/errors.js'
import type { ResolvedJob } from '../config/resolve.js'
import type { DomainRef } from '../model/recovery-point.js'
import type { Schedule, StartWindow } from '../model/schedule.js'

/** What the daemon runs, and what came of it. */

export type Verb = 'pull' | 'prune' | 'gc' | 'verify'

/** A pull of one domain into one target, or work on a whole store. */
export type Task = PullTask | StoreTask

export interface PullTask extends TaskTiming {
  readonly verb: 'pull'
  readonly domain: DomainRef
  readonly group: string | undefined
  /** With the target that this task is about; a job with several targets is several tasks. */
  readonly job: ResolvedJob
  /** The same for all targets of a job: those of them that are due together are one run, from one read. */
  readonly together: string
}

export interface StoreTask extends TaskTiming {
  readonly verb: 'prune' | 'gc' | 'verify'
  /** Of a verify that has a schedule of its own; the others have that of the configuration. */
  readonly level?: 'boot' | undefined
}

export interface TaskTiming {
  /** Stable, so that what is known of its past stays with it: `pull/UUID/JOB/TARGET`, `gc/TARGET`, `verify/TARGET/boot`. */
  readonly id: string
  readonly target: string
  readonly schedule: Schedule
  /** Already chosen for this task. */
  readonly jitterMs: number
  readonly catchUp: boolean
  readonly window: StartWindow | undefined
  /** Higher runs first among what is due. */
  readonly priority: number
  readonly paused: boolean
}

/** `db01 to nas`, `gc of nas`, `boot test of nas`. */
export function describeTask(task: Task): string {
  if (task.verb === 'pull') return `${task.domain.name} to ${task.target}`
  return `${task.level === 'boot' ? 'boot test' : task.verb} of ${task.target}`
}

/** Tasks that are one run: the targets of one job, or work on one store. */
export type Together<T> = readonly [T, ...T[]]

export type RunStatus = 'success' | 'partial' | 'failed' | 'skipped'

export interface RunError {
  readonly code: ErrorCode
  readonly message: string
}

/** Numbers of a run, bytes unless named otherwise; in JSON as they stand here. */
export type RunFigures = Readonly<Record<string, number>>

/** How one attempt ended. */
export interface RunOutcome {
  readonly status: RunStatus
  readonly error?: RunError | undefined
  readonly warnings: readonly Warning[]
  /** The recovery point that was made. */
  readonly point?: string | undefined
  readonly figures: RunFigures
  /** Lines for people, oldest first. */
  readonly log: readonly string[]
}

export type Trigger = 'schedule' | 'catch-up' | 'retry' | 'manual'

/** One attempt that is to be made. */
export interface RunOrder {
  /** Random, 16 hex characters. */
  readonly id: string
  readonly task: Task
  readonly trigger: Trigger
  /** The scheduled time it stands for; undefined for one that was asked for. */
  readonly due: number | undefined
  /** From 1. */
  readonly attempt: number
  readonly started: number
  /**
   * Tells how it ended, before anybody else is told: from then on it does not
   * count as running. Gives when the next attempt is made; undefined where
   * there is none.
   */
  readonly settle: (outcome: RunOutcome) => number | undefined
}
