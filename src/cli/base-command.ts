import { Command } from '@oclif/core/command'

import { errorDocument, renderError, reportError } from './error-report.js'
import { GLOBAL_FLAGS } from './global-flags.js'
import { Interruption } from './interruption.js'
import { Session } from './session.js'
import { type GlobalFlagValues, resolveSettings, verbosityOf, wantsJson } from './settings.js'
import { writeDocument, writeErr } from './streams.js'

/** What every `--json` result starts with. */
export interface Envelope {
  /** `virtvault/<command>/<version>`. Fields may be added; a renamed one is a new version. */
  readonly schema: string
  readonly ok: boolean
  readonly status: 'success' | 'partial' | 'failed' | 'skipped'
  readonly exit: number
  readonly [field: string]: unknown
}

/**
 * Base of all commands: global flags, one JSON document whatever happens,
 * errors printed as what, why and what to do, signals that abort instead of
 * kill, and the exit codes of exit-codes.ts.
 *
 * A command parses its flags, opens a session, runs one job, prints through the
 * session and returns its document.
 */
export abstract class BaseCommand extends Command {
  static override enableJsonFlag = true
  static override baseFlags = GLOBAL_FLAGS
  readonly #interruption = new Interruption()

  abstract override run(): Promise<Envelope>

  protected session(flags: GlobalFlagValues): Promise<Session> {
    const settings = resolveSettings(flags, {
      argv: this.argv,
      env: process.env,
      terminal: { stdoutIsTty: process.stdout.isTTY, stderrIsTty: process.stderr.isTTY },
    })
    return Session.open(settings, { interruption: this.#interruption, title: this.#typedName() })
  }

  /** 129, 130 or 143 where a signal asked this run to end. */
  protected get interruptedExit(): number | undefined {
    return this.#interruption.exit
  }

  /** Sets the exit code that the document claims, and gives it back to be printed by `--json`. */
  protected finish<T extends Envelope>(document: T): T {
    process.exitCode = document.exit
    return document
  }

  override jsonEnabled(): boolean {
    return wantsJson(this.argv, process.env)
  }

  protected override logJson(json: unknown): void {
    writeDocument(json)
  }

  protected override catch(error: unknown): Promise<void> {
    // An error that surfaces while we are being ended was caused by that.
    const ended = this.#interruption.exit
    const cause: unknown = ended === undefined ? error : this.#interruption.signal.reason
    const report = reportError(cause, { command: this.#typedName() })
    const exit = ended ?? report.exit
    process.exitCode = exit
    if (this.jsonEnabled()) writeDocument(errorDocument({ ...report, exit }))
    else writeErr(renderError(report))
    if (verbosityOf(this.argv) === 3 && error instanceof Error) writeErr(stackLines(error))
    return Promise.resolve()
  }

  protected override finally(): Promise<void> {
    this.#interruption[Symbol.dispose]()
    return Promise.resolve()
  }

  /** As the user types it: `backup pull`. */
  #typedName(): string {
    return (this.id ?? '').replaceAll(':', ' ')
  }
}

function stackLines(error: Error): string[] {
  const lines = (error.stack ?? error.message).split('\n')
  return error.cause instanceof Error ? [...lines, 'Caused by:', ...stackLines(error.cause)] : lines
}
