import { type Socket, connect } from 'node:net'

import {
  FrameReader,
  type IndexAnswer,
  type IndexRequest,
  decodeAnswer,
  decodeHello,
  encodeHello,
  encodeRequest,
  isSpoken,
} from '../format/index-frame.js'
import {
  ConnectionLostError,
  HELLO_TIMEOUT_MS,
  type IndexService,
  SILENCE_TIMEOUT_MS,
  SocketPath,
} from './index-protocol.js'

const MAX_NUMBER = 2 ** 32 - 2

interface Waiting {
  readonly resolve: (answer: IndexAnswer) => void
  readonly reject: (error: ConnectionLostError) => void
}

/** The connection to the process that holds the index. Keeps this process alive only while an answer is awaited. */
export class IndexClient implements IndexService {
  readonly #socket: Socket
  readonly #waiting = new Map<number, Waiting>()
  #number = 0
  #lost: ConnectionLostError | undefined

  private constructor(socket: Socket) {
    this.#socket = socket
  }

  /** Rejects with ConnectionLostError where nobody listens or the one who does speaks another version. */
  static async connect(directory: string): Promise<IndexClient> {
    await using place = await SocketPath.in(directory)
    const socket = connect(place.path)
    const client = new IndexClient(socket)
    const hello = new Promise<void>((resolve, reject) => {
      client.#waiting.set(0, { resolve: () => resolve(), reject })
    })
    socket.setTimeout(HELLO_TIMEOUT_MS)
    socket.on('timeout', () => socket.destroy(new Error('the holder of the index is silent')))
    socket.on('error', error => client.#lose(error))
    socket.on('close', () => client.#lose(new Error('the holder of the index ended the connection')))
    client.#listen()
    socket.write(encodeHello())
    await hello
    socket.setTimeout(0)
    socket.unref()
    return client
  }

  async handle(request: IndexRequest): Promise<IndexAnswer> {
    if (this.#lost !== undefined) throw this.#lost
    this.#number = this.#number === MAX_NUMBER ? 1 : this.#number + 1
    const number = this.#number
    if (this.#waiting.size === 0) {
      this.#socket.ref()
      this.#socket.setTimeout(SILENCE_TIMEOUT_MS)
    }
    return new Promise((resolve, reject) => {
      this.#waiting.set(number, { resolve, reject })
      this.#socket.write(encodeRequest({ number, content: request }))
    })
  }

  close(): Promise<void> {
    this.#lose(new Error('it was closed here'))
    return Promise.resolve()
  }

  #listen(): void {
    const frames = new FrameReader()
    let isGreeted = false
    this.#socket.on('data', bytes => {
      try {
        for (const body of frames.push(bytes)) {
          if (isGreeted) {
            this.#take(body)
            continue
          }
          const version = decodeHello(body)
          if (!isSpoken(version)) throw new Error(`the holder of the index speaks version ${version} of its protocol`)
          isGreeted = true
          this.#settle(0, { kind: 'done' })
        }
      } catch (error) {
        this.#lose(error)
      }
    })
  }

  #take(body: Uint8Array): void {
    const { number, content } = decodeAnswer(body)
    if (content.kind === 'busy') return
    this.#settle(number, content)
    if (this.#waiting.size > 0) return
    this.#socket.setTimeout(0)
    this.#socket.unref()
  }

  #settle(number: number, answer: IndexAnswer): void {
    const waiting = this.#waiting.get(number)
    if (waiting === undefined) throw new Error('the holder of the index answers what was not asked')
    this.#waiting.delete(number)
    waiting.resolve(answer)
  }

  #lose(cause: unknown): void {
    this.#lost ??= new ConnectionLostError(cause)
    this.#socket.destroy()
    for (const { reject } of this.#waiting.values()) reject(this.#lost)
    this.#waiting.clear()
  }
}
