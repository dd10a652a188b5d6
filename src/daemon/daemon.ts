import type { Clock } from '../base/clock.js'
import type { DurableFs } from '../base/durable-fs.js'
import { BackupError, type ErrorCode, messageOf } from '../base/errors.js'
import type { RandomSource } from '../base/random.js'
import type { ConfigRequest, Environment, LoadedConfig } from '../config/load.js'
import { DAY_MS, MINUTE_MS, SECOND_MS } from '../model/duration.js'
import { type DaemonFacts, stateLine, type StatusDocument, statusDocument } from './daemon-status.js'
import { type ConfigChange, ConfigFollower } from './follow-config.js'
import { DomainFollower, type Machine } from './follow-domains.js'
import type { History, HistoryQuery } from './history.js'
import { type HistoryEntry, historyDocument, type RunEntry, type StartEntry } from './history-entry.js'
import type { HookPorts } from './hooks.js'
import { accessOf, limitsOf } from './limits.js'
import type { MemoryFile } from './memory-file.js'
import type { StoreFacts } from './metrics.js'
import { NoticeDesk } from './notice-desk.js'
import { makeNotifiers } from './notifiers.js'
import { type KnownDomain, planTasks, type TaskPlan } from './plan-tasks.js'
import { Publisher } from './publisher.js'
import { Scheduler, type SchedulerLimits } from './scheduler.js'
import { describeTask, type RunOrder, type Together } from './task.js'
import { subjectOf, TaskRunner, type TaskRunnerPorts } from './task-runner.js'

export interface DaemonPorts {
  readonly clock: Clock
  readonly fs: DurableFs
  readonly random: RandomSource
  readonly env: Environment
  readonly timeZone: string
  readonly host: string
  readonly cores: number
  readonly version: string
  readonly configRequest: ConfigRequest
  readonly history: History
  readonly memory: MemoryFile
  connect(loaded: LoadedConfig, signal: AbortSignal): Promise<Machine>
  readonly runJob: TaskRunnerPorts['runJob']
  readonly runInGuest: HookPorts['runInGuest']
  exitOf(code: ErrorCode): number
  /** What the targets hold, for the metrics; leaves out what cannot be opened. */
  surveyStores(loaded: LoadedConfig): Promise<readonly StoreFacts[]>
  /** Tells the service manager, in the words of sd_notify(3). */
  tellService(message: string): void
  log(level: 'info' | 'warning' | 'error', message: string): void
  readonly sendmail?: string | undefined
  /** How long what runs may go on after a SIGTERM. */
  readonly drainMs?: number | undefined
  readonly lookEveryMs?: number | undefined
}

const DRAIN_MS = 10 * MINUTE_MS
const TICK_MS = 15 * SECOND_MS
/** The scheduler looks every minute; one that has not looked for this long is stuck. */
const STUCK_MS = 5 * MINUTE_MS
const LAST_WORDS_MS = 15 * SECOND_MS
/** What is known of jobs that are gone is kept for this long: a domain may come back. */
const REMEMBER_MS = 400 * DAY_MS
const NO_PLAN: TaskPlan = { tasks: [], problems: [], absent: [] }

/**
 * The daemon: follows configuration and domains, plans tasks from both, has
 * them run when they are due, and keeps and tells what came of it.
 */
export class Daemon {
  readonly #ports: DaemonPorts
  readonly #scheduler: Scheduler
  readonly #runner: TaskRunner
  readonly #desk: NoticeDesk
  readonly #config: ConfigFollower
  readonly #publisher: Publisher
  readonly #reloads: ((change: ConfigChange) => void)[] = []
  #loaded: LoadedConfig | undefined
  #problems: readonly string[] = []
  #plan: TaskPlan = NO_PLAN
  #domains: readonly KnownDomain[] = []
  #hasDomains = false
  #machine: Machine | undefined
  #follower: { readonly access: string; readonly stop: () => Promise<void> } | undefined
  #started = 0

  constructor(ports: DaemonPorts) {
    const { clock, host } = ports
    this.#ports = ports
    this.#config = new ConfigFollower(ports.configRequest, clock)
    this.#publisher = new Publisher({
      clock,
      surveyStores: loaded => ports.surveyStores(loaded),
      facts: () => ({
        version: ports.version,
        views: this.#scheduler.views(),
        libvirtConnected: this.#machine !== undefined,
        configOk: this.#problems.length === 0,
      }),
      onTrouble: message => this.#note('warning', message),
    })
    this.#desk = new NoticeDesk({
      clock,
      host,
      onWarnings: warnings => warnings.forEach(({ code, message }) => this.#note('warning', `${message} [${code}]`)),
    })
    this.#scheduler = new Scheduler(
      {
        clock,
        run: (orders, signal) => this.#run(orders, signal),
        onMissed: (task, { times, reason, isMadeUp }) => {
          const what = `${describeTask(task)}: ${times.length === 1 ? 'one run was' : `${times.length} runs were`} missed`
          this.#note(isMadeUp ? 'info' : 'warning', `${what} (${reason})`)
          void this.#record({ kind: 'missed', ...subjectOf(task), at: clock.now(), times, reason, isMadeUp })
        },
        onStale: (task, since) => {
          const missed = {
            kind: 'missed',
            ...subjectOf(task),
            at: clock.now(),
            times: [since],
            reason: 'stale',
            isMadeUp: false,
          } as const
          this.#note(
            'error',
            `${describeTask(task)} is overdue: no success since the run of ${new Date(since).toISOString()}`,
          )
          void this.#record(missed)
          this.#desk.stale(missed)
        },
        // A prune goes by the metadata of domains: without them it would delete by other rules.
        canRun: task => task.verb === 'gc' || task.verb === 'verify' || this.#machine !== undefined,
        onChange: () => this.#save(),
        newRunId: () => Buffer.from(ports.random(8)).toString('hex'),
      },
      this.#limits(),
    )
    this.#runner = new TaskRunner({
      clock,
      runJob: ports.runJob,
      runInGuest: ports.runInGuest,
      exitOf: code => ports.exitOf(code),
      loaded: () => this.#needLoaded(),
      isBusy: isMeant => this.#scheduler.isBusy(isMeant),
      record: entry => this.#record(entry),
    })
  }

  /**
   * Runs until `signal` aborts, then drains. Rejects with E_CONFIG where the
   * configuration cannot be used from the start.
   */
  async run(signal: AbortSignal): Promise<void> {
    const { clock, memory, history } = this.#ports
    this.#started = clock.now()
    this.#scheduler.restore(await memory.read())
    await this.#mendHistory()
    await history.tidy()
    const ending = new AbortController()
    signal.addEventListener('abort', () => ending.abort(), { once: true, signal: ending.signal })
    if (signal.aborted) ending.abort()
    const configured = this.#followConfig(ending.signal)
    // One that cannot be used from the start ends the daemon.
    configured.catch(() => ending.abort())
    const scheduled = this.#scheduler.run(ending.signal)
    const ticking = this.#tickUntil(ending.signal)
    try {
      await configured
    } finally {
      ending.abort()
      await scheduled
      await ticking
      await this.#end()
    }
  }

  /** Reads the configuration again; resolves when that is in use, or is known to be broken. */
  async reload(): Promise<{ readonly ok: boolean; readonly problems: readonly string[] }> {
    this.#ports.tellService('RELOADING=1')
    const change = new Promise<ConfigChange>(resolve => this.#reloads.push(resolve))
    this.#config.reload()
    const found = await change
    this.#ports.tellService('READY=1')
    return found.kind === 'loaded' ? { ok: true, problems: [] } : { ok: false, problems: found.problems }
  }

  runNow(ids: readonly string[]): readonly string[] {
    return this.#scheduler.runNow(ids)
  }

  status(): StatusDocument {
    const { clock, version } = this.#ports
    const facts: DaemonFacts = {
      version,
      started: this.#started,
      now: clock.now(),
      uri: this.#machine?.uri,
      isConnected: this.#machine !== undefined,
      configFiles: this.#loaded?.files ?? [],
      configProblems: this.#problems,
      plan: this.#plan,
      views: this.#scheduler.views(),
      domains: this.#domains.length,
    }
    return statusDocument(facts)
  }

  async history(query: HistoryQuery): Promise<readonly object[]> {
    return (await this.#ports.history.read(query)).map(historyDocument)
  }

  metrics(): string {
    return this.#publisher.metrics()
  }

  /** Those that libvirt had when it was last asked. */
  get domains(): readonly KnownDomain[] {
    return this.#domains
  }

  // Following.

  async #followConfig(signal: AbortSignal): Promise<void> {
    for await (const change of this.#config.changes(signal)) {
      await this.#apply(change, signal)
      for (const resolve of this.#reloads.splice(0)) resolve(change)
    }
  }

  async #apply(change: ConfigChange, signal: AbortSignal): Promise<void> {
    if (change.kind === 'broken') {
      if (this.#loaded === undefined) {
        throw new BackupError('E_CONFIG', `the configuration cannot be used: ${change.problems.join('; ')}`, {
          hints: ['virtvault config validate shows it again'],
        })
      }
      if (change.problems.join('\n') !== this.#problems.join('\n')) {
        this.#note('error', `the new configuration cannot be used, the old one goes on: ${change.problems.join('; ')}`)
      }
      this.#problems = change.problems
      return
    }
    const { loaded } = change
    const isFirst = this.#loaded === undefined
    this.#loaded = loaded
    this.#problems = []
    for (const { message } of loaded.warnings) this.#ports.log('warning', message)
    if (!isFirst) this.#note('info', 'the configuration was read again')
    const { env, host, sendmail } = this.#ports
    this.#desk.setNotifiers(makeNotifiers(loaded.config.notify, { env, host, sendmail }), loaded.config.notify)
    this.#scheduler.setLimits(this.#limits())
    this.#replan()
    const access = accessOf(loaded.config)
    if (this.#follower?.access !== access) await this.#followMachine(access, signal)
    if (isFirst) this.#ports.tellService('READY=1')
    this.#tellState()
  }

  /** Leaves the libvirt that was followed, and follows the one of the configuration. */
  async #followMachine(access: string, signal: AbortSignal): Promise<void> {
    await this.#follower?.stop()
    if (signal.aborted) return
    const ending = new AbortController()
    const follower = new DomainFollower({
      clock: this.#ports.clock,
      connect: until => this.#ports.connect(this.#needLoaded(), until),
      onDomains: domains => {
        this.#domains = domains
        this.#hasDomains = true
        this.#replan()
      },
      onConnected: machine => {
        this.#machine = machine
        this.#ports.log('info', `${this.#domains.length} domains, ${this.#stateLine()}`)
        this.#scheduler.wake()
        this.#tellState()
      },
      onLost: () => {
        this.#machine = undefined
        this.#tellState()
      },
      note: (level, message) => this.#note(level, message),
    })
    const running = follower.run(ending.signal).catch((error: unknown) => {
      this.#note('error', `following libvirt has ended: ${messageOf(error)}`)
    })
    const stop = async () => {
      ending.abort()
      await running
      this.#machine = undefined
    }
    this.#follower = { access, stop }
  }

  #replan(): void {
    const { env, timeZone } = this.#ports
    const before = this.#plan
    this.#plan = planTasks(this.#needLoaded(), this.#domains, { env, timeZone })
    for (const problem of this.#plan.problems) {
      if (!before.problems.includes(problem)) this.#note('warning', problem)
    }
    // Before the domains are known, the tasks of an earlier life would seem to be gone.
    if (this.#hasDomains) this.#scheduler.setTasks(this.#plan.tasks)
  }

  #limits(): SchedulerLimits {
    return limitsOf(this.#loaded?.config ?? {}, this.#ports)
  }

  // Running.

  async #run(orders: Together<RunOrder>, signal: AbortSignal): Promise<void> {
    for (const { task, trigger, attempt } of orders) {
      this.#desk.began()
      this.#ports.log('info', `${describeTask(task)}: begins (${trigger}, attempt ${attempt})`)
    }
    this.#tellState()
    await this.#runner.run(orders, signal)
  }

  async #record(entry: HistoryEntry): Promise<void> {
    try {
      await this.#ports.history.append(entry)
    } catch (error) {
      // The backup is what matters; that its trace is lost must be seen all the same.
      this.#ports.log('error', `the history cannot be written: ${messageOf(error)}`)
    }
    if (entry.kind === 'run') this.#ended(entry)
  }

  #ended(run: RunEntry): void {
    const { error, status, retryAt } = run
    const what = run.domain === undefined ? `${run.verb} of ${run.target}` : `${run.domain.name} to ${run.target}`
    const why = error === undefined ? '' : `: ${error.message} [${error.code}]`
    const again = retryAt === undefined ? '' : `; tried again at ${new Date(retryAt).toISOString()}`
    this.#ports.log(
      status === 'failed' ? 'error' : status === 'partial' ? 'warning' : 'info',
      `${what}: ${status}${why}${again}`,
    )
    this.#publisher.ran(run)
    const isLast = retryAt === undefined && !this.#scheduler.isBusy(task => task.id !== run.task)
    this.#desk.ended(run, isLast)
    if (isLast) this.#publisher.surveySoon()
  }

  /** Runs that a dead daemon left without an end: failed, and told as such. */
  async #mendHistory(): Promise<void> {
    const { history, clock } = this.#ports
    for (const entry of await history.read()) if (entry.kind === 'run') this.#publisher.ran(entry)
    for (const { kind: _, ...start } of await history.died()) {
      const error = { code: 'E_INTERRUPTED', message: 'the process that ran it died' } as const
      await this.#record({
        ...start,
        kind: 'run',
        ended: clock.now(),
        status: 'failed',
        error,
        warnings: [],
        point: undefined,
        figures: {},
        log: [],
        retryAt: undefined,
      } satisfies RunEntry & Omit<StartEntry, 'kind'>)
    }
  }

  // Around it.

  async #tickUntil(signal: AbortSignal): Promise<void> {
    const { clock } = this.#ports
    while (!signal.aborted) {
      if (clock.monotonic() - this.#scheduler.lastLook < STUCK_MS) this.#ports.tellService('WATCHDOG=1')
      this.#desk.tick()
      this.#tellState()
      if (this.#loaded !== undefined) await this.#publisher.publish(this.#loaded)
      await clock.sleep(TICK_MS, signal).catch(() => undefined)
    }
  }

  async #end(): Promise<void> {
    const { drainMs = DRAIN_MS, memory, clock } = this.#ports
    this.#ports.tellService('STOPPING=1')
    this.#ports.tellService(`EXTEND_TIMEOUT_USEC=${(drainMs + MINUTE_MS) * 1000}`)
    await this.#scheduler.drain(drainMs)
    await this.#follower?.stop()
    await this.#desk.close(LAST_WORDS_MS)
    this.#scheduler.forget(clock.now() - REMEMBER_MS)
    this.#save()
    await memory.settled()
    if (this.#loaded !== undefined) await this.#publisher.publish(this.#loaded)
    await this.#publisher.settled()
  }

  #tellState(): void {
    this.#ports.tellService(`STATUS=${this.#stateLine()}`)
  }

  #stateLine(): string {
    const problems = this.#problems.length
    return stateLine(this.#scheduler.views(), { isConnected: this.#machine !== undefined, problems })
  }

  #save(): void {
    const failed = (error: unknown) => this.#ports.log('error', `what ran cannot be noted: ${messageOf(error)}`)
    this.#ports.memory.save(() => this.#scheduler.memories(), failed)
  }

  #note(level: 'info' | 'warning' | 'error', message: string): void {
    this.#ports.log(level, message)
    void this.#record({ kind: 'event', at: this.#ports.clock.now(), level, message })
  }

  #needLoaded(): LoadedConfig {
    if (this.#loaded === undefined) throw new Error('bug: used before the configuration was read')
    return this.#loaded
  }
}
