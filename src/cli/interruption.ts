import { BackupError } from '../base/errors.js'

const EXIT_OF_SIGNAL = { SIGHUP: 129, SIGINT: 130, SIGTERM: 143 } as const
type EndingSignal = keyof typeof EXIT_OF_SIGNAL

/**
 * Turns the first SIGINT, SIGTERM or SIGHUP into an aborted signal, so that
 * jobs clean up, and the second into an immediate exit. SIGUSR1 asks for the
 * status. Disposing it gives the signals back.
 */
export class Interruption implements Disposable {
  /** Called with the name of the first ending signal, before the abort. */
  onFirst: ((name: string) => void) | undefined
  onStatus: (() => void) | undefined
  /** Called instead of ending, where somebody has a use for SIGHUP. */
  onHangup: (() => void) | undefined
  readonly #controller = new AbortController()
  readonly #handlers = new Map<NodeJS.Signals, () => void>()
  #caught: EndingSignal | undefined

  constructor() {
    for (const name of ['SIGHUP', 'SIGINT', 'SIGTERM'] as const) this.#listen(name, () => this.#end(name))
    this.#listen('SIGUSR1', () => this.onStatus?.())
  }

  get signal(): AbortSignal {
    return this.#controller.signal
  }

  /** 129, 130 or 143 after a signal, else undefined. */
  get exit(): number | undefined {
    return this.#caught === undefined ? undefined : EXIT_OF_SIGNAL[this.#caught]
  }

  [Symbol.dispose](): void {
    for (const [name, handler] of this.#handlers) process.off(name, handler)
    this.#handlers.clear()
  }

  #listen(name: NodeJS.Signals, handler: () => void): void {
    this.#handlers.set(name, handler)
    process.on(name, handler)
  }

  #end(name: EndingSignal): void {
    if (name === 'SIGHUP' && this.onHangup !== undefined) {
      this.onHangup()
      return
    }
    if (this.#caught !== undefined) process.exit(EXIT_OF_SIGNAL[name])
    this.#caught = name
    this.onFirst?.(name)
    this.#controller.abort(new BackupError('E_INTERRUPTED', `interrupted by ${name}`))
  }
}
