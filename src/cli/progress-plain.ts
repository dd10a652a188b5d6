import type { Clock } from '../base/clock.js'
import type { FinishedEvent, ProgressEvent } from '../jobs/progress.js'
import { formatCountdown, formatDuration } from '../model/duration.js'
import { shortId } from '../model/point-ref.js'
import { formatRate, formatSize } from '../model/size.js'
import { formatLogTime } from './output.js'
import { printable } from './printable.js'
import type { ProgressDisplay, ProgressStream } from './progress.js'
import { ProgressState, sumDisks, type SubjectState } from './progress-state.js'
import type { Settings } from './settings.js'
import { Ticker } from './ticker.js'

const FIRST_LINE_MS = 4000
const QUIET_LINE_MS = 60_000
const STEP_PERCENT = 10

export interface PlainOptions {
  readonly title: string
  readonly clock: Clock
  readonly stream: ProgressStream
}

/**
 * One line per 10 % or per minute and domain, and one for every start, warning
 * and end. The first comes within 5 s. No control characters: made for logs.
 */
export class PlainDisplay implements ProgressDisplay {
  readonly #verbosity: number
  readonly #options: PlainOptions
  readonly #state = new ProgressState()
  readonly #lines = new Map<SubjectState, { step: number; ms: number }>()
  readonly #ticker: Ticker
  readonly #openedMs: number
  #isSilentSoFar = true

  constructor(settings: Pick<Settings, 'verbosity'>, options: PlainOptions) {
    this.#verbosity = settings.verbosity
    this.#options = options
    this.#openedMs = options.clock.monotonic()
    this.#ticker = new Ticker(options.clock, () => this.#tick())
  }

  report(event: ProgressEvent): void {
    const now = this.#options.clock.monotonic()
    const subject = this.#state.apply(event, now)
    if (event.kind === 'log') {
      if (this.#verbosity >= (event.level === 'debug' ? 3 : 2)) this.#write(event.subject, event.message)
      return
    }
    if (subject === undefined) return
    switch (event.kind) {
      case 'started': {
        const facts = (event.facts ?? []).map(([name, value]) => `${name}=${value}`)
        this.#line(subject, ['start', ...facts].join(' '))
        break
      }
      case 'phase':
        if (this.#verbosity >= 2) {
          this.#line(subject, event.detail === undefined ? event.phase : `${event.phase}: ${event.detail}`)
        }
        break
      case 'disk':
        if (Math.floor(subject.percent / STEP_PERCENT) > this.#mark(subject).step) this.#line(subject, how(subject))
        break
      case 'warning':
        this.#line(subject, `! ${event.warning.code} ${event.warning.message}`)
        break
      case 'finished':
        this.#line(subject, describeEnd(event, now - subject.startedMs))
        break
    }
  }

  status(): void {
    const running = [...this.#state.subjects.values()].filter(subject => subject.finished === undefined)
    if (running.length === 0) this.#write(undefined, `${this.#options.title} is waiting`)
    for (const subject of running) this.#line(subject, how(subject))
  }

  note(text: string): void {
    this.#write(undefined, text)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#ticker[Symbol.asyncDispose]()
  }

  #tick(): void {
    const now = this.#options.clock.monotonic()
    if (this.#isSilentSoFar && now - this.#openedMs >= FIRST_LINE_MS) {
      this.#write(undefined, `${this.#options.title} is preparing`)
    }
    for (const subject of this.#state.subjects.values()) {
      if (subject.finished === undefined && now - this.#mark(subject).ms >= QUIET_LINE_MS) {
        this.#line(subject, how(subject))
      }
    }
  }

  #mark(subject: SubjectState): { step: number; ms: number } {
    return this.#lines.get(subject) ?? { step: 0, ms: subject.startedMs }
  }

  #line(subject: SubjectState, text: string): void {
    const step = Math.floor(subject.percent / STEP_PERCENT)
    this.#lines.set(subject, { step, ms: this.#options.clock.monotonic() })
    this.#write(subject.name, text)
  }

  #write(subject: string | undefined, text: string): void {
    this.#isSilentSoFar = false
    const words = [formatLogTime(this.#options.clock.now()), ...(subject === undefined ? [] : [subject]), text]
    this.#options.stream.write(`${printable(words.join(' '))}\n`)
  }
}

/** `--progress none`: nothing, unless asked for the status. */
export class SilentDisplay implements ProgressDisplay {
  readonly #options: PlainOptions
  readonly #state = new ProgressState()

  constructor(options: PlainOptions) {
    this.#options = options
  }

  report(event: ProgressEvent): void {
    this.#state.apply(event, this.#options.clock.monotonic())
  }

  status(): void {
    for (const subject of this.#state.subjects.values()) {
      this.#options.stream.write(`${printable(`${subject.name} ${how(subject)}`)}\n`)
    }
  }

  note(): void {
    // Quiet is what was asked for.
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // Nothing runs.
  }
}

/** `40% 3.2GiB/7.9GiB 109MiB/s new=402MiB eta=0:44`, or the phase where nothing is transferred. */
function how(subject: SubjectState): string {
  if (subject.finished !== undefined) return subject.finished.status
  const sums = sumDisks([subject])
  if (subject.phase !== undefined || sums.totalBytes === 0) return subject.phase ?? 'preparing'
  const rate = subject.rate.bytesPerSecond()
  const seconds = subject.rate.secondsFor(sums.totalBytes - sums.doneBytes)
  return [
    `${subject.percent}%`,
    `${tight(sums.doneBytes)}/${tight(sums.totalBytes)}`,
    ...(rate === undefined ? [] : [formatRate(rate, '')]),
    `new=${tight(sums.newBytes)}`,
    ...(seconds === undefined ? [] : [`eta=${formatCountdown(seconds * 1000)}`]),
  ].join(' ')
}

function describeEnd(event: FinishedEvent, ms: number): string {
  if (event.status === 'failed') {
    return event.error === undefined ? 'failed' : `failed [${event.error.code}] ${event.error.message}`
  }
  const numbers = [
    ...(event.readBytes === undefined ? [] : [`${tight(event.readBytes)} read`]),
    ...(event.newBytes === undefined ? [] : [`${tight(event.newBytes)} new`]),
    ...(event.storedBytes === undefined ? [] : [`${tight(event.storedBytes)} stored`]),
    formatDuration(ms),
  ].join(', ')
  const word = event.status === 'success' ? 'done' : event.status
  return `${word} ${numbers}${event.point === undefined ? '' : ` point=@${shortId(event.point)}`}`
}

function tight(bytes: number): string {
  return formatSize(bytes, '')
}
