import { native } from '../native/binding.js'
import { messageOf } from '../base/errors.js'
import { damaged, expectIntact } from './damage.js'

/*
 * JSON for people, with a checksum for us: the last member is "crc32c", eight
 * hex digits over every byte of the file before the comma that precedes it.
 */
const TAIL = /,\n {2}"crc32c": "([0-9a-f]{8})"\n\}\n$/
const TAIL_BYTES = ',\n  "crc32c": "00000000"\n}\n'.length
const MAX_BYTES = 16 * 1024 * 1024

/** `value` must have at least one member and none called crc32c. */
export function encodeCheckedJson(value: object): Uint8Array {
  const text = JSON.stringify(value, undefined, 2)
  const head = Buffer.from(text.slice(0, text.length - '\n}'.length), 'utf8')
  return Buffer.concat([head, Buffer.from(`,\n  "crc32c": "${checksum(head)}"\n}\n`, 'utf8')])
}

/** Throws E_DAMAGED. */
export function decodeCheckedJson(bytes: Uint8Array, what: string): unknown {
  expectIntact(bytes.length > TAIL_BYTES && bytes.length <= MAX_BYTES, what, `${bytes.length} bytes`)
  const head = bytes.subarray(0, bytes.length - TAIL_BYTES)
  const tail = TAIL.exec(Buffer.from(bytes.subarray(bytes.length - TAIL_BYTES)).toString('latin1'))
  expectIntact(tail !== null, what, 'it does not end in a checksum')
  expectIntact(tail[1] === checksum(head), what, 'wrong checksum')
  try {
    return JSON.parse(`${Buffer.from(head).toString('utf8')}\n}`) as unknown
  } catch (error) {
    throw damaged(what, messageOf(error), error)
  }
}

function checksum(bytes: Uint8Array): string {
  return native().crc32c(bytes).toString(16).padStart(8, '0')
}
