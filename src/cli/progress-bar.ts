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
/** Of a terminal that does not say. */
const ROWS = 24

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
  /** Bar i draws row i of #rows(), so rows move up when the ones above them are done. */
  readonly #slots: SingleBar[] = []
  readonly #glyphs: Glyphs
  readonly #onExit = () => this.#bars.stop()

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
    if (event.kind === 'disk') this.#makeRoom()
    if (event.kind === 'warning') this.note(`${subject.name} ! ${event.warning.code} ${event.warning.message}`)
    if (event.kind === 'finished' && event.error !== undefined) {
      this.note(`${subject.name} failed [${event.error.code}] ${event.error.message}`)
    }
  }

  status(): void {
    for (const subject of this.#running()) this.note(`${subject.name} ${subject.percent} %`)
  }

  note(text: string): void {
    if (this.#slots.length === 0) this.#options.stream.write(`${printable(text)}\n`)
    else this.#bars.log(`${printable(text)}\n`)
  }

  [Symbol.asyncDispose](): Promise<void> {
    process.off('exit', this.#onExit)
    if (this.#slots.length > 0) this.#bars.stop()
    return Promise.resolve()
  }

  #makeRoom(): void {
    const wanted = this.#rows().length
    while (this.#slots.length < wanted) {
      const index = this.#slots.length
      const payload: Payload = { line: () => this.#rows()[index] ?? '' }
      this.#slots.push(this.#bars.create(1, 0, payload))
    }
  }

  /** The disks under way, as many as there is room for, and the sum of everything. */
  #rows(): readonly string[] {
    // 0 where the terminal does not know.
    const height = this.#options.stream.rows || ROWS
    const room = Math.max(0, height - SPARE_ROWS)
    const disks = this.#running().flatMap(subject =>
      [...subject.disks.values()].map(disk => () => this.#diskLine(subject, disk)),
    )
    return [...disks.slice(0, room).map(line => line()), this.#totalLine()]
  }

  #running(): SubjectState[] {
    return [...this.#state.subjects.values()].filter(({ finished }) => finished === undefined)
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
