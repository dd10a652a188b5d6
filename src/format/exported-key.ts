import { createHash } from 'node:crypto'

import { BackupError } from '../base/errors.js'
import { sameBytes } from '../base/hex.js'
import { KEY_BYTES } from './key-slot.js'

/*
 * The master key as people print it, lock it away and type it back:
 *
 *   VVKEY1-XXXX-XXXX-…-XXXX     16 groups: base32 of 40 bytes
 *   [0, 4) of the store's id | [4, 36) master key | [36, 40) of SHA-256(label, [0, 36))
 *
 * Crockford's alphabet has no I, L, O, U; what is mistaken for them when typed is understood.
 */
const PREFIX = 'VVKEY1'
const ALPHABET = '0123456789ABCDEFGHJKMNPQRSTVWXYZ'
const STORE_BYTES = 4
const CHECK_BYTES = 4
const CHECK_LABEL = 'virtvault exported key v1'
const BYTES = STORE_BYTES + KEY_BYTES + CHECK_BYTES
const LETTERS = (BYTES * 8) / 5
const GROUP = 4

export interface ExportedKey {
  /** First four bytes of the id of the store that it opens. */
  readonly store: Uint8Array
  /** The caller's to wipe. */
  readonly master: Uint8Array
}

export function encodeExportedKey(storeId: Uint8Array, master: Uint8Array): string {
  const bytes = new Uint8Array(BYTES)
  bytes.set(storeId.subarray(0, STORE_BYTES), 0)
  bytes.set(master, STORE_BYTES)
  bytes.set(checkOf(bytes), STORE_BYTES + KEY_BYTES)
  const letters = toBase32(bytes)
  bytes.fill(0)
  const groups = Array.from({ length: LETTERS / GROUP }, (_, at) => letters.slice(at * GROUP, (at + 1) * GROUP))
  return [PREFIX, ...groups].join('-')
}

/** Whether `text` means to be an exported key; a passphrase that begins like one is taken for one. */
export function isExportedKey(text: string): boolean {
  return normalized(text).startsWith(PREFIX)
}

/** Blanks, line ends, dashes and case do not matter. Throws E_KEY for one that was mistyped. */
export function decodeExportedKey(text: string): ExportedKey {
  const letters = normalized(text).slice(PREFIX.length).replaceAll('O', '0').replace(/[IL]/g, '1')
  if (!isExportedKey(text) || letters.length !== LETTERS || !/^[0-9A-HJKMNP-TV-Z]*$/.test(letters)) {
    throw mistyped(`it has ${letters.length} letters after ${PREFIX} where ${LETTERS} of ${ALPHABET} belong`)
  }
  const bytes = fromBase32(letters)
  const intact = sameBytes(bytes.subarray(STORE_BYTES + KEY_BYTES), checkOf(bytes))
  const key = { store: bytes.slice(0, STORE_BYTES), master: bytes.slice(STORE_BYTES, STORE_BYTES + KEY_BYTES) }
  bytes.fill(0)
  if (!intact) throw mistyped('its last letters do not fit the others')
  return key
}

function mistyped(why: string): BackupError {
  return new BackupError('E_KEY', 'the exported key is mistyped', { why, hints: ['compare it with the printed one'] })
}

function normalized(text: string): string {
  return text.replace(/[\s-]/g, '').toUpperCase()
}

function checkOf(bytes: Uint8Array): Uint8Array {
  const head = bytes.subarray(0, STORE_BYTES + KEY_BYTES)
  return createHash('sha256').update(CHECK_LABEL).update(head).digest().subarray(0, CHECK_BYTES)
}

function toBase32(bytes: Uint8Array): string {
  let letters = ''
  let bits = 0
  let value = 0
  for (const byte of bytes) {
    value = ((value << 8) | byte) & 0xfff
    bits += 8
    for (; bits >= 5; bits -= 5) letters += ALPHABET[(value >> (bits - 5)) & 31] ?? ''
  }
  return letters
}

function fromBase32(letters: string): Uint8Array {
  const bytes = new Uint8Array(BYTES)
  let bits = 0
  let value = 0
  let at = 0
  for (const letter of letters) {
    value = ((value << 5) | ALPHABET.indexOf(letter)) & 0xfff
    bits += 5
    if (bits < 8) continue
    bits -= 8
    bytes[at++] = (value >> bits) & 0xff
  }
  return bytes
}
