import { type FileHandle, open } from 'node:fs/promises'
import { join } from 'node:path'

import type { IndexAnswer, IndexRequest } from '../format/index-frame.js'

/** What sockaddr_un takes, without its final zero. */
const MAX_SOCKET_PATH_BYTES = 107
const SOCKET_NAME = 'index.sock'

/** A new connection that has not said a valid hello by then is given up, by either side. */
export const HELLO_TIMEOUT_MS = 5_000
/** How often a holder says that something is still under way. */
export const BUSY_INTERVAL_MS = 1_000
/** A holder that is silent for so long while it owes an answer is stuck or stopped. */
export const SILENCE_TIMEOUT_MS = 10_000

/** Whoever answers index requests: the process that holds LevelDB, or the connection to it. */
export interface IndexService {
  /**
   * All requests may be repeated. Rejects with IndexBrokenError where there is
   * no answer to be had, with ConnectionLostError where another may have one.
   */
  handle(request: IndexRequest): Promise<IndexAnswer>
  /** Lets go of everything; idempotent. */
  close(): Promise<void>
}

/** The holder of the index is gone, or does not speak as it should. Never reaches a user. */
export class ConnectionLostError extends Error {
  constructor(cause: unknown) {
    super('the process that holds the index does not answer', { cause })
    this.name = 'ConnectionLostError'
  }
}

/**
 * Where the socket in `directory` can be bound and reached, as long as this is
 * not disposed: a path that is too long for a socket goes through the open
 * directory.
 */
export class SocketPath implements AsyncDisposable {
  readonly path: string
  readonly #directory: FileHandle | undefined

  private constructor(path: string, directory: FileHandle | undefined) {
    this.path = path
    this.#directory = directory
  }

  static async in(directory: string): Promise<SocketPath> {
    const path = join(directory, SOCKET_NAME)
    if (Buffer.byteLength(path) <= MAX_SOCKET_PATH_BYTES) return new SocketPath(path, undefined)
    const handle = await open(directory, 'r')
    return new SocketPath(`/proc/self/fd/${handle.fd}/${SOCKET_NAME}`, handle)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#directory?.close()
  }
}
