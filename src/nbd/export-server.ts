import { lstat, rm } from 'node:fs/promises'
import { connect, createServer, type Server, type Socket } from 'node:net'

import { BackupError, errorCodeOf } from '../base/errors.js'
import { type ExportCatalog, fixedCatalog, type ServedExport } from './served-export.js'
import { negotiate } from './server-negotiation.js'
import { startServerTls, type ServerCredentials } from './server-tls.js'
import { serveRequests } from './server-transmission.js'
import { WireSocket } from './wire-socket.js'

/** Each may hold a few MiB; more than any client opens. */
const MAX_CONNECTIONS = 64
/** A client that has chosen no export by then is dropped. */
const NEGOTIATION_TIMEOUT_MS = 60_000
/** `sockaddr_un` has no room for more. */
const MAX_SOCKET_PATH_BYTES = 107

export type ServerAddress =
  | { readonly kind: 'unix'; readonly path: string }
  | { readonly kind: 'tcp'; readonly host: string; readonly port: number }

export interface ExportServerOptions {
  /** Open all the time, or opened when a client comes. */
  readonly exports: readonly ServedExport[] | ExportCatalog
  /** Clients that do not begin TLS get nothing. */
  readonly tls?: ServerCredentials | undefined
  /** Told of every read that failed because the disk could not be read. Must not throw. */
  readonly onReadFailure?: ((error: unknown) => void) | undefined
  /** Told why a connection ended other than well. Must not throw. */
  readonly onConnectionFailure?: ((error: unknown) => void) | undefined
}

/**
 * A read-only NBD server: fixed newstyle, structured replies, block status,
 * many connections. Whatever a client sends, it gets right bytes, an error, or
 * a closed connection, and its memory here is bounded. Disposing it drops all
 * clients and waits until nothing reads from the disks any more.
 */
export class ExportServer implements AsyncDisposable {
  readonly #options: ExportServerOptions
  readonly #server: Server
  readonly #closing = new AbortController()
  readonly #connections = new Map<Socket, Promise<void>>()
  #idleWaiters: (() => void)[] = []
  #hasServed = false

  private constructor(options: ExportServerOptions) {
    this.#options = options
    this.#server = createServer({ noDelay: true }, socket => this.#accept(socket))
    this.#server.maxConnections = MAX_CONNECTIONS
  }

  /**
   * Listens when it resolves; a unix socket is for this user alone (0600).
   * Rejects with E_USAGE for a path that is too long, E_EXISTS where somebody
   * listens there or something else is in the way, E_IO.
   */
  static async listen(address: ServerAddress, options: ExportServerOptions): Promise<ExportServer> {
    const server = new ExportServer(options)
    await (address.kind === 'unix' ? server.#listenUnix(address.path) : server.#listen(() => address))
    // A failed accept is the client's loss; those that are connected go on.
    server.#server.on('error', error => options.onConnectionFailure?.(error))
    return server
  }

  /** The port that was chosen where 0 was asked for; undefined on a unix socket. */
  get port(): number | undefined {
    const address = this.#server.address()
    return address === null || typeof address === 'string' ? undefined : address.port
  }

  get connections(): number {
    return this.#connections.size
  }

  /** Resolves when a client has been served and none is left. Rejects with the signal's reason. */
  async untilServed(signal: AbortSignal): Promise<void> {
    while (!this.#hasServed || this.#connections.size > 0) {
      signal.throwIfAborted()
      await new Promise<void>(resolve => {
        this.#idleWaiters.push(resolve)
        signal.addEventListener('abort', () => resolve(), { once: true })
      })
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort()
    const closed = new Promise<void>(resolve => this.#server.close(() => resolve()))
    for (const socket of this.#connections.keys()) socket.destroy()
    await Promise.all(this.#connections.values())
    await closed
  }

  async #listenUnix(path: string): Promise<void> {
    if (Buffer.byteLength(path) > MAX_SOCKET_PATH_BYTES) {
      throw new BackupError('E_USAGE', `${path} is too long for a socket`, {
        hints: [`Choose a path of at most ${MAX_SOCKET_PATH_BYTES} bytes.`],
      })
    }
    const listen = () => this.#listenPrivately(path)
    try {
      await listen()
    } catch (error) {
      if (errorCodeOf(error) !== 'E_EXISTS' || !(await isDeadSocket(path))) throw error
      // Whoever listened there was killed.
      await rm(path, { force: true })
      await listen()
    }
  }

  /** Node binds within the call: nobody but us sees the mask. */
  async #listenPrivately(path: string): Promise<void> {
    const mask = process.umask(0o177)
    try {
      const listening = this.#listen(() => ({ path }))
      process.umask(mask)
      await listening
    } finally {
      process.umask(mask)
    }
  }

  async #listen(where: () => { path: string } | { host: string; port: number }): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      const onError = (error: NodeJS.ErrnoException) => {
        const code = error.code === 'EADDRINUSE' ? 'E_EXISTS' : 'E_IO'
        reject(new BackupError(code, `cannot listen: ${error.message}`, { cause: error }))
      }
      this.#server.once('error', onError)
      this.#server.listen(where(), () => {
        this.#server.off('error', onError)
        resolve()
      })
    })
  }

  #accept(socket: Socket): void {
    const work: Promise<void> = this.#serve(socket)
      .catch((error: unknown) => this.#options.onConnectionFailure?.(error))
      .finally(() => {
        this.#connections.delete(socket)
        if (this.#connections.size > 0 || !this.#hasServed) return
        for (const wake of this.#idleWaiters.splice(0)) wake()
      })
    this.#connections.set(socket, work)
  }

  async #serve(socket: Socket): Promise<void> {
    const { exports, tls } = this.#options
    const catalog = 'open' in exports ? exports : fixedCatalog(exports)
    const timer = setTimeout(() => socket.destroy(), NEGOTIATION_TIMEOUT_MS)
    try {
      const startTls = tls === undefined ? undefined : (plain: WireSocket) => startServerTls(plain, tls)
      const agreement = await negotiate(new WireSocket(socket), { catalog, startTls })
      clearTimeout(timer)
      if (agreement === undefined) return
      await using _opened = agreement.opened
      this.#hasServed = true
      await serveRequests(agreement, error => this.#options.onReadFailure?.(error), this.#closing.signal)
      agreement.socket.close()
    } finally {
      clearTimeout(timer)
      // An ended socket still delivers what was sent; destroySoon() waits for that.
      socket.destroySoon()
    }
  }
}

/** Whether it is a socket that nobody listens on. */
async function isDeadSocket(path: string): Promise<boolean> {
  // Connecting to a file that is no socket is refused just like to a dead one.
  if (!(await lstat(path)).isSocket()) return false
  return await new Promise(resolve => {
    const probe = connect({ path })
    probe.once('connect', () => {
      probe.destroy()
      resolve(false)
    })
    probe.once('error', (error: NodeJS.ErrnoException) => resolve(error.code === 'ECONNREFUSED'))
  })
}
