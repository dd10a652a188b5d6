import { native } from '../native/binding.js'
import { expectIntact } from './damage.js'

const FIXED_BYTES = 16
const SUM_BYTES = 4
const VERSION = 1

/** What tells one kind of list from another. */
export interface ListShape {
  /** 8 characters. */
  readonly magic: string
  /** Bytes between the count and the first entry. */
  readonly headBytes: number
  readonly entryBytes: number
  /** For people, in an error. */
  readonly what: string
}

export interface ListParts {
  readonly head: Uint8Array
  /** Each of `entryBytes`. */
  readonly entries: readonly Uint8Array[]
}

/** magic 8, version u32, count u32, head, entries, crc32c of all before; little-endian. */
export function encodeList(shape: ListShape, parts: ListParts): Uint8Array {
  const start = FIXED_BYTES + shape.headBytes
  const bytes = new Uint8Array(start + parts.entries.length * shape.entryBytes + SUM_BYTES)
  const view = new DataView(bytes.buffer)
  bytes.set(Buffer.from(shape.magic, 'latin1'), 0)
  view.setUint32(8, VERSION, true)
  view.setUint32(12, parts.entries.length, true)
  bytes.set(parts.head, FIXED_BYTES)
  parts.entries.forEach((entry, index) => bytes.set(entry, start + index * shape.entryBytes))
  const end = bytes.length - SUM_BYTES
  view.setUint32(end, native().crc32c(bytes.subarray(0, end)), true)
  return bytes
}

/** The parts are copies. Throws E_DAMAGED. */
export function decodeList(shape: ListShape, bytes: Uint8Array): ListParts {
  const { what, entryBytes } = shape
  const start = FIXED_BYTES + shape.headBytes
  expectIntact(bytes.length >= start + SUM_BYTES, what, `${bytes.length} bytes`)
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  expectIntact(Buffer.from(bytes.subarray(0, 8)).toString('latin1') === shape.magic, what, 'wrong magic')
  const end = bytes.length - SUM_BYTES
  expectIntact(view.getUint32(end, true) === native().crc32c(bytes.subarray(0, end)), what, 'wrong checksum')
  expectIntact(view.getUint32(8, true) === VERSION, what, 'unknown version')
  const count = view.getUint32(12, true)
  expectIntact(count * entryBytes === end - start, what, 'wrong count')
  const entries = Array.from({ length: count }, (_, index) => {
    const at = start + index * entryBytes
    return bytes.slice(at, at + entryBytes)
  })
  return { head: bytes.slice(FIXED_BYTES, start), entries }
}
