import { createHash, timingSafeEqual } from 'node:crypto'
import { chmod, unlink } from 'node:fs/promises'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import { connect } from 'node:net'

import { BackupError, errorCodeOf, messageOf } from '../base/errors.js'
import type { HistoryQuery } from './history.js'

/** What the API can ask the daemon. */
export interface ApiPorts {
  status(): object
  history(query: HistoryQuery): Promise<readonly object[]>
  metrics(): string
  /** Tasks by id; gives the ids that were begun. */
  runNow(ids: readonly string[]): readonly string[]
  reload(): Promise<object>
}

/** Where it listens: a socket for whoever may open it, or loopback for whoever knows the token. */
export type ApiPlace =
  | { readonly kind: 'socket'; readonly path: string }
  | {
      readonly kind: 'loopback'
      readonly host: string
      readonly port: number
      /** undefined: only the metrics, which hold no secrets. */
      readonly token: string | undefined
    }

const SOCKET_MODE = 0o660
const MAX_BODY_BYTES = 64 * 1024
const MAX_CONNECTIONS = 64
const HEADERS_TIMEOUT_MS = 10_000
const REQUEST_TIMEOUT_MS = 30_000
const MAX_HISTORY = 10_000
/** sockaddr_un(7), and its zero byte. */
const MAX_SOCKET_PATH = 107
/** Shorter tokens can be guessed. */
export const MIN_TOKEN_LENGTH = 32

/**
 * The local HTTP API. RELIABILITY A12: nothing but loopback, a token that is
 * compared by its hash in constant time, no request that comes from a page of
 * somebody else, no GET that changes anything, bounds on everything.
 */
export class ApiServer implements AsyncDisposable {
  readonly #server: Server
  readonly #place: ApiPlace

  private constructor(server: Server, place: ApiPlace) {
    this.#server = server
    this.#place = place
  }

  /** Rejects with E_CONFIG for a place that is not allowed, E_LOCKED where another process listens there, E_IO. */
  static async open(place: ApiPlace, ports: ApiPorts): Promise<ApiServer> {
    if (place.kind === 'loopback') checkLoopback(place)
    else await removeDeadSocket(place.path)
    const server = createServer(
      { headersTimeout: HEADERS_TIMEOUT_MS, requestTimeout: REQUEST_TIMEOUT_MS },
      (request, response) => {
        answer(request, response, { place, ports }).catch((error: unknown) => {
          if (response.headersSent) response.destroy()
          else send(response, 500, errorBody(error))
        })
      },
    )
    server.maxConnections = MAX_CONNECTIONS
    await new Promise<void>((resolve, reject) => {
      server.once('error', cause =>
        reject(new BackupError('E_IO', `cannot listen at ${describe(place)}: ${cause.message}`, { cause })),
      )
      // Nobody may come in between the socket's birth and its mode.
      const before = place.kind === 'socket' ? process.umask(0o177) : undefined
      const listening = () => resolve()
      if (place.kind === 'socket') server.listen(place.path, listening)
      else server.listen(place.port, place.host, listening)
      if (before !== undefined) process.umask(before)
    })
    if (place.kind === 'socket') await chmod(place.path, SOCKET_MODE)
    return new ApiServer(server, place)
  }

  /** The port in use; of a socket undefined. */
  get port(): number | undefined {
    const address = this.#server.address()
    return typeof address === 'object' && address !== null ? address.port : undefined
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const closed = new Promise<void>(resolve => this.#server.close(() => resolve()))
    this.#server.closeAllConnections()
    await closed
    if (this.#place.kind === 'socket') await unlink(this.#place.path).catch(() => undefined)
  }
}

interface Serving {
  readonly place: ApiPlace
  readonly ports: ApiPorts
}

async function answer(request: IncomingMessage, response: ServerResponse, { place, ports }: Serving): Promise<void> {
  const url = new URL(request.url ?? '/', 'http://localhost')
  const isMetrics = url.pathname === '/metrics'
  const refusal = refusalOf(request, place, isMetrics)
  if (refusal !== undefined) {
    send(response, refusal.status, { ok: false, error: { message: refusal.why } })
    return
  }
  const method = request.method ?? 'GET'
  switch (`${method} ${url.pathname}`) {
    case 'GET /metrics':
      response.writeHead(200, { ...HEADERS, 'content-type': 'text/plain; version=0.0.4; charset=utf-8' })
      response.end(ports.metrics())
      return
    case 'GET /v1/status':
      send(response, 200, ports.status())
      return
    case 'GET /v1/history':
      send(response, 200, { schema: 'virtvault/history/1', entries: await ports.history(queryOf(url.searchParams)) })
      return
    case 'POST /v1/run': {
      const body = await bodyOf(request)
      const ids = 'tasks' in body && Array.isArray(body.tasks) ? body.tasks.filter(id => typeof id === 'string') : []
      send(response, 202, { begun: ports.runNow(ids) })
      return
    }
    case 'POST /v1/reload':
      await bodyOf(request)
      send(response, 200, await ports.reload())
      return
    default:
      send(response, ROUTES.has(url.pathname) ? 405 : 404, {
        ok: false,
        error: { message: `no ${method} ${url.pathname}` },
      })
  }
}

const ROUTES = new Set(['/metrics', '/v1/status', '/v1/history', '/v1/run', '/v1/reload'])

const HEADERS = {
  'cache-control': 'no-store',
  'x-content-type-options': 'nosniff',
  'content-security-policy': "default-src 'none'",
} as const

/** Why a request is not answered; undefined where it is. */
function refusalOf(
  request: IncomingMessage,
  place: ApiPlace,
  isMetrics: boolean,
): { readonly status: number; readonly why: string } | undefined {
  const { headers } = request
  const site = headers['sec-fetch-site']
  // A page of somebody else in a browser on this machine.
  if (headers.origin !== undefined || (site !== undefined && site !== 'same-origin' && site !== 'none')) {
    return { status: 403, why: 'requests of other sites are not answered' }
  }
  if (request.method === 'POST' && headers['content-type']?.split(';')[0]?.trim() !== 'application/json') {
    return { status: 415, why: 'the content type must be application/json' }
  }
  if (place.kind === 'socket') return undefined
  // A name that somebody has made to point here.
  const host = (headers.host ?? '').replace(/:\d+$/, '')
  if (!LOOPBACK_NAMES.has(host)) return { status: 403, why: 'this is not the name of this machine' }
  if (isMetrics) return undefined
  const [, given = ''] = /^Bearer (.+)$/.exec(headers.authorization ?? '') ?? []
  if (place.token === undefined || !isSameSecret(given, place.token))
    return { status: 401, why: 'the token is missing or wrong' }
  return undefined
}

const LOOPBACK_NAMES = new Set(['localhost', '127.0.0.1', '[::1]'])

function checkLoopback({ host, token }: Extract<ApiPlace, { kind: 'loopback' }>): void {
  if (!/^(localhost|127(\.\d{1,3}){3}|\[?::1\]?)$/.test(host)) {
    throw new BackupError(
      'E_CONFIG',
      `${host} is not of this machine alone: the API and the metrics listen on 127.0.0.1 or [::1]`,
      {
        hints: ['put a proxy with TLS in front of it'],
      },
    )
  }
  if (token !== undefined && token.length < MIN_TOKEN_LENGTH) {
    throw new BackupError('E_CONFIG', `the token of the API is too short: at least ${MIN_TOKEN_LENGTH} characters`, {
      hints: ['make one with: openssl rand -hex 32'],
    })
  }
}

function isSameSecret(a: string, b: string): boolean {
  const hash = (text: string) => createHash('sha256').update(text).digest()
  return timingSafeEqual(hash(a), hash(b))
}

/** A socket file that a dead daemon left; one that somebody listens at is not touched. */
async function removeDeadSocket(path: string): Promise<void> {
  // Node cuts off what the kernel does not take, and listens somewhere else.
  if (Buffer.byteLength(path) > MAX_SOCKET_PATH) {
    throw new BackupError('E_CONFIG', `the path of the socket is too long: ${path}`, {
      hints: ['set ui.socket to a shorter one'],
    })
  }
  const isAlive = await new Promise<boolean>(resolve => {
    const socket = connect(path)
    socket.once('connect', () => {
      socket.destroy()
      resolve(true)
    })
    socket.once('error', () => resolve(false))
  })
  if (isAlive) {
    throw new BackupError('E_LOCKED', `another daemon listens at ${path}`, {
      hints: ['see it with: virtvault daemon status'],
    })
  }
  await unlink(path).catch(() => undefined)
}

async function bodyOf(request: IncomingMessage): Promise<object> {
  const parts: Buffer[] = []
  let size = 0
  for await (const part of request) {
    if (!Buffer.isBuffer(part)) continue
    size += part.length
    if (size > MAX_BODY_BYTES) throw new BackupError('E_USAGE', 'the request is too large')
    parts.push(part)
  }
  if (size === 0) return {}
  try {
    const body: unknown = JSON.parse(Buffer.concat(parts).toString('utf8'))
    if (typeof body === 'object' && body !== null) return body
  } catch {
    // Said below.
  }
  throw new BackupError('E_USAGE', 'the request is not a JSON object')
}

function queryOf(params: URLSearchParams): HistoryQuery {
  const limit = Number(params.get('limit') ?? 100)
  const since = params.get('since')
  return {
    limit: Number.isInteger(limit) && limit > 0 ? Math.min(limit, MAX_HISTORY) : 100,
    since: since === null || !Number.isFinite(Date.parse(since)) ? undefined : Date.parse(since),
    domain: params.get('domain') ?? undefined,
    task: params.get('task') ?? undefined,
  }
}

function send(response: ServerResponse, status: number, body: object): void {
  response.writeHead(status, { ...HEADERS, 'content-type': 'application/json; charset=utf-8' })
  response.end(JSON.stringify(body))
}

function errorBody(error: unknown): object {
  return { ok: false, error: { code: errorCodeOf(error), message: messageOf(error) } }
}

function describe(place: ApiPlace): string {
  return place.kind === 'socket' ? place.path : `${place.host}:${place.port}`
}
