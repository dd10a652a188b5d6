import { throwIfAborted } from '../base/async.js'
import { BackupError } from '../base/errors.js'
import type { NativeNbdConnection, NbdAddress, NbdConnectOptions } from '../native/nbd.js'
import { connect, toBackupError } from './lane.js'
import { bytesOf, splitPieces } from './pieces.js'

const REQUEST_BYTES = 512 * 1024
const DEPTH = 16
const SPREAD_BYTES = 1024 * 1024

export interface WriterOptions {
  readonly exportName: string
  /** At most this many connections; one where the server does not promise that a flush on one covers all. */
  readonly connections: number
  readonly requestTimeoutMs: number
}

/**
 * Writes to one NBD export; how a restore reaches one.
 *
 * Nothing is repeated: after a lost connection nobody knows which of the
 * writes before it the server still holds, so the restore starts again. An
 * abort of any signal drops all connections, as with ExportReader.
 */
export class ExportWriter implements AsyncDisposable {
  readonly size: number
  /** Offsets and lengths are multiples of this, but for the end of the export. */
  readonly minimumBlock: number
  readonly #connections: readonly NativeNbdConnection[]
  readonly #signals = new Set<AbortSignal>()
  readonly #abort = () => {
    for (const connection of this.#connections) connection.abort()
  }

  private constructor(first: NativeNbdConnection, connections: readonly NativeNbdConnection[]) {
    this.size = first.size
    this.minimumBlock = first.minimumBlock
    this.#connections = connections
  }

  /** Rejects with E_NBD (cannot connect, no such export, read-only), E_NBD_PROTOCOL, E_TIMEOUT or what aborted `signal`. */
  static async open(address: NbdAddress, options: WriterOptions, signal: AbortSignal): Promise<ExportWriter> {
    const how: NbdConnectOptions = {
      ...address,
      exportName: options.exportName,
      metaContexts: [],
      requestTimeoutMs: options.requestTimeoutMs,
      writable: true,
    }
    const first = await connect(how, signal)
    const connections = [first]
    try {
      while (first.canMultiConn && connections.length < options.connections) {
        const next = await connect(how, signal)
        connections.push(next)
        if (next.size !== first.size) {
          throw new BackupError('E_NBD_PROTOCOL', `two connections see exports of ${first.size} and ${next.size} bytes`)
        }
      }
      return new ExportWriter(first, connections)
    } catch (error) {
      await Promise.all(connections.map(connection => connection.close()))
      throw error
    }
  }

  /**
   * Writes triples (offset in the export, length, offset in `buffer`), which
   * is borrowed until the promise settles. Durable only after flush(). Rejects
   * with E_NBD (names the offset), E_NO_SPACE, E_NBD_PROTOCOL, E_TIMEOUT or
   * what aborted `signal`; then any part may have been written.
   */
  async write(pieces: Float64Array, buffer: Uint8Array, signal: AbortSignal): Promise<void> {
    const bytes = bytesOf(pieces)
    const unit = Math.max(REQUEST_BYTES, this.minimumBlock)
    const parts = bytes <= SPREAD_BYTES ? [pieces] : splitPieces(pieces, this.#connections.length, unit)
    await this.#each(parts, signal, (connection, part) => connection.write(part, buffer, REQUEST_BYTES, DEPTH))
  }

  /**
   * Makes [offset, offset + length) read as zeros; `punch` allows the server
   * to give the space back. Writes plain zeros where the server takes no zero
   * requests. Rejects as write().
   */
  async zero(offset: number, length: number, options: { readonly punch: boolean }, signal: AbortSignal): Promise<void> {
    if (length === 0) return
    const [first] = this.#connections
    if (first?.canZero === true) {
      await this.#each([first], signal, connection => connection.zero(offset, length, options.punch))
      return
    }
    const zeros = new Uint8Array(Math.min(length, SPREAD_BYTES))
    for (let at = 0; at < length; at += zeros.length) {
      const part = Math.min(zeros.length, length - at)
      await this.write(Float64Array.of(offset + at, part, 0), zeros, signal)
    }
  }

  /** Makes durable every write and zero that has settled. Rejects as write(). */
  async flush(signal: AbortSignal): Promise<void> {
    // Several connections are used only where a flush on one covers all.
    const [first] = this.#connections
    if (first?.canFlush !== true) return
    await this.#each([first], signal, connection => connection.flush())
  }

  /** Ends all connections in order; what is not flushed may be lost. Never rejects. */
  async [Symbol.asyncDispose](): Promise<void> {
    for (const signal of this.#signals) signal.removeEventListener('abort', this.#abort)
    this.#signals.clear()
    await Promise.all(this.#connections.map(connection => connection.close()))
  }

  /** One part per connection; waits for all, so that nothing is borrowed any more when it fails. */
  async #each<T>(
    parts: readonly T[],
    signal: AbortSignal,
    work: (connection: NativeNbdConnection, part: T) => Promise<void>,
  ): Promise<void> {
    throwIfAborted(signal)
    if (!this.#signals.has(signal)) {
      this.#signals.add(signal)
      signal.addEventListener('abort', this.#abort, { once: true })
    }
    const results = await Promise.allSettled(
      parts.map(async (part, index) => {
        const connection = this.#connections[index]
        if (connection !== undefined) await work(connection, part)
      }),
    )
    throwIfAborted(signal)
    const failed = results.find(result => result.status === 'rejected')
    if (failed !== undefined) throw toBackupError(failed.reason)
  }
}
