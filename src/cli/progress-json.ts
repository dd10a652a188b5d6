import type { ProgressEvent } from '../jobs/progress.js'
import type { ProgressDisplay } from './progress.js'
import type { PlainOptions } from './progress-plain.js'
import { ProgressState, type SubjectState, sumDisks } from './progress-state.js'
import type { Settings } from './settings.js'
import { Ticker } from './ticker.js'

/**
 * One JSON object per line: `{"event":"progress|phase|warning|log|result","ts":...}`.
 * Progress comes once a second and subject, everything else at once.
 */
export class JsonDisplay implements ProgressDisplay {
  readonly #verbosity: number
  readonly #options: PlainOptions
  readonly #state = new ProgressState()
  readonly #changed = new Set<SubjectState>()
  readonly #ticker: Ticker

  constructor(settings: Pick<Settings, 'verbosity'>, options: PlainOptions) {
    this.#verbosity = settings.verbosity
    this.#options = options
    this.#ticker = new Ticker(options.clock, () => this.#flush())
  }

  report(event: ProgressEvent): void {
    const subject = this.#state.apply(event, this.#options.clock.monotonic())
    if (event.kind === 'log') {
      if (this.#verbosity >= (event.level === 'debug' ? 3 : 2)) {
        this.#emit('log', event.subject, { level: event.level, message: event.message })
      }
      return
    }
    if (subject === undefined) return
    switch (event.kind) {
      case 'started':
        this.#emit('phase', event.subject, {
          phase: 'start',
          verb: event.verb,
          ...Object.fromEntries(event.facts ?? []),
        })
        break
      case 'phase':
        this.#emit('phase', event.subject, { phase: event.phase, detail: event.detail })
        break
      case 'disk':
        this.#changed.add(subject)
        break
      case 'warning':
        this.#emit('warning', event.subject, { code: event.warning.code, message: event.warning.message })
        break
      case 'finished':
        this.#flush()
        this.#emit('result', event.subject, {
          status: event.status,
          point: event.point,
          read_bytes: event.readBytes,
          new_bytes: event.newBytes,
          stored_bytes: event.storedBytes,
          error: event.error,
        })
        break
    }
  }

  status(): void {
    for (const subject of this.#state.subjects.values()) this.#emitProgress(subject)
  }

  note(text: string): void {
    this.#emit('log', undefined, { level: 'info', message: text })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#flush()
    await this.#ticker[Symbol.asyncDispose]()
  }

  #flush(): void {
    for (const subject of this.#changed) this.#emitProgress(subject)
    this.#changed.clear()
  }

  #emitProgress(subject: SubjectState): void {
    const sums = sumDisks([subject])
    this.#emit('progress', subject.name, {
      percent: subject.percent,
      total_bytes: sums.totalBytes,
      done_bytes: sums.doneBytes,
      new_bytes: sums.newBytes,
      bytes_per_second: Math.round(subject.rate.bytesPerSecond() ?? 0),
      disks: [...subject.disks.values()].map(disk => ({
        target: disk.target,
        total_bytes: disk.totalBytes,
        done_bytes: disk.doneBytes,
        new_bytes: disk.newBytes,
      })),
    })
  }

  #emit(event: string, subject: string | undefined, fields: object): void {
    const ts = new Date(this.#options.clock.now()).toISOString()
    this.#options.stream.write(`${JSON.stringify({ event, ts, subject, ...fields })}\n`)
  }
}
