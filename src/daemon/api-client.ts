import { request } from 'node:http'

import { BackupError } from '../base/errors.js'

const TIMEOUT_MS = 30_000
const MAX_ANSWER_BYTES = 64 * 1024 * 1024

/** Asks the daemon at a socket. */
export class ApiClient {
  readonly #socket: string

  constructor(socket: string) {
    this.#socket = socket
  }

  /** Whole documents; what they hold is for the caller to check. Rejects with E_UNREACHABLE where no daemon is. */
  async get(path: string, signal: AbortSignal): Promise<unknown> {
    return await this.#ask('GET', path, undefined, signal)
  }

  async post(path: string, body: object, signal: AbortSignal): Promise<unknown> {
    return await this.#ask('POST', path, body, signal)
  }

  #ask(method: string, path: string, body: object | undefined, signal: AbortSignal): Promise<unknown> {
    return new Promise((resolve, reject) => {
      const headers = body === undefined ? {} : { 'content-type': 'application/json' }
      const asked = request(
        { socketPath: this.#socket, method, path, headers, signal, timeout: TIMEOUT_MS },
        response => {
          const parts: Buffer[] = []
          let size = 0
          response.on('data', (part: Buffer) => {
            size += part.length
            if (size > MAX_ANSWER_BYTES) asked.destroy(new Error('its answer is too long'))
            else parts.push(part)
          })
          response.on('error', error => reject(this.#unreachable(error)))
          response.on('end', () => {
            try {
              const answer: unknown = JSON.parse(Buffer.concat(parts).toString('utf8'))
              if (response.statusCode !== undefined && response.statusCode < 300) resolve(answer)
              else reject(new BackupError('E_REFUSED', `the daemon refused ${method} ${path}: ${refusalIn(answer)}`))
            } catch (error) {
              reject(this.#unreachable(error))
            }
          })
        },
      )
      asked.on('timeout', () => asked.destroy(new Error('it does not answer')))
      asked.on('error', error => reject(this.#unreachable(error)))
      asked.end(body === undefined ? undefined : JSON.stringify(body))
    })
  }

  #unreachable(cause: unknown): BackupError {
    return new BackupError('E_UNREACHABLE', 'the daemon cannot be reached', {
      why: `nobody answers at ${this.#socket}`,
      cause,
      hints: ['start it: systemctl start virtvault-daemon', 'or see why it ended: journalctl -u virtvault-daemon'],
    })
  }
}

function refusalIn(answer: unknown): string {
  const error = typeof answer === 'object' && answer !== null && 'error' in answer ? answer.error : undefined
  const message = typeof error === 'object' && error !== null && 'message' in error ? error.message : undefined
  return typeof message === 'string' ? message : 'no reason given'
}
