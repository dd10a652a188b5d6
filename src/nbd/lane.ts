import { throwIfAborted } from '../base/async.js'
import { type Clock, systemClock } from '../base/clock.js'
import { BackupError, isNativeFailure, messageOf } from '../base/errors.js'
import { native } from '../native/binding.js'
import type { NativeNbdConnection, NbdConnectOptions } from '../native/nbd.js'

/** How often a request is repeated that the server answers with an error. */
const MAX_RETRIES = 3
const FIRST_BACKOFF_MS = 100
const BACKOFF_FACTOR = 4
/** A server that loses us again and again is given up, even if it answers in between. */
const MAX_RECONNECTS = 10
/** What may go away by itself: EIO, EAGAIN, ENOMEM, EBUSY, ETIMEDOUT. */
const PASSING_ERRNOS: readonly (number | undefined)[] = [5, 11, 12, 16, 110]

/**
 * One connection to an export, replaced when it is lost. For reads only: they
 * may be repeated at will, since an export under backup does not change.
 */
export class Lane {
  readonly #options: NbdConnectOptions
  readonly #clock: Clock
  #connection: NativeNbdConnection
  #replacing: Promise<void> | undefined
  #reconnects = 0
  /** The connection has answered since it was made. */
  #hasAnswered = true
  #isClosed = false
  /** Bytes asked for and not yet answered; the reader gives work to the least loaded. */
  load = 0

  private constructor(options: NbdConnectOptions, connection: NativeNbdConnection, clock: Clock) {
    this.#options = options
    this.#connection = connection
    this.#clock = clock
  }

  /** Rejects with E_NBD, E_NBD_PROTOCOL, E_TIMEOUT, E_UNSUPPORTED or what aborted `signal`. */
  static async open(options: NbdConnectOptions, signal: AbortSignal, clock: Clock = systemClock): Promise<Lane> {
    return new Lane(options, await connect(options, signal), clock)
  }

  get connection(): NativeNbdConnection {
    return this.#connection
  }

  /**
   * Runs `work`, again where the server answers with an error that may pass
   * (three times, with pauses) and on a new connection where the old one is
   * lost (once, unless it answers in between). Rejects with E_NBD_READ,
   * E_NBD, E_NBD_PROTOCOL, E_TIMEOUT or what aborted `signal`; by then nothing
   * that `work` lent to its connection is in use any more.
   */
  async run<T>(work: (connection: NativeNbdConnection) => Promise<T>, signal: AbortSignal): Promise<T> {
    for (let failures = 0, backoff = FIRST_BACKOFF_MS; ; ) {
      throwIfAborted(signal)
      const connection = this.#connection
      try {
        const result = await work(connection)
        if (connection === this.#connection) this.#hasAnswered = true
        return result
      } catch (error) {
        throwIfAborted(signal)
        if (!isNativeFailure(error)) throw error
        if (isLost(error)) {
          await this.#replace(connection, toBackupError(error), signal)
          continue
        }
        if (failures === MAX_RETRIES || !PASSING_ERRNOS.includes(error.errno)) throw toBackupError(error)
      }
      failures++
      await this.#clock.sleep(backoff, signal).catch(() => throwIfAborted(signal))
      backoff *= BACKOFF_FACTOR
    }
  }

  /** Drops the connection at once; what is under way rejects. Then close(). */
  abort(): void {
    this.#isClosed = true
    this.#connection.abort()
  }

  /** Ends the connection in order. Never rejects. */
  async close(): Promise<void> {
    this.#isClosed = true
    await this.#replacing?.catch(() => undefined)
    await this.#connection.close()
  }

  /** Several calls lose the same connection at once; the first replaces it for all. */
  async #replace(lost: NativeNbdConnection, why: BackupError, signal: AbortSignal): Promise<void> {
    if (lost !== this.#connection) return
    if (this.#isClosed) throw why
    this.#replacing ??= this.#reconnect(why, signal).finally(() => (this.#replacing = undefined))
    await this.#replacing
  }

  async #reconnect(why: BackupError, signal: AbortSignal): Promise<void> {
    if (!this.#hasAnswered || this.#reconnects === MAX_RECONNECTS) throw why
    this.#reconnects++
    this.#hasAnswered = false
    const lost = this.#connection
    await lost.close()
    let found: NativeNbdConnection
    try {
      found = await connect(this.#options, signal)
    } catch (error) {
      throwIfAborted(signal)
      throw new BackupError(why.code, why.message, { cause: error, why: `reconnecting failed: ${messageOf(error)}` })
    }
    if (found.size !== lost.size || found.contexts.join() !== lost.contexts.join() || this.#isClosed) {
      await found.close()
      throw this.#isClosed
        ? why
        : new BackupError('E_NBD_PROTOCOL', 'the export is another one after a reconnect', { cause: why })
    }
    this.#connection = found
  }
}

/** The native connection, or what aborted `signal` at once; a connection that comes later is closed. */
export async function connect(options: NbdConnectOptions, signal: AbortSignal): Promise<NativeNbdConnection> {
  throwIfAborted(signal)
  const connecting = native().nbdConnect(options)
  let onAbort: () => void = () => undefined
  const aborted = new Promise<undefined>(resolve => {
    onAbort = () => resolve(undefined)
    signal.addEventListener('abort', onAbort, { once: true })
  })
  try {
    const connection = await Promise.race([connecting, aborted])
    if (connection !== undefined && !signal.aborted) return connection
  } catch (error) {
    throw toBackupError(error)
  } finally {
    signal.removeEventListener('abort', onAbort)
  }
  connecting.then(
    late => late.close(),
    () => undefined,
  )
  throwIfAborted(signal)
  throw new BackupError('E_INTERRUPTED', 'interrupted')
}

/** The connection is over, as against a request that the server answers with an error. */
function isLost(error: Error & { readonly code: string }): boolean {
  return error.code === 'E_NBD' || error.code === 'E_NBD_PROTOCOL' || error.code === 'E_TIMEOUT'
}

/** A failure of the addon as the one error class; anything else is a bug and passes through. */
export function toBackupError(error: unknown): BackupError {
  if (error instanceof BackupError) return error
  if (isNativeFailure(error) && error.code !== 'E_INTERNAL') {
    return new BackupError(error.code, error.message, { cause: error })
  }
  throw error
}
