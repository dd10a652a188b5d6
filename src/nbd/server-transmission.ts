import { BufferPool } from '../base/buffer-pool.js'
import { BackupError, errorCodeOf } from '../base/errors.js'
import {
  decodeRequest,
  encodeBlockStatus,
  encodeDataHeader,
  encodeEnd,
  encodeError,
  encodeHole,
  encodeSimpleReply,
  NBD_CMD,
  NBD_CMD_FLAG,
  NBD_ERROR,
  NBD_STATE,
  type NbdRequest,
  REQUEST_BYTES,
} from '../format/nbd-wire.js'
import { type Agreement, ALLOCATION_ID } from './server-negotiation.js'
import { MAX_REQUEST_BYTES, type ServedExtent } from './served-export.js'

/** A reply leaves in pieces of this size, each of which needs a buffer. */
const PIECE_BYTES = 512 * 1024
/** With PIECE_BYTES, the memory of one connection. */
const BUFFERS = 8
/** Requests under way; further ones stay in the socket. */
const MAX_UNDER_WAY = 16
/** Extents in one answer; a client asks on from where the last one ends. */
const MAX_EXTENTS = 4096

/** Told of reads that the disk cannot answer. Must not throw. */
export type OnReadFailure = (error: unknown) => void

/**
 * Answers requests until the client leaves. Settles when nothing is under way
 * any more. Rejects with E_NBD_PROTOCOL where the client stops making sense,
 * E_NBD where it goes in the middle.
 */
export async function serveRequests(
  agreement: Agreement,
  onReadFailure: OnReadFailure,
  signal: AbortSignal,
): Promise<void> {
  await new Transmission(agreement, onReadFailure, signal).run()
}

class Transmission {
  readonly #agreement: Agreement
  readonly #onReadFailure: OnReadFailure
  readonly #ended = new AbortController()
  readonly #signal: AbortSignal
  readonly #pool = new BufferPool(BUFFERS, PIECE_BYTES)
  readonly #underWay = new Set<Promise<void>>()
  /** Only structured replies may be mixed. */
  readonly #limit: number

  constructor(agreement: Agreement, onReadFailure: OnReadFailure, signal: AbortSignal) {
    this.#agreement = agreement
    this.#onReadFailure = onReadFailure
    this.#signal = AbortSignal.any([signal, this.#ended.signal])
    this.#limit = agreement.structured ? MAX_UNDER_WAY : 1
  }

  async run(): Promise<void> {
    const { socket } = this.#agreement
    let failure: unknown
    try {
      for (;;) {
        while (this.#underWay.size >= this.#limit) await Promise.race(this.#underWay)
        if (failure !== undefined) break
        const bytes = await socket.read(REQUEST_BYTES)
        if (bytes === undefined) {
          // Nobody waits for what is under way.
          failure ??= new BackupError('E_NBD', 'the client has gone without saying so')
          this.#ended.abort()
          break
        }
        const request = decodeRequest(bytes)
        if (request.type === NBD_CMD.disconnect) break
        // Its payload stands between it and the next request.
        if (request.type === NBD_CMD.write && !(await this.#discard(request.length))) break
        const task: Promise<void> = this.#answer(request)
          .catch((error: unknown) => {
            failure ??= error
            this.#ended.abort()
            socket.destroy()
          })
          .finally(() => this.#underWay.delete(task))
        this.#underWay.add(task)
      }
    } catch (error) {
      this.#ended.abort()
      throw error
    } finally {
      await Promise.all(this.#underWay)
    }
    if (failure !== undefined) throw failure instanceof Error ? failure : new Error('a reply failed')
  }

  async #discard(length: number): Promise<boolean> {
    if (length > MAX_REQUEST_BYTES) throw new BackupError('E_NBD_PROTOCOL', 'the client sends an endless write')
    return await this.#agreement.socket.discard(length)
  }

  async #answer(request: NbdRequest): Promise<void> {
    switch (request.type) {
      case NBD_CMD.read:
        return await this.#answerRead(request)
      case NBD_CMD.blockStatus:
        return await this.#answerBlockStatus(request)
      case NBD_CMD.flush:
        return await this.#succeed(request)
      case NBD_CMD.write:
      case NBD_CMD.trim:
      case NBD_CMD.writeZeroes:
        return await this.#fail(request, { number: NBD_ERROR.notPermitted, message: 'the export is read-only' })
      default:
        return await this.#fail(request, { number: NBD_ERROR.invalid, message: 'no such command' })
    }
  }

  async #answerRead(request: NbdRequest): Promise<void> {
    const { structured } = this.#agreement
    const isWhole = (request.flags & NBD_CMD_FLAG.dontFragment) !== 0
    const problem = this.#problemOf(request, structured ? NBD_CMD_FLAG.dontFragment : 0)
    if (problem !== undefined) return await this.#fail(request, problem)
    if (request.length > MAX_REQUEST_BYTES) {
      return await this.#fail(request, { number: NBD_ERROR.invalid, message: 'longer than the maximum block size' })
    }
    if (request.length === 0) return await this.#succeed(request)
    if (!structured) return await this.#readSimple(request)
    if (isWhole && request.length > PIECE_BYTES) {
      return await this.#fail(request, { number: NBD_ERROR.overflow, message: 'too long for an unfragmented reply' })
    }
    const end = request.offset + request.length
    for (let offset = request.offset; offset < end; ) {
      const length = Math.min(PIECE_BYTES, end - offset)
      const piece = { offset, length, isLast: offset + length === end }
      if (!(await this.#readPiece(request, piece, isWhole))) return
      offset += length
    }
  }

  /** False where the reply has ended with an error. */
  async #readPiece(
    { cookie }: NbdRequest,
    piece: { readonly offset: number; readonly length: number; readonly isLast: boolean },
    isWhole: boolean,
  ): Promise<boolean> {
    const { socket } = this.#agreement
    const buffer = await this.#pool.take(this.#signal)
    try {
      let extents: readonly ServedExtent[]
      try {
        extents = await this.#load(piece, buffer, { withZeros: isWhole })
      } catch (error) {
        const message = this.#explain(error)
        await socket.send(encodeError(cookie, { number: NBD_ERROR.io, message, offset: piece.offset }))
        return false
      }
      const isAllZero = extents.every(extent => extent.kind !== 'data')
      const parts: readonly ServedExtent[] = isAllZero
        ? [{ offset: piece.offset, length: piece.length, kind: 'zero' }]
        : isWhole
          ? [{ offset: piece.offset, length: piece.length, kind: 'data' }]
          : extents
      const messages = parts.flatMap(({ offset, length, kind }) => {
        const place = { offset, length, isLast: piece.isLast && offset + length === piece.offset + piece.length }
        if (kind !== 'data') return [encodeHole(cookie, place)]
        const start = offset - piece.offset
        return [encodeDataHeader(cookie, place), buffer.subarray(start, start + length)]
      })
      await socket.send(...messages)
      return true
    } finally {
      this.#pool.give(buffer)
    }
  }

  /** One header, then all bytes: where a later piece cannot be had, only hanging up is left. */
  async #readSimple(request: NbdRequest): Promise<void> {
    const { socket } = this.#agreement
    const end = request.offset + request.length
    const buffer = await this.#pool.take(this.#signal)
    try {
      for (let offset = request.offset; offset < end; ) {
        const length = Math.min(PIECE_BYTES, end - offset)
        try {
          await this.#load({ offset, length }, buffer, { withZeros: true })
        } catch (error) {
          const message = this.#explain(error)
          if (offset > request.offset) throw new BackupError('E_NBD_READ', message, { cause: error })
          return await this.#fail(request, { number: NBD_ERROR.io, message })
        }
        const header = offset === request.offset ? [encodeSimpleReply(request.cookie, NBD_ERROR.none)] : []
        await socket.send(...header, buffer.subarray(0, length))
        offset += length
      }
    } finally {
      this.#pool.give(buffer)
    }
  }

  /** Fills the buffer with a stretch of the disk, its zeros only if asked to, and tells what it is made of. */
  async #load(
    { offset, length }: { readonly offset: number; readonly length: number },
    buffer: Uint8Array,
    { withZeros }: { readonly withZeros: boolean },
  ): Promise<readonly ServedExtent[]> {
    const { disk } = this.#agreement.served
    const extents: ServedExtent[] = []
    for await (const extent of disk.extents(offset, offset + length, this.#signal)) extents.push(extent)
    const reads = extents.map(async extent => {
      const start = extent.offset - offset
      const out = buffer.subarray(start, start + extent.length)
      if (extent.kind === 'data') await disk.read(extent.offset, out, this.#signal)
      else if (withZeros) out.fill(0)
    })
    // The buffer must not be given back while anyone still writes to it.
    const [failed] = (await Promise.allSettled(reads)).filter(result => result.status === 'rejected')
    if (failed !== undefined) throw failed.reason
    return extents
  }

  async #answerBlockStatus(request: NbdRequest): Promise<void> {
    const { socket, served, allocation } = this.#agreement
    const problem = this.#problemOf(request, NBD_CMD_FLAG.requestOne)
    if (problem !== undefined) return await this.#fail(request, problem)
    if (!allocation || request.length === 0) {
      const message = allocation ? 'block status of nothing' : 'no meta context was agreed on'
      return await this.#fail(request, { number: NBD_ERROR.invalid, message })
    }
    const limit = (request.flags & NBD_CMD_FLAG.requestOne) === 0 ? MAX_EXTENTS : 1
    const extents: { length: number; readonly state: number }[] = []
    try {
      const end = request.offset + request.length
      for await (const extent of served.disk.extents(request.offset, end, this.#signal)) {
        const state = STATE_OF[extent.kind]
        const last = extents.at(-1)
        if (last !== undefined && last.state === state) last.length += extent.length
        else if (extents.length === limit) break
        else extents.push({ length: extent.length, state })
      }
    } catch (error) {
      const message = this.#explain(error)
      return await this.#fail(request, { number: NBD_ERROR.io, message })
    }
    await socket.send(encodeBlockStatus(request.cookie, ALLOCATION_ID, extents))
  }

  #problemOf(request: NbdRequest, allowedFlags: number): Problem | undefined {
    const { size } = this.#agreement.served.disk
    if ((request.flags & ~allowedFlags) !== 0) return { number: NBD_ERROR.invalid, message: 'flags not offered' }
    if (request.offset > size || request.length > size - request.offset) {
      return { number: NBD_ERROR.invalid, message: 'beyond the end of the disk' }
    }
    return undefined
  }

  #explain(error: unknown): string {
    this.#signal.throwIfAborted()
    this.#onReadFailure(error)
    return `the store could not give this back (${errorCodeOf(error)})`
  }

  async #succeed({ cookie }: NbdRequest): Promise<void> {
    const { socket, structured } = this.#agreement
    await socket.send(structured ? encodeEnd(cookie) : encodeSimpleReply(cookie, NBD_ERROR.none))
  }

  async #fail({ cookie }: NbdRequest, problem: Problem): Promise<void> {
    const { socket, structured } = this.#agreement
    await socket.send(structured ? encodeError(cookie, problem) : encodeSimpleReply(cookie, problem.number))
  }
}

interface Problem {
  readonly number: number
  readonly message: string
}

const STATE_OF: Record<ServedExtent['kind'], number> = {
  data: NBD_STATE.data,
  zero: NBD_STATE.zero,
  hole: NBD_STATE.hole | NBD_STATE.zero,
}
