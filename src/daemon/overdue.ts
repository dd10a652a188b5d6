import { HOUR_MS } from '../model/duration.js'
import { whenOpen } from '../model/schedule.js'
import type { Task } from './task.js'
import type { TaskMemory } from './task-memory.js'

/** A late run is a fact of life; one later than this is worth waking somebody. */
export const STALE_GRACE_MS = 2 * HOUR_MS
/** A run that takes longer than this is no excuse for being late any more. */
const LONGEST_RUN_MS = 24 * HOUR_MS

export interface Watched {
  readonly task: Task
  readonly memory: TaskMemory
  /** Of the attempt that runs. */
  readonly startedAt: number | undefined
}

/**
 * The scheduled time for which a success is overdue: judged from what was
 * promised, not from what ran, so that a job that never starts is noticed.
 */
export function staleSince({ task, memory, startedAt }: Watched, now: number): number | undefined {
  if (task.paused) return undefined
  if (startedAt !== undefined && now - startedAt < LONGEST_RUN_MS) return undefined
  const due = lastPromise(task, now - STALE_GRACE_MS)
  if (due === undefined || due < memory.firstSeen) return undefined
  return Math.max(memory.lastSuccess ?? -Infinity, memory.lastSkip ?? -Infinity) >= due ? undefined : due
}

/** The latest scheduled time whose start, jitter and window included, was at or before `time`. */
function lastPromise(task: Task, time: number): number | undefined {
  const known = promises.get(task)
  if (known !== undefined && known.from <= time && time < known.until) return known.due
  const { schedule, jitterMs, window } = task
  const start = (due: number) => whenOpen(window, due + jitterMs, schedule.timeZone)
  const latest = schedule.previousRun(time - jitterMs)
  const promise =
    latest === undefined
      ? { from: time, until: start(schedule.nextRun(time - jitterMs)), due: undefined }
      : start(latest) > time
        ? { from: time, until: start(latest), due: undefined }
        : { from: time, until: start(schedule.nextRun(latest)), due: latest }
  promises.set(task, promise)
  return promise.due
}

// Asked for on every tick of every task, and croner takes 30 µs for an answer.
const promises = new WeakMap<
  Task,
  { readonly from: number; readonly until: number; readonly due: number | undefined }
>()
