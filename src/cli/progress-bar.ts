import cliProgress, { type SingleBar } from 'cli-progress'

import type { ProgressEvent } from '../jobs/progress.js'
import { formatCountdown } from '../model/duration.js'
import { formatRate, formatSize } from '../model/size.js'
import { printable } from './printable.js'
import type { DisplayOptions, ProgressDisplay } from './progress.js'
import {
  type DiskState,
  ProgressState,
  type RateMeter,
  type SubjectState,
  sumDisks,
  type Sums,
} from './progress-state.js'
import type { Settings } from './settings.js'

const REDRAWS_PER_SECOND = 5
const BAR_WIDTH = 26
/** Rows that are never drawn on: the total, the prompt and one to breathe. */
const SPARE_ROWS = 3

/**
 * One line per disk and one for the sum, redrawn in place; lines of finished
 * domains make room. Draws on a terminal only. The cursor comes back whatever
 * ends the process, short of SIGKILL.
 */
export class BarDisplay implements ProgressDisplay {
  readonly #verbosity: number
  readonly #options: DisplayOptions
  readonly #state = new ProgressState()
  readonly #bars: InstanceType<typeof cliProgress.MultiBar>
  readonly #lines = new Map<DiskState, { readonly bar: SingleBar; readonly subject: SubjectState }>()
  readonly #glyphs: Glyphs
  readonly #onExit = () => this.#bars.stop()
  #total: SingleBar | undefined

  constructor(settings: Pick<Settings, 'verbosity'>, options: DisplayOptions) {
    this.#verbosity = settings.verbosity
    this.#options = options
    this.#glyphs = process.env['LANG']?.match(/utf-?8/i) || process.env['LC_ALL']?.match(/utf-?8/i) ? UTF8 : ASCII
    this.#bars = new cliProgress.MultiBar({
      stream: options.stream,
      fps: REDRAWS_PER_SECOND,
      hideCursor: true,
      clearOnComplete: true,
      forceRedraw: true,
      gracefulExit: false,
      format: (_options, _params, payload: Payload) => payload.line(),
    })
    process.on('exit', this.#onExit)
  }

  report(event: ProgressEvent): void {
    const subject = this.#state.apply(event, this.#options.clock.monotonic())
    if (event.kind === 'log') {
      if (this.#verbosity >= (event.level === 'debug' ? 3 : 2)) this.note(event.message)
      return
    }
    if (subject === undefined) return
    if (event.kind === 'disk') this.#draw(subject)
    if (event.kind === 'warning') this.note(`${subject.name} ! ${event.warning.code} ${event.warning.message}`)
    if (event.kind === 'finished') {
      this.#clear(subject)
      if (event.error !== undefined) this.note(`${subject.name} failed [${event.error.code}] ${event.error.message}`)
    }
  }

  status(): void {
    for (const { subject } of this.#lines.values()) this.note(`${subject.name} ${subject.percent} %`)
  }

  note(text: string): void {
    if (this.#total === undefined) this.#options.stream.write(`${printable(text)}\n`)
    else this.#bars.log(`${printable(text)}\n`)
  }

  [Symbol.asyncDispose](): Promise<void> {
    process.off('exit', this.#onExit)
    if (this.#total !== undefined) this.#bars.stop()
    return Promise.resolve()
  }

  /** Gives every disk of `subject` a line, as far as there is room. */
  #draw(subject: SubjectState): void {
    this.#total ??= this.#bars.create(1, 0, { line: () => this.#totalLine() } satisfies Payload)
    for (const disk of subject.disks.values()) {
      const room = (this.#options.stream.rows ?? 24) - SPARE_ROWS
      if (this.#lines.has(disk) || this.#lines.size >= room) continue
      const bar = this.#bars.create(1, 0, { line: () => this.#diskLine(subject, disk) } satisfies Payload)
      this.#lines.set(disk, { bar, subject })
    }
  }

  #clear(subject: SubjectState): void {
    for (const [disk, line] of this.#lines) {
      if (line.subject !== subject) continue
      this.#bars.remove(line.bar)
      this.#lines.delete(disk)
    }
  }

  #diskLine(subject: SubjectState, disk: DiskState): string {
    const name = printable(subject.name).padEnd(this.#nameWidth())
    if (subject.phase !== undefined) return `  ${name}  ${disk.target.padEnd(4)} ${printable(subject.phase)}`
    return `  ${name}  ${disk.target.padEnd(4)} ${this.#numbers(disk, subject.rate)}`
  }

  #totalLine(): string {
    const sums = sumDisks(this.#state.subjects.values())
    const label = 'total'.padEnd(this.#nameWidth() + 6)
    return `  ${label} ${this.#numbers(sums, this.#state.rate)}`
  }

  #numbers(sums: Sums, rate: RateMeter): string {
    const share = sums.totalBytes === 0 ? 0 : Math.min(1, sums.doneBytes / sums.totalBytes)
    const filled = Math.round(share * BAR_WIDTH)
    const bar = this.#glyphs.full.repeat(filled) + this.#glyphs.empty.repeat(BAR_WIDTH - filled)
    const percent = `${Math.min(99, Math.floor(share * 100))} %`
    const speed = rate.bytesPerSecond()
    const seconds = rate.secondsFor(sums.totalBytes - sums.doneBytes)
    return [
      bar,
      percent.padStart(5),
      `${formatSize(sums.doneBytes)}/${formatSize(sums.totalBytes)}`.padStart(17),
      speed === undefined ? '' : formatRate(speed).padStart(11),
      `new ${formatSize(sums.newBytes)}`,
      seconds === undefined ? '' : `ETA ${formatCountdown(seconds * 1000)}`,
    ]
      .filter(part => part !== '')
      .join('  ')
  }

  #nameWidth(): number {
    return Math.max(5, ...[...this.#state.subjects.keys()].map(name => printable(name).length))
  }
}

interface Payload {
  readonly line: () => string
}

interface Glyphs {
  readonly full: string
  readonly empty: string
}

const UTF8: Glyphs = { full: '━', empty: '─' }
const ASCII: Glyphs = { full: '#', empty: '-' }
