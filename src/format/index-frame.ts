import { toHex, fromHex, sameBytes } from '../base/hex.js'
import { expectIntact } from './damage.js'
import { INDEX_VALUE_BYTES, PACK_STATE_BYTES, type PackState, decodePackState, encodePackState } from './index-value.js'
import { PACK_ID_BYTES } from './pack.js'
import { ID_BYTES } from './record.js'

/**
 * What processes that share one index say to each other on its socket.
 *
 *     frame    length u32 | body                        little-endian; length of the body
 *     hello    magic 8 | version u32                    the first frame of either side
 *     request  number u32 | kind u8 | payload
 *     answer   number u32 | kind u8 | payload           number of the request; 0 where it answers none
 *
 * Nothing of it is kept on disk. Decoders throw E_DAMAGED; whoever sends such a
 * frame is not spoken to any more.
 */

/** Entries in one request or answer; larger things are said in parts. */
export const MAX_FRAME_ENTRIES = 4096

const VERSION = 1
const HELLO_MAGIC = Buffer.from('VVINDEX1', 'latin1')
const HELLO_BYTES = HELLO_MAGIC.length + 4
const LENGTH_BYTES = 4
const HEAD_BYTES = 5
const ENTRY_BYTES = ID_BYTES + INDEX_VALUE_BYTES
const PACK_BYTES = PACK_ID_BYTES + PACK_STATE_BYTES
/** A put of as many entries as there may be, for as many packs. */
const MAX_BODY_BYTES = HEAD_BYTES + 4 + MAX_FRAME_ENTRIES * (ENTRY_BYTES + PACK_BYTES)
const MAX_MESSAGE_BYTES = 1024
/** Of one frame before they are put together. */
const MAX_PENDING_PIECES = 256
const MAX_NUMBER = 2 ** 32 - 1
const WHAT = 'a frame of the index socket'

/** A pack and what the index knows of it. */
export interface PackEntryState {
  /** In hex. */
  readonly id: string
  readonly state: PackState
}

/** `ids` and `values` are in the same order, at most MAX_FRAME_ENTRIES of them. */
export type IndexRequest =
  | { readonly kind: 'get'; readonly ids: Uint8Array }
  | {
      readonly kind: 'put'
      readonly ids: Uint8Array
      readonly values: Uint8Array
      readonly packs: readonly PackEntryState[]
    }
  /** Deletes what still has exactly this value. */
  | { readonly kind: 'delete'; readonly ids: Uint8Array; readonly values: Uint8Array }
  /** The next entries after an id, in id order. */
  | { readonly kind: 'page'; readonly after: Uint8Array | undefined }
  | { readonly kind: 'packPage'; readonly after: string | undefined }
  | { readonly kind: 'getPacks'; readonly packIds: readonly string[] }
  | { readonly kind: 'deletePacks'; readonly packIds: readonly string[] }
  /** Makes the index anew from the packs. */
  | { readonly kind: 'reset' }

export type IndexAnswer =
  /** Zeroes where there is none. */
  | { readonly kind: 'values'; readonly values: Uint8Array }
  | { readonly kind: 'entries'; readonly ids: Uint8Array; readonly values: Uint8Array }
  /** Those that are known. */
  | { readonly kind: 'packs'; readonly packs: readonly PackEntryState[] }
  | { readonly kind: 'done' }
  | { readonly kind: 'failed'; readonly message: string }
  /** Something takes long; the answer will come. */
  | { readonly kind: 'busy' }

export interface Numbered<T> {
  readonly number: number
  readonly content: T
}

const REQUEST = { get: 1, put: 2, delete: 3, page: 4, packPage: 5, getPacks: 6, deletePacks: 7, reset: 8 } as const
const ANSWER = { values: 65, entries: 66, packs: 67, done: 68, failed: 69, busy: 70 } as const

export function encodeHello(): Uint8Array {
  const body = Buffer.alloc(HELLO_BYTES)
  HELLO_MAGIC.copy(body)
  body.writeUInt32LE(VERSION, HELLO_MAGIC.length)
  return framed([body])
}

/** The other side's version, which may be one that cannot be spoken with (see isSpoken). */
export function decodeHello(body: Uint8Array): number {
  expectIntact(body.length === HELLO_BYTES, WHAT, 'no hello')
  expectIntact(sameBytes(body.subarray(0, HELLO_MAGIC.length), HELLO_MAGIC), WHAT, 'no hello')
  return viewOf(body).getUint32(HELLO_MAGIC.length, true)
}

export function isSpoken(version: number): boolean {
  return version === VERSION
}

export function encodeRequest({ number, content }: Numbered<IndexRequest>): Uint8Array {
  const head = headOf(number, REQUEST[content.kind])
  switch (content.kind) {
    case 'get':
      return framed([head, content.ids])
    case 'put': {
      const count = Buffer.alloc(4)
      count.writeUInt32LE(content.ids.length / ID_BYTES)
      return framed([head, count, content.ids, content.values, ...content.packs.map(encodePack)])
    }
    case 'delete':
      return framed([head, content.ids, content.values])
    case 'page':
      return framed(content.after === undefined ? [head] : [head, content.after])
    case 'packPage':
      return framed(content.after === undefined ? [head] : [head, fromHex(content.after)])
    case 'getPacks':
    case 'deletePacks':
      return framed([head, ...content.packIds.map(fromHex)])
    case 'reset':
      return framed([head])
  }
}

export function decodeRequest(body: Uint8Array): Numbered<IndexRequest> {
  const { number, kind, payload } = openBody(body)
  return { number, content: requestOf(kind, payload) }
}

export function encodeAnswer({ number, content }: Numbered<IndexAnswer>): Uint8Array {
  const head = headOf(number, ANSWER[content.kind])
  switch (content.kind) {
    case 'values':
      return framed([head, content.values])
    case 'entries':
      return framed([head, content.ids, content.values])
    case 'packs':
      return framed([head, ...content.packs.map(encodePack)])
    case 'failed':
      return framed([head, Buffer.from(content.message).subarray(0, MAX_MESSAGE_BYTES)])
    case 'done':
    case 'busy':
      return framed([head])
  }
}

export function decodeAnswer(body: Uint8Array): Numbered<IndexAnswer> {
  const { number, kind, payload } = openBody(body)
  return { number, content: answerOf(kind, payload) }
}

/** Cuts a stream into the bodies of its frames; holds one incomplete frame at most. */
export class FrameReader {
  #pending: Uint8Array[] = []
  #length = 0

  /** Gives what is complete. Throws E_DAMAGED on a length that no frame has; nothing more is to be read then. */
  push(bytes: Uint8Array): Uint8Array[] {
    this.#pending.push(bytes)
    this.#length += bytes.length
    if (this.#pending.length > MAX_PENDING_PIECES) this.#join()
    const bodies: Uint8Array[] = []
    for (let body = this.#take(); body !== undefined; body = this.#take()) bodies.push(body)
    return bodies
  }

  #take(): Uint8Array | undefined {
    if (this.#length < LENGTH_BYTES) return undefined
    if ((this.#pending[0]?.length ?? 0) < LENGTH_BYTES) this.#join()
    const length = viewOf(this.#pending[0] ?? new Uint8Array(LENGTH_BYTES)).getUint32(0, true)
    expectIntact(length >= HEAD_BYTES && length <= MAX_BODY_BYTES, WHAT, `${length} bytes`)
    if (this.#length - LENGTH_BYTES < length) return undefined
    const all = this.#join()
    const rest = all.subarray(LENGTH_BYTES + length)
    this.#pending = rest.length === 0 ? [] : [rest]
    this.#length = rest.length
    return all.subarray(LENGTH_BYTES, LENGTH_BYTES + length)
  }

  #join(): Uint8Array {
    const [first, ...others] = this.#pending
    const all = first !== undefined && others.length === 0 ? first : Buffer.concat(this.#pending)
    this.#pending = [all]
    return all
  }
}

function requestOf(kind: number, payload: Uint8Array): IndexRequest {
  switch (kind) {
    case REQUEST.get:
      countOf(payload, ID_BYTES)
      return { kind: 'get', ids: payload }
    case REQUEST.put:
      return putOf(payload)
    case REQUEST.delete:
      return { kind: 'delete', ...entriesOf(payload) }
    case REQUEST.page:
      return { kind: 'page', after: cursorOf(payload, ID_BYTES) }
    case REQUEST.packPage: {
      const after = cursorOf(payload, PACK_ID_BYTES)
      return { kind: 'packPage', after: after === undefined ? undefined : toHex(after) }
    }
    case REQUEST.getPacks:
      return { kind: 'getPacks', packIds: packIdsOf(payload) }
    case REQUEST.deletePacks:
      return { kind: 'deletePacks', packIds: packIdsOf(payload) }
    case REQUEST.reset:
      expectIntact(payload.length === 0, WHAT, 'more than was to be said')
      return { kind: 'reset' }
    default:
      expectIntact(false, WHAT, `unknown request ${kind}`)
  }
}

function answerOf(kind: number, payload: Uint8Array): IndexAnswer {
  switch (kind) {
    case ANSWER.values:
      countOf(payload, INDEX_VALUE_BYTES)
      return { kind: 'values', values: payload }
    case ANSWER.entries:
      return { kind: 'entries', ...entriesOf(payload) }
    case ANSWER.packs:
      return { kind: 'packs', packs: packsOf(payload) }
    case ANSWER.failed:
      expectIntact(payload.length <= MAX_MESSAGE_BYTES, WHAT, 'a message that is too long')
      return { kind: 'failed', message: Buffer.from(payload).toString() }
    case ANSWER.done:
    case ANSWER.busy:
      expectIntact(payload.length === 0, WHAT, 'more than was to be said')
      return { kind: kind === ANSWER.done ? 'done' : 'busy' }
    default:
      expectIntact(false, WHAT, `unknown answer ${kind}`)
  }
}

function putOf(payload: Uint8Array): IndexRequest {
  expectIntact(payload.length >= 4, WHAT, 'no count')
  const count = viewOf(payload).getUint32(0, true)
  expectIntact(count <= MAX_FRAME_ENTRIES && count * ENTRY_BYTES <= payload.length - 4, WHAT, `${count} entries`)
  const end = 4 + count * ENTRY_BYTES
  return { kind: 'put', ...entriesOf(payload.subarray(4, end)), packs: packsOf(payload.subarray(end)) }
}

function entriesOf(payload: Uint8Array): { readonly ids: Uint8Array; readonly values: Uint8Array } {
  const count = countOf(payload, ENTRY_BYTES)
  return { ids: payload.subarray(0, count * ID_BYTES), values: payload.subarray(count * ID_BYTES) }
}

function encodePack({ id, state }: PackEntryState): Uint8Array {
  const bytes = fromHex(id)
  return Buffer.concat([bytes, encodePackState(bytes, state)])
}

function packsOf(payload: Uint8Array): PackEntryState[] {
  const count = countOf(payload, PACK_BYTES)
  return Array.from({ length: count }, (_, index) => {
    const bytes = payload.subarray(index * PACK_BYTES, (index + 1) * PACK_BYTES)
    const id = bytes.subarray(0, PACK_ID_BYTES)
    const state = decodePackState(id, bytes.subarray(PACK_ID_BYTES))
    expectIntact(state !== undefined, WHAT, 'a pack with a wrong checksum')
    return { id: toHex(id), state }
  })
}

function packIdsOf(payload: Uint8Array): string[] {
  const count = countOf(payload, PACK_ID_BYTES)
  return Array.from({ length: count }, (_, index) =>
    toHex(payload.subarray(index * PACK_ID_BYTES, (index + 1) * PACK_ID_BYTES)),
  )
}

function cursorOf(payload: Uint8Array, length: number): Uint8Array | undefined {
  if (payload.length === 0) return undefined
  expectIntact(payload.length === length, WHAT, `a cursor of ${payload.length} bytes`)
  return payload
}

function countOf(payload: Uint8Array, each: number): number {
  const count = payload.length / each
  expectIntact(Number.isInteger(count) && count <= MAX_FRAME_ENTRIES, WHAT, `${payload.length} bytes of payload`)
  return count
}

function openBody(body: Uint8Array): { readonly number: number; readonly kind: number; readonly payload: Uint8Array } {
  expectIntact(body.length >= HEAD_BYTES && body.length <= MAX_BODY_BYTES, WHAT, `${body.length} bytes`)
  const view = viewOf(body)
  return { number: view.getUint32(0, true), kind: view.getUint8(4), payload: body.subarray(HEAD_BYTES) }
}

function headOf(number: number, kind: number): Uint8Array {
  const head = Buffer.alloc(HEAD_BYTES)
  head.writeUInt32LE(number % MAX_NUMBER)
  head.writeUInt8(kind, 4)
  return head
}

function framed(parts: readonly Uint8Array[]): Uint8Array {
  const length = Buffer.alloc(LENGTH_BYTES)
  length.writeUInt32LE(parts.reduce((sum, part) => sum + part.length, 0))
  return Buffer.concat([length, ...parts])
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
}
