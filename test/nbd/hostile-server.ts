import { createServer, type Server, type Socket } from 'node:net'

import type { Test } from 'tap'

import { socketPath } from './servers.js'

export const OPTION = { exportName: 1, abort: 2, list: 3, startTls: 5, info: 6, go: 7, structured: 8, setMeta: 10 }
export const REPLY = { ack: 1, server: 2, info: 3, metaContext: 4, unsupported: 0x80000001, unknown: 0x80000006 }
export const CHUNK = { none: 0, data: 1, hole: 2, status: 5, error: 0x8001, errorOffset: 0x8002 }
export const COMMAND = { read: 0, write: 1, disconnect: 2, flush: 3, trim: 4, status: 7 }

const OPTION_MAGIC = 0x49484156454f5054n
const OPTION_REPLY_MAGIC = 0x3e889045565a9n
const REQUEST_MAGIC = 0x25609513
const SIMPLE_MAGIC = 0x67446698
const STRUCTURED_MAGIC = 0x668e33ef
const DONE = 1
/** HAS_FLAGS, READ_ONLY, CAN_MULTI_CONN. */
const EXPORT_FLAGS = 1 | 2 | 256

export interface Request {
  readonly type: number
  readonly cookie: bigint
  readonly offset: number
  readonly length: number
}

/** Where a server strays from the protocol; what is absent, it does right. */
export interface Hostility {
  readonly size?: bigint
  /** Minimum, preferred, maximum. */
  readonly blocks?: readonly [number, number, number]
  readonly withoutStructuredReplies?: boolean
  /** Names the contexts to grant among those asked for. */
  readonly grant?: (asked: readonly string[]) => readonly string[]
  /** Instead of the greeting. */
  readonly greet?: (peer: Peer) => void
  /** Instead of the answer to an option; returns false to answer it rightly after all. */
  readonly option?: (peer: Peer, option: number) => boolean
  readonly read?: (peer: Peer, request: Request) => void
  readonly status?: (peer: Peer, request: Request) => void
}

/** What the honest server holds at an offset. */
export function byteAt(offset: number): number {
  return (offset ^ (offset >>> 8) ^ (offset >>> 16)) & 0xff
}

export function bytesAt(offset: number, length: number): Buffer {
  const bytes = Buffer.alloc(length)
  for (let i = 0; i < length; i++) bytes[i] = byteAt(offset + i)
  return bytes
}

/** An NBD server (fixed newstyle, structured replies) that is told how to misbehave. */
export class HostileServer {
  readonly socket: string
  readonly #server: Server
  readonly #sockets = new Set<Socket>()
  /** Connections that were made, over all. */
  connections = 0

  private constructor(socket: string, server: Server) {
    this.socket = socket
    this.#server = server
  }

  static async start(t: Test, dir: string, hostility: Hostility): Promise<HostileServer> {
    const path = socketPath(dir)
    const net = createServer()
    const server = new HostileServer(path, net)
    net.on('connection', socket => {
      server.connections++
      server.#sockets.add(socket)
      socket.on('close', () => server.#sockets.delete(socket))
      new Peer(socket, hostility).serve()
    })
    await new Promise<void>(resolve => net.listen(path, resolve))
    t.teardown(() => server.stop())
    return server
  }

  async stop(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy()
    await new Promise(resolve => this.#server.close(resolve))
  }
}

/** One connection of a hostile server: parses what comes, and says what it is told to say. */
export class Peer {
  readonly socket: Socket
  readonly #hostility: Hostility
  #input = Buffer.alloc(0)
  #state: 'flags' | 'options' | 'requests' = 'flags'
  #contexts: readonly string[] = []
  readonly #timers = new Set<NodeJS.Timeout>()

  constructor(socket: Socket, hostility: Hostility) {
    this.socket = socket
    this.#hostility = hostility
    socket.on('error', () => undefined)
    socket.on('close', () => {
      for (const timer of this.#timers) clearInterval(timer)
    })
  }

  get size(): bigint {
    return this.#hostility.size ?? 1048576n
  }

  serve(): void {
    this.socket.on('data', data => {
      this.#input = Buffer.concat([this.#input, data])
      while (this.#step());
    })
    if (this.#hostility.greet !== undefined) this.#hostility.greet(this)
    else this.greet()
  }

  greet(): void {
    this.send(Buffer.from('NBDMAGICIHAVEOPT'), u16(3))
  }

  send(...parts: readonly Uint8Array[]): void {
    if (!this.socket.destroyed) this.socket.write(Buffer.concat(parts))
  }

  drop(): void {
    this.socket.destroy()
  }

  /** Sends `bytes` one by one, slowly; then nothing more. */
  dribble(bytes: Uint8Array, everyMs: number): void {
    let at = 0
    const timer = setInterval(() => {
      this.send(bytes.subarray(at, ++at))
      if (at >= bytes.length) clearInterval(timer)
    }, everyMs)
    this.#timers.add(timer)
  }

  /** Sends `bytes` again and again, as fast as they are taken. */
  flood(bytes: Uint8Array): void {
    const more = () => {
      while (!this.socket.destroyed && this.socket.write(bytes));
    }
    this.socket.on('drain', more)
    more()
  }

  optionReply(option: number, type: number, data: Uint8Array = Buffer.alloc(0)): void {
    this.send(optionReply(option, type, data))
  }

  /** A chunk of a structured reply. */
  chunk(request: Request, type: number, payload: Uint8Array, flags = 0): void {
    this.send(chunk(request.cookie, type, payload, flags))
  }

  data(request: Request, offset: number, bytes: Uint8Array, flags = 0): void {
    this.chunk(request, CHUNK.data, Buffer.concat([u64(BigInt(offset)), bytes]), flags)
  }

  done(request: Request): void {
    this.chunk(request, CHUNK.none, Buffer.alloc(0), DONE)
  }

  simple(cookie: bigint, error: number, data: Uint8Array = Buffer.alloc(0)): void {
    this.send(u32(SIMPLE_MAGIC), u32(error), u64(cookie), data)
  }

  /** (length, flags) in turn for one context, by its id. */
  extents(request: Request, context: number, entries: readonly number[] | Uint8Array, flags = 0): void {
    const encoded = entries instanceof Uint8Array ? entries : u32s(entries)
    this.chunk(request, CHUNK.status, Buffer.concat([u32(context), encoded]), flags)
  }

  /** What a decent server would do. */
  answerRead(request: Request): void {
    const bytes = bytesAt(request.offset, request.length)
    if (this.#hostility.withoutStructuredReplies === true) this.simple(request.cookie, 0, bytes)
    else this.data(request, request.offset, bytes, DONE)
  }

  answerStatus(request: Request): void {
    for (const id of this.#contexts.keys()) this.extents(request, id + 1, [request.length, id === 0 ? 1 : 0])
    this.done(request)
  }

  #take(length: number): Buffer | undefined {
    if (this.#input.length < length) return undefined
    const taken = this.#input.subarray(0, length)
    this.#input = this.#input.subarray(length)
    return taken
  }

  #step(): boolean {
    if (this.#state === 'flags') {
      if (this.#take(4) === undefined) return false
      this.#state = 'options'
      return true
    }
    return this.#state === 'options' ? this.#stepOption() : this.#stepRequest()
  }

  #stepOption(): boolean {
    if (this.#input.length < 16) return false
    const length = this.#input.readUInt32BE(12)
    const whole = this.#take(16 + length)
    if (whole === undefined) return false
    if (whole.readBigUInt64BE(0) !== OPTION_MAGIC) throw new Error('the client is hostile too')
    const option = whole.readUInt32BE(8)
    if (this.#hostility.option?.(this, option) !== true) this.#answerOption(option, whole.subarray(16))
    return true
  }

  #answerOption(option: number, data: Buffer): void {
    const { withoutStructuredReplies, grant, blocks } = this.#hostility
    if (option === OPTION.structured && withoutStructuredReplies !== true) {
      this.optionReply(option, REPLY.ack)
    } else if (option === OPTION.setMeta) {
      const asked = parseContexts(data)
      this.#contexts = grant?.(asked) ?? asked
      for (const [index, name] of this.#contexts.entries()) {
        this.optionReply(option, REPLY.metaContext, Buffer.concat([u32(index + 1), Buffer.from(name)]))
      }
      this.optionReply(option, REPLY.ack)
    } else if (option === OPTION.go || option === OPTION.info) {
      this.optionReply(option, REPLY.info, Buffer.concat([u16(0), u64(this.size), u16(EXPORT_FLAGS)]))
      if (blocks !== undefined) {
        this.optionReply(option, REPLY.info, Buffer.concat([u16(3), ...blocks.map(u32)]))
      }
      this.optionReply(option, REPLY.ack)
      if (option === OPTION.go) this.#state = 'requests'
    } else if (option === OPTION.list) {
      this.optionReply(option, REPLY.server, Buffer.concat([u32(4), Buffer.from('disk')]))
      this.optionReply(option, REPLY.ack)
    } else if (option === OPTION.abort) {
      this.optionReply(option, REPLY.ack)
      this.socket.end()
    } else {
      this.optionReply(option, REPLY.unsupported)
    }
  }

  #stepRequest(): boolean {
    const header = this.#take(28)
    if (header === undefined) return false
    if (header.readUInt32BE(0) !== REQUEST_MAGIC) throw new Error('the client is hostile too')
    const request: Request = {
      type: header.readUInt16BE(6),
      cookie: header.readBigUInt64BE(8),
      offset: Number(header.readBigUInt64BE(16)),
      length: header.readUInt32BE(24),
    }
    if (request.type === COMMAND.read) (this.#hostility.read ?? decentRead)(this, request)
    else if (request.type === COMMAND.status) (this.#hostility.status ?? decentStatus)(this, request)
    else if (request.type === COMMAND.disconnect) this.socket.end()
    return true
  }
}

function decentRead(peer: Peer, request: Request): void {
  peer.answerRead(request)
}

function decentStatus(peer: Peer, request: Request): void {
  peer.answerStatus(request)
}

function parseContexts(data: Buffer): string[] {
  let at = 4 + data.readUInt32BE(0)
  const count = data.readUInt32BE(at)
  at += 4
  return Array.from({ length: count }, () => {
    const length = data.readUInt32BE(at)
    const name = data.toString('utf8', at + 4, at + 4 + length)
    at += 4 + length
    return name
  })
}

export function optionReply(option: number, type: number, data: Uint8Array = Buffer.alloc(0)): Buffer {
  return Buffer.concat([u64(OPTION_REPLY_MAGIC), u32(option), u32(type), u32(data.length), data])
}

export function chunk(cookie: bigint, type: number, payload: Uint8Array, flags = 0): Buffer {
  return Buffer.concat([u32(STRUCTURED_MAGIC), u16(flags), u16(type), u64(cookie), u32(payload.length), payload])
}

export function u16(value: number): Buffer {
  const bytes = Buffer.alloc(2)
  bytes.writeUInt16BE(value)
  return bytes
}

export function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32BE(value >>> 0)
  return bytes
}

/** Encoded once: two million numbers take seconds one by one. */
export function u32s(values: readonly number[]): Buffer {
  const bytes = Buffer.alloc(4 * values.length)
  for (const [index, value] of values.entries()) bytes.writeUInt32BE(value >>> 0, 4 * index)
  return bytes
}

export function u64(value: bigint): Buffer {
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64BE(BigInt.asUintN(64, value))
  return bytes
}
