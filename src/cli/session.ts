import { createInterface } from 'node:readline/promises'

import { type Clock, systemClock } from '../base/clock.js'
import { BackupError, type Warning } from '../base/errors.js'
import type { ConfigRequest, LoadedConfig } from '../config/load.js'
import type { Progress } from '../jobs/progress.js'
import type { Interruption } from './interruption.js'
import { printable } from './printable.js'
import { type ProgressDisplay, openProgress } from './progress.js'
import type { Settings } from './settings.js'
import { writeErr, writeOut } from './streams.js'

/** What the wiring needs of who asks for a job: a command's session has it, and so has each run of the daemon. */
export interface RunContext {
  readonly settings: Settings
  readonly clock: Clock
  readonly signal: AbortSignal
  readonly progress: Progress
  config(): Promise<LoadedConfig>
  warn(warning: Warning): void
  /** Says something to people. */
  note(text: string): void
  /** Rejects with E_REFUSED unless somebody agrees. */
  confirm(question: string): Promise<void>
}

/**
 * One run of one command: its settings, its abort signal, its progress display
 * and its way to the terminal. Disposing it ends the display, so that errors
 * are printed below it.
 */
export class Session implements RunContext, AsyncDisposable {
  readonly settings: Settings
  readonly clock: Clock = systemClock
  readonly signal: AbortSignal
  readonly progress: ProgressDisplay
  readonly #interruption: Interruption
  #config: Promise<LoadedConfig> | undefined

  private constructor(settings: Settings, interruption: Interruption, progress: ProgressDisplay) {
    this.settings = settings
    this.#interruption = interruption
    this.signal = interruption.signal
    this.progress = progress
  }

  static async open(
    settings: Settings,
    run: { readonly interruption: Interruption; readonly title: string },
  ): Promise<Session> {
    const { interruption, title } = run
    const progress = await openProgress(settings, { title, clock: systemClock, stream: process.stderr })
    interruption.onStatus = () => progress.status()
    interruption.onFirst = name => progress.note(`${name}: cleaning up; once more stops at once`)
    return new Session(settings, interruption, progress)
  }

  /** From now on a SIGHUP calls `handler` instead of ending the run. */
  onHangup(handler: () => void): void {
    this.#interruption.onHangup = handler
  }

  /** The configuration, read once and only by who needs it; empty where there is none. Rejects with E_CONFIG. */
  config(): Promise<LoadedConfig> {
    this.#config ??= this.#readConfig()
    return this.#config
  }

  /** What there is to read for config(). */
  get configRequest(): ConfigRequest {
    return { file: this.settings.configFile, overrides: this.settings.overrides, env: process.env }
  }

  async #readConfig(): Promise<LoadedConfig> {
    const { loadConfig } = await import('../config/load.js')
    const loaded = await loadConfig(this.configRequest)
    for (const warning of loaded.warnings) this.warn(warning)
    return loaded
  }

  /** Prints result lines; with `--json` the document is the result and this prints nothing. */
  print(lines: readonly string[]): void {
    if (!this.settings.json) writeOut(lines)
  }

  /** Prints a warning of the command itself; jobs report theirs as progress. */
  warn(warning: Warning): void {
    this.note(`Warning: ${warning.message}  [${warning.code}]`)
  }

  /** Prints what must not be missed on stderr, also with -q; `--json` has it in its document. */
  complain(text: string): void {
    if (!this.settings.json) writeErr([printable(`! ${text}`)])
  }

  /** Prints a line for people on stderr, unless -q. */
  note(text: string): void {
    if (this.settings.verbosity > 0 && !this.settings.json) writeErr([printable(text)])
  }

  /** Rejects with E_REFUSED unless `--yes` was given or a person at the terminal agrees. */
  async confirm(question: string): Promise<void> {
    if (this.settings.yes) return
    if (!process.stdin.isTTY || !process.stderr.isTTY || this.settings.json) {
      throw new BackupError('E_REFUSED', question, { hints: ['add --yes if that is what you want'] })
    }
    const terminal = createInterface({ input: process.stdin, output: process.stderr })
    try {
      const answer = await terminal.question(`${printable(question)} Go on? [y/N] `, { signal: this.signal })
      if (!/^y(es)?$/i.test(answer.trim())) throw new BackupError('E_REFUSED', 'not confirmed: nothing was changed')
    } finally {
      terminal.close()
    }
  }

  /** Ends the display, so that what is printed now stands below it. */
  async endProgress(): Promise<void> {
    await this.progress[Symbol.asyncDispose]()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.endProgress()
  }
}
