import { formatSize } from '../model/size.js'
import type { Progress, ProgressEvent } from '../jobs/progress.js'

/** A run that says more is not worth more. */
const MAX_LINES = 200
const MAX_LINE_LENGTH = 500

/** Keeps what a job tells, as lines for the history; transfers only by their sums. */
export class RunLog implements Progress {
  readonly #lines: string[] = []
  readonly #done = new Map<string, { readonly done: number; readonly total: number }>()
  #dropped = 0

  report(event: ProgressEvent): void {
    switch (event.kind) {
      case 'started':
        this.add(['start', ...(event.facts ?? []).map(([name, value]) => `${name}=${value}`)].join(' '))
        break
      case 'phase':
        this.add(event.detail === undefined ? event.phase : `${event.phase}: ${event.detail}`)
        break
      case 'warning':
        this.add(`! ${event.warning.code} ${event.warning.message}`)
        break
      case 'log':
        if (event.level === 'info') this.add(event.message)
        break
      case 'disk':
        this.#done.set(event.target, { done: event.doneBytes, total: event.totalBytes })
        break
      case 'finished':
        for (const [target, { done, total }] of this.#done) {
          this.add(`${target}: ${formatSize(done)} of ${formatSize(total)}`)
        }
        break
    }
  }

  add(line: string): void {
    if (this.#lines.length >= MAX_LINES) this.#dropped++
    else this.#lines.push(line.length > MAX_LINE_LENGTH ? `${line.slice(0, MAX_LINE_LENGTH)}…` : line)
  }

  lines(): readonly string[] {
    return this.#dropped === 0 ? [...this.#lines] : [...this.#lines, `(${this.#dropped} more lines)`]
  }
}
