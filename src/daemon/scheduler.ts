import type { Clock } from '../base/clock.js'
import type { ErrorCode } from '../base/errors.js'
import { HOUR_MS, MINUTE_MS } from '../model/duration.js'
import { decideRun, ON_TIME_MS, whenOpen } from '../model/schedule.js'
import { type RunLimits, RunQueues } from './run-queues.js'
import type { RunOrder, RunOutcome, RunStatus, Task, Trigger } from './task.js'

/**
 * Starts tasks when they are due. Knows times, attempts and turns; what a task
 * does is its runner's business.
 */

/** What is known of a task's past; survives the daemon. */
export interface TaskMemory {
  /** Scheduled times up to here are accounted for. */
  readonly accountedUntil: number
  readonly firstSeen: number
  /** The latest attempt that ended. */
  readonly last?: LastRun | undefined
  /** Start of the latest attempt that was a success, partial ones included. */
  readonly lastSuccess?: number | undefined
  /** Start of the latest that was not to be made, which is fine too. */
  readonly lastSkip?: number | undefined
  /** The scheduled time for which staleness was told. */
  readonly toldStale?: number | undefined
}

export interface LastRun {
  readonly id: string
  readonly started: number
  readonly ended: number
  readonly due: number | undefined
  readonly status: RunStatus
  readonly attempt: number
}

export type MissReason = 'down' | 'overrun'

export interface SchedulerPorts {
  readonly clock: Clock
  /** Runs one attempt. Must not reject: a failure is an outcome. */
  run(order: RunOrder, signal: AbortSignal): Promise<RunOutcome>
  /** Scheduled times that came to nothing; `isMadeUp` where one run now stands for them. */
  onMissed(
    task: Task,
    missed: { readonly times: readonly number[]; readonly reason: MissReason; readonly isMadeUp: boolean },
  ): void
  /** No success since a scheduled time that is long past. Told once for each. */
  onStale(task: Task, since: number): void
  /** Whether the task can be begun at all now: its libvirt is connected. */
  canRun(task: Task): boolean
  /** Something to be kept has changed. */
  onChange(): void
  newRunId(): string
}

export interface RetryPolicy {
  /** Further attempts after the first. */
  readonly attempts: number
  /** Milliseconds before the first of them; each next one waits twice as long. */
  readonly delay: number
}

export interface SchedulerLimits extends RunLimits {
  readonly retry: RetryPolicy
  /** However far the next run is, clocks are looked at this often: they jump, and machines sleep. */
  readonly lookEveryMs?: number | undefined
}

/** A task as the outside sees it. */
export interface TaskView {
  readonly task: Task
  readonly memory: TaskMemory
  readonly state: 'idle' | 'queued' | 'running' | 'paused'
  /** When it starts next, jitter and window included; undefined while paused. */
  readonly nextRun: number | undefined
  /** The scheduled time since which there should have been a success. */
  readonly staleSince: number | undefined
}

/** A late run is a fact of life; one later than this is worth waking somebody. */
export const STALE_GRACE_MS = 2 * HOUR_MS
/** A run that takes longer than this is no excuse for being late any more. */
const LONGEST_RUN_MS = 24 * HOUR_MS
const LOOK_EVERY_MS = MINUTE_MS
/** Of a past time that lies in the future; see decideRun(). */
const CLOCK_TOLERANCE_MS = 5 * MINUTE_MS
/** Wall and monotonic clock may drift apart by this much between two looks. */
const JUMP_MS = 30_000
const LONGEST_RETRY_DELAY_MS = HOUR_MS

/** Trying again does not help against these. */
const LASTING: ReadonlySet<ErrorCode> = new Set([
  'E_USAGE',
  'E_CONFIG',
  'E_REFUSED',
  'E_EXISTS',
  'E_NOT_FOUND',
  'E_UNSUPPORTED',
  'E_NO_DISK',
  'E_NO_STORE',
  'E_STORE_FORMAT',
  'E_KEY',
  'E_DAMAGED',
  'E_TOOL_MISSING',
])

interface Entry {
  task: Task
  memory: TaskMemory
  busy: 'queued' | 'running' | undefined
  startedAt: number | undefined
  /** The next attempt of a run that failed. */
  retry: { readonly at: number; readonly attempt: number; readonly due: number | undefined } | undefined
  /** Not looked at before this wall-clock time. */
  lookAt: number
  nextRun: number
  /** Left the configuration while it ran. */
  isGone: boolean
}

export class Scheduler {
  readonly #ports: SchedulerPorts
  readonly #queues: RunQueues
  readonly #entries = new Map<string, Entry>()
  /** Of tasks that are not there now: a domain may come back. */
  readonly #memories = new Map<string, TaskMemory>()
  readonly #running = new Set<Promise<void>>()
  readonly #runs = new AbortController()
  #limits: SchedulerLimits
  #waker = new AbortController()
  #isEnding = false
  #lastLook = 0
  #clockGap: number | undefined

  constructor(ports: SchedulerPorts, limits: SchedulerLimits) {
    this.#ports = ports
    this.#limits = limits
    this.#queues = new RunQueues(limits)
  }

  /** What was kept of an earlier life; before the first setTasks(). */
  restore(memories: ReadonlyMap<string, TaskMemory>): void {
    for (const [id, memory] of memories) this.#memories.set(id, memory)
  }

  /** To be kept for the next life. */
  memories(): ReadonlyMap<string, TaskMemory> {
    return new Map([...this.#memories, ...[...this.#entries].map(([id, { memory }]) => [id, memory] as const)])
  }

  /** Drops what is known of tasks that have been away since before `time`. */
  forget(time: number): void {
    for (const [id, memory] of this.#memories) {
      if (Math.max(memory.accountedUntil, memory.last?.ended ?? 0) < time) this.#memories.delete(id)
    }
  }

  setLimits(limits: SchedulerLimits): void {
    this.#limits = limits
    this.#queues.setLimits(limits)
  }

  /** Replaces all tasks; what runs goes on, what is known of a task stays. A new one runs at its next time, not at once. */
  setTasks(tasks: readonly Task[]): void {
    const now = this.#ports.clock.now()
    const gone = new Set(this.#entries.keys())
    for (const task of tasks) {
      gone.delete(task.id)
      const known = this.#entries.get(task.id)
      if (known === undefined) {
        const memory = this.#memories.get(task.id) ?? { accountedUntil: now, firstSeen: now }
        this.#memories.delete(task.id)
        this.#entries.set(task.id, {
          task,
          memory,
          busy: undefined,
          startedAt: undefined,
          retry: undefined,
          lookAt: 0,
          nextRun: now,
          isGone: false,
        })
      } else {
        // While it was paused, or on another schedule, nothing was due.
        const isOther = known.task.schedule.text !== task.schedule.text || (known.task.paused && !task.paused)
        if (isOther) known.memory = { ...known.memory, accountedUntil: now }
        known.task = task
        known.lookAt = 0
        known.isGone = false
      }
    }
    for (const id of gone) {
      const entry = this.#entries.get(id)
      if (entry?.busy === undefined) this.#remove(id)
      else entry.isGone = true
    }
    this.#ports.onChange()
    this.wake()
  }

  /** Something outside has changed: looks at all tasks at once. */
  wake(): void {
    for (const entry of this.#entries.values()) entry.lookAt = 0
    this.#waker.abort()
  }

  /** Runs tasks now, whatever their schedule; those that run or wait already are left alone. Gives the ids begun. */
  runNow(ids: readonly string[]): readonly string[] {
    if (this.#isEnding) return []
    return ids.filter(id => {
      const entry = this.#entries.get(id)
      if (entry === undefined || entry.busy !== undefined) return false
      this.#begin(entry, { trigger: 'manual', due: undefined, attempt: 1 })
      return true
    })
  }

  /** Whether a task that `isMeant` takes runs, waits for its turn, or is to be tried again. */
  isBusy(isMeant: (task: Task) => boolean): boolean {
    return [...this.#entries.values()].some(
      ({ task, busy, retry }) => (busy !== undefined || retry !== undefined) && isMeant(task),
    )
  }

  /** Monotonic time of the last look at all tasks: a daemon that does not look any more is stuck. */
  get lastLook(): number {
    return this.#lastLook
  }

  views(): readonly TaskView[] {
    const now = this.#ports.clock.now()
    return [...this.#entries.values()].map(entry => ({
      task: entry.task,
      memory: entry.memory,
      state: entry.busy ?? (entry.task.paused ? 'paused' : 'idle'),
      nextRun: entry.task.paused ? undefined : this.#nextRunOf(entry, now),
      staleSince: staleSince(entry, now),
    }))
  }

  /** Starts what is due until `signal` aborts; then starts nothing more and returns. What runs goes on: see drain(). */
  async run(signal: AbortSignal): Promise<void> {
    const onAbort = () => this.#waker.abort()
    signal.addEventListener('abort', onAbort, { once: true })
    try {
      while (!signal.aborted) {
        this.#waker = new AbortController()
        const until = this.#look()
        await this.#sleep(until)
      }
    } finally {
      signal.removeEventListener('abort', onAbort)
      this.#isEnding = true
    }
  }

  /** Waits for what runs; what still runs after `limitMs` is aborted, and waited for. Begins nothing that only waits. */
  async drain(limitMs: number): Promise<void> {
    this.#isEnding = true
    const all = Promise.allSettled([...this.#running])
    const timer = new AbortController()
    const late = this.#ports.clock.sleep(limitMs, timer.signal).then(
      () => this.#runs.abort(),
      () => undefined,
    )
    await Promise.race([all, late])
    await all
    timer.abort()
    await late
  }

  /** Begins all that is due; gives the time to look again. */
  #look(): number {
    const now = this.#ports.clock.now()
    this.#lastLook = this.#ports.clock.monotonic()
    if (this.#hasClockJumped(now)) for (const entry of this.#entries.values()) entry.lookAt = 0
    const due: { readonly entry: Entry; readonly begin: () => void }[] = []
    let next = now + this.#lookEvery
    for (const entry of this.#entries.values()) {
      this.#tellStale(entry, now)
      if (entry.busy !== undefined || entry.task.paused || entry.isGone) continue
      if (entry.lookAt <= now) {
        const begin = this.#decide(entry, now)
        if (begin !== undefined) due.push({ entry, begin })
      }
      next = Math.min(next, Math.max(now + 1, entry.lookAt))
    }
    // p-queue keeps the order of equals: the longest without success goes first.
    due.sort(
      (a, b) =>
        b.entry.task.priority - a.entry.task.priority ||
        (a.entry.memory.lastSuccess ?? 0) - (b.entry.memory.lastSuccess ?? 0),
    )
    for (const { begin } of due) begin()
    return next
  }

  #decide(entry: Entry, now: number): (() => void) | undefined {
    const { task, retry } = entry
    if (!this.#ports.canRun(task)) {
      entry.lookAt = now + this.#lookEvery
      return undefined
    }
    if (retry !== undefined && retry.at <= now) {
      return () => this.#begin(entry, { trigger: 'retry', due: retry.due, attempt: retry.attempt })
    }
    // A clock that was put back: what is to come would never be past that time.
    if (entry.memory.accountedUntil > now + CLOCK_TOLERANCE_MS) entry.memory = { ...entry.memory, accountedUntil: now }
    const decision = decideRun({ ...task, accountedUntil: entry.memory.accountedUntil, now })
    if (decision.missed.length > 0) this.#account(entry, decision.missed, decision.kind === 'run' || task.catchUp)
    if (decision.kind === 'wait') {
      entry.nextRun = decision.until
      entry.lookAt = Math.min(decision.until, retry?.at ?? Infinity)
      return undefined
    }
    const { due } = decision
    const isLate = now - whenOpen(task.window, due + task.jitterMs, task.schedule.timeZone) > ON_TIME_MS
    return () => this.#begin(entry, { trigger: isLate ? 'catch-up' : 'schedule', due, attempt: 1 })
  }

  #account(entry: Entry, missed: readonly number[], isMadeUp: boolean): void {
    const latest = missed.at(-1)
    if (latest === undefined) return
    const { last } = entry.memory
    const overrun = missed.filter(time => last !== undefined && last.started <= time && time <= last.ended)
    const down = missed.filter(time => !overrun.includes(time))
    entry.memory = { ...entry.memory, accountedUntil: latest }
    if (overrun.length > 0) this.#ports.onMissed(entry.task, { times: overrun, reason: 'overrun', isMadeUp })
    if (down.length > 0) this.#ports.onMissed(entry.task, { times: down, reason: 'down', isMadeUp })
    this.#ports.onChange()
  }

  #begin(
    entry: Entry,
    run: { readonly trigger: Trigger; readonly due: number | undefined; readonly attempt: number },
  ): void {
    entry.busy = 'queued'
    entry.retry = undefined
    if (run.due !== undefined) entry.memory = { ...entry.memory, accountedUntil: run.due }
    const work = this.#queues
      .run(entry.task, () => this.#attempt(entry, run))
      .finally(() => {
        this.#running.delete(work)
        entry.busy = undefined
        entry.startedAt = undefined
        entry.lookAt = 0
        if (entry.isGone) this.#remove(entry.task.id)
        this.wake()
      })
    this.#running.add(work)
  }

  async #attempt(
    entry: Entry,
    run: { readonly trigger: Trigger; readonly due: number | undefined; readonly attempt: number },
  ): Promise<void> {
    if (this.#isEnding || entry.isGone) {
      // Its time is still owed: the next life makes up for it.
      if (run.due !== undefined) entry.memory = { ...entry.memory, accountedUntil: run.due - 1 }
      return
    }
    const { clock } = this.#ports
    const { task } = entry
    const started = clock.now()
    entry.busy = 'running'
    entry.startedAt = started
    const id = this.#ports.newRunId()
    const retryAfter = (outcome: RunOutcome) => this.#retryAfter(outcome, run.attempt)
    const outcome = await this.#ports.run({ id, task, ...run, started, retryAfter }, this.#runs.signal)
    const last = { id, started, ended: clock.now(), due: run.due, status: outcome.status, attempt: run.attempt }
    const good = outcome.status === 'skipped' ? { lastSkip: started } : { lastSuccess: started }
    entry.memory = { ...entry.memory, last, ...(outcome.status === 'failed' ? {} : { ...good, toldStale: undefined }) }
    const at = this.#retryAfter(outcome, run.attempt)
    if (at !== undefined && !entry.isGone) {
      const open = whenOpen(task.window, at, task.schedule.timeZone)
      entry.retry = { at: open, attempt: run.attempt + 1, due: run.due }
    }
    this.#ports.onChange()
  }

  #retryAfter(outcome: Pick<RunOutcome, 'status' | 'error'>, attempt: number): number | undefined {
    const { error } = outcome
    if (outcome.status !== 'failed' || this.#isEnding || attempt > this.#limits.retry.attempts) return undefined
    if (error !== undefined && LASTING.has(error.code)) return undefined
    const delay = Math.min(this.#limits.retry.delay * 2 ** (attempt - 1), LONGEST_RETRY_DELAY_MS)
    return this.#ports.clock.now() + delay
  }

  #tellStale(entry: Entry, now: number): void {
    const since = staleSince(entry, now)
    if (since === undefined || entry.memory.toldStale === since) return
    // Once for each silence, not once for each night of it.
    if (entry.memory.toldStale !== undefined) return
    entry.memory = { ...entry.memory, toldStale: since }
    this.#ports.onStale(entry.task, since)
    this.#ports.onChange()
  }

  #nextRunOf(entry: Entry, now: number): number {
    if (entry.retry !== undefined) return entry.retry.at
    if (entry.lookAt > 0 && entry.busy === undefined) return entry.nextRun
    const { task } = entry
    const open = (time: number) => whenOpen(task.window, time, task.schedule.timeZone)
    return open(task.schedule.nextRun(now - task.jitterMs) + task.jitterMs)
  }

  #remove(id: string): void {
    const entry = this.#entries.get(id)
    if (entry === undefined) return
    this.#entries.delete(id)
    this.#memories.set(id, entry.memory)
  }

  get #lookEvery(): number {
    return this.#limits.lookEveryMs ?? LOOK_EVERY_MS
  }

  #hasClockJumped(now: number): boolean {
    const gap = now - this.#ports.clock.monotonic()
    const before = this.#clockGap
    this.#clockGap = gap
    return before !== undefined && Math.abs(gap - before) > JUMP_MS
  }

  async #sleep(until: number): Promise<void> {
    const { clock } = this.#ports
    try {
      await clock.sleep(Math.max(0, until - clock.now()), this.#waker.signal)
    } catch {
      // Woken.
    }
  }
}

/**
 * The scheduled time for which a success is overdue: judged from what was
 * promised, not from what ran, so that a job that never starts is noticed.
 */
function staleSince({ task, memory, startedAt }: Entry, now: number): number | undefined {
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
