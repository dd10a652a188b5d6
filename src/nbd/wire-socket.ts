import type { Socket } from 'node:net'

import { BackupError } from '../base/errors.js'

/** Most that is taken off a socket at once where nobody wants to see it. */
const DISCARD_BYTES = 64 * 1024

/**
 * A socket read in exact pieces and written in whole messages. One reader and
 * any number of writers at a time. What the other side does not take is
 * back-pressure: send() waits for it.
 */
export class WireSocket {
  readonly #socket: Socket
  readonly #wake = () => this.#onChange?.()
  #onChange: (() => void) | undefined
  #hasEnded = false

  constructor(socket: Socket) {
    this.#socket = socket
    socket.on('readable', this.#wake)
    socket.on('end', this.#end)
    socket.on('close', this.#end)
    socket.on('error', this.#end)
  }

  readonly #end = () => {
    this.#hasEnded = true
    this.#wake()
  }

  /** `length` bytes, the caller's; undefined where the client has gone, be it in the middle. */
  async read(length: number): Promise<Uint8Array | undefined> {
    if (length === 0) return new Uint8Array()
    for (;;) {
      const bytes: unknown = this.#socket.read(length)
      if (bytes instanceof Uint8Array) return bytes.length === length ? bytes : undefined
      if (this.#hasEnded || this.#socket.destroyed) return undefined
      await new Promise<void>(resolve => {
        this.#onChange = resolve
      })
      this.#onChange = undefined
    }
  }

  /** False where the client went before. */
  async discard(length: number): Promise<boolean> {
    for (let left = length; left > 0; ) {
      const bytes = await this.read(Math.min(left, DISCARD_BYTES))
      if (bytes === undefined) return false
      left -= bytes.length
    }
    return true
  }

  /** Sends the parts as one message; settles when the kernel has them, so that buffers may be used again. */
  async send(...parts: readonly Uint8Array[]): Promise<void> {
    const last = parts.at(-1)
    if (last === undefined) return
    await new Promise<void>((resolve, reject) => {
      const done = (error?: Error | null) => {
        if (error === undefined || error === null) resolve()
        else reject(new BackupError('E_NBD', 'the client has gone', { cause: error }))
      }
      this.#socket.cork()
      for (const part of parts.slice(0, -1)) this.#socket.write(part)
      this.#socket.write(last, done)
      this.#socket.uncork()
    })
  }

  /** Bytes that came and were not read. */
  get unread(): number {
    return this.#socket.readableLength
  }

  /** Gives the socket to whoever goes on with it, to TLS. */
  release(): Socket {
    this.#socket.off('readable', this.#wake)
    this.#socket.off('end', this.#end)
    this.#socket.off('close', this.#end)
    this.#socket.off('error', this.#end)
    return this.#socket
  }

  /** Lets what was sent arrive, and closes. */
  close(): void {
    this.#socket.end()
    this.#socket.destroySoon()
  }

  destroy(): void {
    this.#socket.destroy()
  }
}
