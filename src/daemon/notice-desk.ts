import type { Clock } from '../base/clock.js'
import type { Warning } from '../base/errors.js'
import { DAY_MS, MINUTE_MS, WEEK_MS } from '../model/duration.js'
import type { RawConfig } from '../config/schema.js'
import type { MissedEntry, RunEntry } from './history-entry.js'
import { type Notice, noticeOfRuns, noticeOfStale } from './notice.js'
import { type Notifier, tellAll, tellStart } from './notifiers.js'

export interface NoticeDeskPorts {
  readonly clock: Clock
  readonly host: string
  /** What could not be told. */
  onWarnings(warnings: readonly Warning[]): void
}

/** What went wrong is told after this, also while other runs still go. */
const LONGEST_SILENCE_MS = 30 * MINUTE_MS
const DIGEST_MS = { daily: DAY_MS, weekly: WEEK_MS } as const
/** A digest that nobody can deliver does not grow for ever. */
const MAX_DIGEST = 500

/**
 * Decides when people are told: once for the runs that belong together, when
 * the last of them has ended, and not for an attempt that is followed by another.
 */
export class NoticeDesk {
  readonly #ports: NoticeDeskPorts
  #notifiers: readonly Notifier[] = []
  #digestMs: number | undefined
  #runs: RunEntry[] = []
  #isStarted = false
  #badSince: number | undefined
  #digest: Notice[] = []
  #digestSince: number | undefined
  readonly #telling = new Set<Promise<void>>()
  readonly #ending = new AbortController()

  constructor(ports: NoticeDeskPorts) {
    this.#ports = ports
  }

  setNotifiers(notifiers: readonly Notifier[], notify: RawConfig['notify']): void {
    this.#notifiers = notifiers
    const digest = notify?.mail?.digest
    this.#digestMs = digest === undefined ? undefined : DIGEST_MS[digest]
  }

  began(): void {
    if (this.#isStarted) return
    this.#isStarted = true
    this.#tell(signal => tellStart(this.#notifiers, signal))
  }

  /** `isLast` where nothing else runs or is to be tried again. */
  ended(run: RunEntry, isLast: boolean): void {
    if (run.retryAt === undefined) {
      this.#runs.push(run)
      const isBad = run.status === 'failed' || run.status === 'partial'
      if (isBad) this.#badSince ??= this.#ports.clock.now()
    }
    if (isLast) this.#flush()
    else this.tick()
  }

  stale(missed: MissedEntry): void {
    this.#send(noticeOfStale(missed, this.#ports.host))
  }

  /** About once a minute. */
  tick(): void {
    const now = this.#ports.clock.now()
    if (this.#badSince !== undefined && now - this.#badSince > LONGEST_SILENCE_MS) this.#flush()
    if (this.#digestSince !== undefined && now - this.#digestSince >= (this.#digestMs ?? 0)) this.#sendDigest()
  }

  /** Tells what is still to be told, and waits for it at most `limitMs`. */
  async close(limitMs: number): Promise<void> {
    this.#flush()
    this.#sendDigest()
    const { clock } = this.#ports
    const timer = new AbortController()
    const late = clock.sleep(limitMs, timer.signal).then(
      () => this.#ending.abort(),
      () => undefined,
    )
    await Promise.allSettled([...this.#telling])
    timer.abort()
    await late
  }

  #flush(): void {
    const runs = this.#runs
    this.#runs = []
    this.#badSince = undefined
    this.#isStarted = false
    if (runs.some(({ status }) => status !== 'skipped')) this.#send(noticeOfRuns(runs, this.#ports.host))
  }

  #send(notice: Notice): void {
    const isMail = (one: Notifier) => one.name === 'mail'
    if (this.#digestMs !== undefined && this.#notifiers.some(one => isMail(one) && one.wants(notice.status))) {
      this.#digestSince ??= this.#ports.clock.now()
      this.#digest = [...this.#digest, notice].slice(-MAX_DIGEST)
    }
    const now = this.#notifiers.filter(one => this.#digestMs === undefined || !isMail(one))
    this.#tell(signal => tellAll(now, notice, signal))
  }

  #sendDigest(): void {
    const notices = this.#digest
    this.#digest = []
    this.#digestSince = undefined
    const [worst] = notices.toSorted((a, b) => SEVERITY.indexOf(a.status) - SEVERITY.indexOf(b.status))
    if (worst === undefined) return
    const whole: Notice = {
      status: worst.status,
      title: `virtvault on ${this.#ports.host}: ${notices.length} ${notices.length === 1 ? 'message' : 'messages'}, worst ${worst.status}`,
      lines: notices.flatMap(({ title, lines }) => [title, ...lines.map(line => `  ${line}`), '']),
      entries: notices.flatMap(({ entries }) => entries),
    }
    this.#tell(signal =>
      tellAll(
        this.#notifiers.filter(one => one.name === 'mail'),
        whole,
        signal,
      ),
    )
  }

  #tell(tell: (signal: AbortSignal) => Promise<readonly Warning[]>): void {
    const told = tell(this.#ending.signal).then(warnings => {
      this.#telling.delete(told)
      if (warnings.length > 0) this.#ports.onWarnings(warnings)
    })
    this.#telling.add(told)
  }
}

const SEVERITY: readonly Notice['status'][] = ['failed', 'stale', 'partial', 'success', 'skipped', 'test']
