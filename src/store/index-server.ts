import { chmod, rm, stat } from 'node:fs/promises'
import { type Server, type Socket, createServer } from 'node:net'

import { messageOf } from '../base/errors.js'
import {
  FrameReader,
  type IndexAnswer,
  type IndexRequest,
  type Numbered,
  decodeHello,
  decodeRequest,
  encodeAnswer,
  encodeHello,
  isSpoken,
} from '../format/index-frame.js'
import { BUSY_INTERVAL_MS, HELLO_TIMEOUT_MS, SocketPath } from './index-protocol.js'

const MAX_CONNECTIONS = 256
/** Requests of one connection that are worked on together; more stay in its socket. */
const MAX_UNDER_WAY = 8
const PRIVATE = 0o077

export type RequestHandler = (request: IndexRequest) => Promise<IndexAnswer>

/**
 * Answers index requests on a socket in a directory that is ours alone. Whoever
 * says something that is no frame, or too large a one, is dropped. Keeps no
 * process alive.
 */
export class IndexServer implements AsyncDisposable {
  readonly #server: Server
  readonly #place: SocketPath
  readonly #connections = new Set<Connection>()
  readonly #busy: NodeJS.Timeout

  private constructor(place: SocketPath, handler: RequestHandler) {
    this.#place = place
    this.#server = createServer({ allowHalfOpen: true }, socket => this.#accept(socket, handler))
    this.#server.maxConnections = MAX_CONNECTIONS
    this.#busy = setInterval(() => {
      for (const connection of this.#connections) connection.sayBusy()
    }, BUSY_INTERVAL_MS).unref()
  }

  /** Only the holder of the index's lock may call this: it replaces a socket that a dead one left. */
  static async listen(directory: string, handler: RequestHandler): Promise<IndexServer> {
    const { mode } = await stat(directory)
    if ((mode & PRIVATE) !== 0) await chmod(directory, mode & 0o7700)
    const place = await SocketPath.in(directory)
    const server = new IndexServer(place, handler)
    try {
      await rm(place.path, { force: true })
      await server.#listen()
      await chmod(place.path, 0o600)
      return server
    } catch (error) {
      await server.stop()
      await server[Symbol.asyncDispose]()
      throw error
    }
  }

  /** Takes no connections and requests any more, and waits for the answers to those that came. */
  async stop(): Promise<void> {
    // Only this removes the socket's name; the connections stay.
    this.#server.close()
    await Promise.all([...this.#connections].map(connection => connection.stop()))
  }

  /** Ends the connections: whoever is at the other end looks for the next holder. */
  async [Symbol.asyncDispose](): Promise<void> {
    clearInterval(this.#busy)
    for (const connection of this.#connections) connection.end()
    await this.#place[Symbol.asyncDispose]()
  }

  #listen(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#server.once('error', reject)
      this.#server.listen(this.#place.path, () => {
        this.#server.off('error', reject)
        // A failing accept (no descriptors left) costs one connection: its client tries again.
        this.#server.on('error', () => undefined)
        this.#server.unref()
        resolve()
      })
    })
  }

  #accept(socket: Socket, handler: RequestHandler): void {
    const connection = new Connection(socket, handler)
    this.#connections.add(connection)
    void connection.serve().finally(() => this.#connections.delete(connection))
  }
}

class Connection {
  readonly #socket: Socket
  readonly #handler: RequestHandler
  /** Requests whose answer is not known yet. */
  readonly #handled = new Set<Promise<IndexAnswer>>()
  /** Those, and answers that have not left. */
  readonly #underWay = new Set<Promise<void>>()
  #isStopped = false

  constructor(socket: Socket, handler: RequestHandler) {
    this.#socket = socket.unref()
    this.#handler = handler
  }

  /** Until either side ends it. Never rejects. */
  async serve(): Promise<void> {
    const socket = this.#socket
    socket.on('error', () => undefined)
    socket.setTimeout(HELLO_TIMEOUT_MS, () => socket.destroy())
    try {
      const frames = new FrameReader()
      let isGreeted = false
      const pieces: AsyncIterable<Uint8Array> = socket.iterator({ destroyOnReturn: false })
      for await (const bytes of pieces) {
        for (const body of frames.push(bytes)) {
          if (this.#isStopped) return
          if (isGreeted) {
            await this.#begin(decodeRequest(body))
            continue
          }
          const version = decodeHello(body)
          // Also one that is not spoken with learns the version.
          socket.write(encodeHello())
          if (!isSpoken(version)) return
          isGreeted = true
          socket.setTimeout(0)
        }
      }
    } catch {
      // Garbage, or a connection that broke: there is nobody to tell.
      socket.destroy()
    } finally {
      if (!this.#isStopped) this.end()
    }
  }

  async stop(): Promise<void> {
    this.#isStopped = true
    await Promise.allSettled(this.#handled)
  }

  end(): void {
    this.#socket.destroySoon()
  }

  sayBusy(): void {
    if (this.#underWay.size > 0 && this.#socket.writableLength === 0) {
      this.#socket.write(encodeAnswer({ number: 0, content: { kind: 'busy' } }))
    }
  }

  async #begin({ number, content }: Numbered<IndexRequest>): Promise<void> {
    while (this.#underWay.size >= MAX_UNDER_WAY) await Promise.race(this.#underWay)
    const work = this.#answer(number, content).finally(() => this.#underWay.delete(work))
    this.#underWay.add(work)
  }

  /** Over when the answer has left, so that a client that does not read is not read either. */
  async #answer(number: number, request: IndexRequest): Promise<void> {
    const handled = this.#handler(request).catch(
      (error: unknown): IndexAnswer => ({ kind: 'failed', message: messageOf(error) }),
    )
    this.#handled.add(handled)
    const content = await handled
    await new Promise<void>(resolve => {
      this.#socket.once('close', resolve)
      // Calls back also where the connection is gone.
      this.#socket.write(encodeAnswer({ number, content }), () => {
        this.#socket.off('close', resolve)
        resolve()
      })
      this.#handled.delete(handled)
    })
  }
}
