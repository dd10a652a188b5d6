import type { Clock } from '../base/clock.js'
import { MINUTE_MS, SECOND_MS } from '../model/duration.js'
import { decideRun, ON_TIME_MS, whenOpen } from '../model/schedule.js'
import { staleSince } from './overdue.js'
import { retryDelay, type RetryPolicy } from './retry.js'
import { type RunLimits, RunQueues } from './run-queues.js'
import type { RunOrder, RunOutcome, Task, Together, Trigger } from './task.js'
import type { TaskMemory } from './task-memory.js'

/**
 * Starts tasks when they are due. Knows times, attempts and turns; what a task
 * does is its runner's business.
 */

export type MissReason = 'down' | 'overrun'

export interface SchedulerPorts {
  readonly clock: Clock
  /** Runs one attempt of these, as one run, and settles each. Must not reject: a failure is an outcome. */
  run(orders: Together<RunOrder>, signal: AbortSignal): Promise<void>
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

const LOOK_EVERY_MS = MINUTE_MS
/** Of a past time that lies in the future; see decideRun(). */
const CLOCK_TOLERANCE_MS = 5 * MINUTE_MS
/** Wall and monotonic clock may drift apart by this much between two looks. */
const JUMP_MS = 30_000

interface Entry {
  task: Task
  memory: TaskMemory
  /** settled: how it ended is known, and still to be told. */
  busy: 'queued' | 'running' | 'settled' | undefined
  startedAt: number | undefined
  /** The next attempt of a run that failed. */
  retry: { readonly at: number; readonly attempt: number; readonly due: number | undefined } | undefined
  /** Not looked at before this wall-clock time. */
  lookAt: number
  nextRun: number
  /** Left the configuration while it ran. */
  isGone: boolean
}

/** Why a task is begun. */
interface Occasion {
  readonly trigger: Trigger
  readonly due: number | undefined
  readonly attempt: number
}

interface Begun {
  readonly entry: Entry
  readonly occasion: Occasion
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
    const occasion: Occasion = { trigger: 'manual', due: undefined, attempt: 1 }
    const free = ids.flatMap(id => this.#entries.get(id) ?? []).filter(({ busy }) => busy === undefined)
    this.#beginAll(free.map(entry => ({ entry, occasion })))
    return free.map(({ task }) => task.id)
  }

  /** Whether a task that `isMeant` takes runs, waits for its turn, or is to be tried again. */
  isBusy(isMeant: (task: Task) => boolean): boolean {
    return [...this.#entries.values()].some(
      ({ task, busy, retry }) => (busy === 'queued' || busy === 'running' || retry !== undefined) && isMeant(task),
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
      state: stateOf(entry),
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
    const due: Begun[] = []
    let next = now + this.#lookEvery
    for (const entry of this.#entries.values()) {
      this.#tellStale(entry, now)
      if (entry.busy !== undefined || entry.task.paused || entry.isGone) continue
      if (entry.lookAt <= now) {
        const occasion = this.#decide(entry, now)
        if (occasion !== undefined) due.push({ entry, occasion })
      }
      next = Math.min(next, Math.max(now + 1, entry.lookAt))
    }
    // p-queue keeps the order of equals: the longest without success goes first.
    due.sort(
      (a, b) =>
        b.entry.task.priority - a.entry.task.priority ||
        (a.entry.memory.lastSuccess ?? 0) - (b.entry.memory.lastSuccess ?? 0),
    )
    this.#beginAll(due)
    return next
  }

  #decide(entry: Entry, now: number): Occasion | undefined {
    const { task, retry } = entry
    if (!this.#ports.canRun(task)) {
      entry.lookAt = now + this.#lookEvery
      return undefined
    }
    if (retry !== undefined && retry.at <= now) return { trigger: 'retry', due: retry.due, attempt: retry.attempt }
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
    return { trigger: isLate ? 'catch-up' : 'schedule', due, attempt: 1 }
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

  /** As few runs as possible: the targets of a job that are due together are one. */
  #beginAll(begun: readonly Begun[]): void {
    const runs = new Map<string, [Begun, ...Begun[]]>()
    for (const one of begun) {
      const { task } = one.entry
      const key = task.verb === 'pull' ? task.together : task.id
      const run = runs.get(key)
      if (run === undefined) runs.set(key, [one])
      else run.push(one)
    }
    for (const run of runs.values()) this.#begin(run)
  }

  #begin(run: Together<Begun>): void {
    for (const { entry, occasion } of run) {
      entry.busy = 'queued'
      entry.retry = undefined
      if (occasion.due !== undefined) entry.memory = { ...entry.memory, accountedUntil: occasion.due }
    }
    const work = this.#queues
      .run(
        mapTogether(run, ({ entry }) => entry.task),
        () => this.#attempt(run),
      )
      .finally(() => {
        this.#running.delete(work)
        for (const { entry } of run) {
          entry.busy = undefined
          entry.startedAt = undefined
          entry.lookAt = 0
          if (entry.isGone) this.#remove(entry.task.id)
        }
        this.wake()
      })
    this.#running.add(work)
  }

  async #attempt(run: Together<Begun>): Promise<void> {
    const { clock } = this.#ports
    const started = clock.now()
    const orders = run.flatMap(({ entry, occasion }) => {
      if (this.#isEnding || entry.isGone) {
        // Its time is still owed: the next life makes up for it.
        if (occasion.due !== undefined) entry.memory = { ...entry.memory, accountedUntil: occasion.due - 1 }
        return []
      }
      entry.busy = 'running'
      entry.startedAt = started
      const id = this.#ports.newRunId()
      const settle = (outcome: RunOutcome) => this.#settle(entry, { id, started, ...occasion }, outcome)
      return [{ id, task: entry.task, ...occasion, started, settle }]
    })
    const [first, ...others] = orders
    if (first === undefined) return
    await this.#ports.run([first, ...others], this.#runs.signal)
    this.#ports.onChange()
  }

  #settle(entry: Entry, run: Occasion & Pick<RunOrder, 'id' | 'started'>, outcome: RunOutcome): number | undefined {
    const { id, started, due, attempt } = run
    const { status } = outcome
    const now = this.#ports.clock.now()
    const good = status === 'skipped' ? { lastSkip: started } : { lastSuccess: started }
    const last = { id, started, ended: now, due, status, attempt }
    entry.memory = { ...entry.memory, last, ...(status === 'failed' ? {} : { ...good, toldStale: undefined }) }
    entry.busy = 'settled'
    const delay = this.#isEnding || entry.isGone ? undefined : retryDelay(this.#limits.retry, outcome, attempt)
    if (delay === undefined) return undefined
    // Whole seconds: what failed together is tried again together.
    const at = Math.ceil((now + delay) / SECOND_MS) * SECOND_MS
    entry.retry = { at: whenOpen(entry.task.window, at, entry.task.schedule.timeZone), attempt: attempt + 1, due }
    return entry.retry.at
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

function stateOf({ busy, task }: Entry): TaskView['state'] {
  if (busy === 'settled') return 'running'
  return busy ?? (task.paused ? 'paused' : 'idle')
}

function mapTogether<T, U>([first, ...others]: Together<T>, change: (one: T) => U): Together<U> {
  return [change(first), ...others.map(change)]
}
