import { Buffer } from 'node:buffer'

import { BackupError } from '../base/errors.js'

/**
 * The NBD protocol's transmission phase, server side: what a client asks and
 * what it is answered. Numbers are big-endian, as in the protocol's own text
 * (`doc/proto.md` of the reference implementation). The negotiation is in
 * nbd-options.ts.
 */

export const REQUEST_BYTES = 28
const REQUEST_MAGIC = 0x25609513
const SIMPLE_REPLY_MAGIC = 0x67446698
const CHUNK_MAGIC = 0x668e33ef
const CHUNK_HEADER_BYTES = 20
/** The protocol's limit for texts. */
const MAX_TEXT_BYTES = 4096

export const NBD_CMD = {
  read: 0,
  write: 1,
  disconnect: 2,
  flush: 3,
  trim: 4,
  cache: 5,
  writeZeroes: 6,
  blockStatus: 7,
} as const

export const NBD_CMD_FLAG = { fua: 1, noHole: 2, dontFragment: 4, requestOne: 8, fastZero: 16 } as const

/** Transmission flags: what an export offers. */
export const NBD_FLAG = { hasFlags: 1, readOnly: 2, sendDontFragment: 1 << 7, canMultiConnect: 1 << 8 } as const

/** Error numbers of the protocol. */
export const NBD_ERROR = {
  none: 0,
  notPermitted: 1,
  io: 5,
  noMemory: 12,
  invalid: 22,
  overflow: 75,
  shutdown: 108,
} as const

const CHUNK_TYPE = { none: 0, data: 1, hole: 2, blockStatus: 5, error: 0x8001, errorAtOffset: 0x8002 } as const
const CHUNK_DONE = 1

/** What block status says in `base:allocation`. */
export const NBD_STATE = { data: 0, hole: 1, zero: 2 } as const

export interface NbdRequest {
  readonly flags: number
  /** One of NBD_CMD, or anything else. */
  readonly type: number
  /** Eight bytes that the reply repeats. */
  readonly cookie: Uint8Array
  /** Clamped to 2^53 - 1, where no disk reaches. */
  readonly offset: number
  readonly length: number
}

/** Throws E_NBD_PROTOCOL where these 28 bytes are no request; then nothing behind them can be told apart any more. */
export function decodeRequest(bytes: Uint8Array): NbdRequest {
  const view = viewOf(bytes)
  if (bytes.length !== REQUEST_BYTES || view.getUint32(0) !== REQUEST_MAGIC) {
    throw new BackupError('E_NBD_PROTOCOL', 'the client sent what is no NBD request')
  }
  return {
    flags: view.getUint16(4),
    type: view.getUint16(6),
    cookie: Uint8Array.from(bytes.subarray(8, 16)),
    offset: decodeOffset(view, 16),
    length: view.getUint32(24),
  }
}

/** What a client sends; for tests. */
export function encodeRequest(request: NbdRequest): Buffer {
  const bytes = Buffer.alloc(REQUEST_BYTES)
  bytes.writeUInt32BE(REQUEST_MAGIC, 0)
  bytes.writeUInt16BE(request.flags, 4)
  bytes.writeUInt16BE(request.type, 6)
  bytes.set(request.cookie, 8)
  bytes.writeBigUInt64BE(BigInt(request.offset), 16)
  bytes.writeUInt32BE(request.length, 24)
  return bytes
}

/** The data of a read follows, where `error` is none. */
export function encodeSimpleReply(cookie: Uint8Array, error: number): Buffer {
  const bytes = Buffer.alloc(16)
  bytes.writeUInt32BE(SIMPLE_REPLY_MAGIC, 0)
  bytes.writeUInt32BE(error, 4)
  bytes.set(cookie, 8)
  return bytes
}

/** A place in a structured reply: `isLast` ends the reply. */
export interface ChunkPlace {
  readonly isLast: boolean
  readonly offset: number
  readonly length: number
}

/** `length` bytes of data follow. */
export function encodeDataHeader(cookie: Uint8Array, place: ChunkPlace): Buffer {
  const bytes = chunk(cookie, { type: CHUNK_TYPE.data, isLast: place.isLast, payload: 8, follows: place.length })
  bytes.writeBigUInt64BE(BigInt(place.offset), CHUNK_HEADER_BYTES)
  return bytes
}

/** `length` zero bytes that are not sent. */
export function encodeHole(cookie: Uint8Array, place: ChunkPlace): Buffer {
  const bytes = chunk(cookie, { type: CHUNK_TYPE.hole, isLast: place.isLast, payload: 12 })
  bytes.writeBigUInt64BE(BigInt(place.offset), CHUNK_HEADER_BYTES)
  bytes.writeUInt32BE(place.length, CHUNK_HEADER_BYTES + 8)
  return bytes
}

/** Ends a structured reply that has nothing more to say. */
export function encodeEnd(cookie: Uint8Array): Buffer {
  return chunk(cookie, { type: CHUNK_TYPE.none, isLast: true, payload: 0 })
}

/** Ends a structured reply with an error, which is about `offset` where one is given. */
export function encodeError(
  cookie: Uint8Array,
  error: { readonly number: number; readonly message: string; readonly offset?: number | undefined },
): Buffer {
  const text = Buffer.from(error.message, 'utf8').subarray(0, MAX_TEXT_BYTES)
  const isPlaced = error.offset !== undefined
  const payload = 6 + text.length + (isPlaced ? 8 : 0)
  const type = isPlaced ? CHUNK_TYPE.errorAtOffset : CHUNK_TYPE.error
  const bytes = chunk(cookie, { type, isLast: true, payload })
  bytes.writeUInt32BE(error.number, CHUNK_HEADER_BYTES)
  bytes.writeUInt16BE(text.length, CHUNK_HEADER_BYTES + 4)
  bytes.set(text, CHUNK_HEADER_BYTES + 6)
  if (error.offset !== undefined) {
    bytes.writeBigUInt64BE(BigInt(error.offset), CHUNK_HEADER_BYTES + 6 + text.length)
  }
  return bytes
}

/** The whole reply to a block status request: neighbouring extents from the offset that was asked for. */
export function encodeBlockStatus(
  cookie: Uint8Array,
  context: number,
  extents: readonly { readonly length: number; readonly state: number }[],
): Buffer {
  const bytes = chunk(cookie, { type: CHUNK_TYPE.blockStatus, isLast: true, payload: 4 + 8 * extents.length })
  bytes.writeUInt32BE(context, CHUNK_HEADER_BYTES)
  extents.forEach(({ length, state }, index) => {
    bytes.writeUInt32BE(length, CHUNK_HEADER_BYTES + 4 + 8 * index)
    bytes.writeUInt32BE(state, CHUNK_HEADER_BYTES + 8 + 8 * index)
  })
  return bytes
}

interface ChunkShape {
  readonly type: number
  readonly isLast: boolean
  /** Bytes behind the header that are in this buffer. */
  readonly payload: number
  /** Bytes that are sent behind this buffer. */
  readonly follows?: number
}

function chunk(cookie: Uint8Array, shape: ChunkShape): Buffer {
  const bytes = Buffer.alloc(CHUNK_HEADER_BYTES + shape.payload)
  bytes.writeUInt32BE(CHUNK_MAGIC, 0)
  bytes.writeUInt16BE(shape.isLast ? CHUNK_DONE : 0, 4)
  bytes.writeUInt16BE(shape.type, 6)
  bytes.set(cookie, 8)
  bytes.writeUInt32BE(shape.payload + (shape.follows ?? 0), 16)
  return bytes
}

function decodeOffset(view: DataView, at: number): number {
  return Math.min(Number(view.getBigUint64(at)), Number.MAX_SAFE_INTEGER)
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}
