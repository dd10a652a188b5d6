import { createServer, type IncomingHttpHeaders, type Server } from 'node:http'

export interface Received {
  readonly path: string
  readonly headers: IncomingHttpHeaders
  readonly body: string
}

/** A service on loopback that keeps what it is told, and answers as the test wants. */
export class NoticeServer implements AsyncDisposable {
  readonly received: Received[] = []
  /** 'hang' never answers. */
  answer: number | 'hang' = 200
  readonly #server: Server
  #waiting: (() => void)[] = []

  private constructor() {
    this.#server = createServer((request, response) => {
      const parts: Buffer[] = []
      request.on('data', (part: Buffer) => parts.push(part))
      request.on('end', () => {
        this.received.push({ path: request.url ?? '', headers: request.headers, body: Buffer.concat(parts).toString() })
        for (const wake of this.#waiting.splice(0)) wake()
        if (this.answer !== 'hang') response.writeHead(this.answer).end('ok')
      })
    })
  }

  static async listen(): Promise<NoticeServer> {
    const server = new NoticeServer()
    await new Promise<void>(done => server.#server.listen(0, '127.0.0.1', done))
    return server
  }

  url(path: string): string {
    const address = this.#server.address()
    return `http://127.0.0.1:${typeof address === 'object' ? address?.port : ''}${path}`
  }

  /** Resolves with the first that fits, also one that came before. */
  async told(fits: (one: Received) => boolean): Promise<Received> {
    for (;;) {
      const found = this.received.find(fits)
      if (found !== undefined) return found
      await new Promise<void>(wake => this.#waiting.push(wake))
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const closed = new Promise<void>(done => this.#server.close(() => done()))
    this.#server.closeAllConnections()
    await closed
  }
}
