import type { Clock } from '../base/clock.js'
import type { Progress } from '../jobs/progress.js'
import type { Settings } from './settings.js'

/** A Progress that shows what it gets on stderr. Disposing it ends the display and leaves the terminal as it was. */
export interface ProgressDisplay extends Progress, AsyncDisposable {
  /** Shows at once how far everything is; SIGUSR1. */
  status(): void
  /** Shows a line for people beside the progress. */
  note(text: string): void
}

/** What a display writes to. */
export interface ProgressStream {
  write(text: string): boolean
  readonly rows?: number | undefined
  readonly columns?: number | undefined
}

export interface DisplayOptions {
  /** The command, as typed. */
  readonly title: string
  readonly clock: Clock
  readonly stream: NodeJS.WriteStream
}

/** Opens the display that `--progress` chose. */
export async function openProgress(settings: Settings, options: DisplayOptions): Promise<ProgressDisplay> {
  switch (settings.progress) {
    case 'bar':
      return new (await import('./progress-bar.js')).BarDisplay(settings, options)
    case 'plain':
      return new (await import('./progress-plain.js')).PlainDisplay(settings, options)
    case 'json':
      return new (await import('./progress-json.js')).JsonDisplay(settings, options)
    case 'none':
      return new (await import('./progress-plain.js')).SilentDisplay(options)
  }
}
