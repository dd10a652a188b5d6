import { Buffer } from 'node:buffer'

import { BackupError } from '../base/errors.js'

/** The NBD protocol's fixed-newstyle negotiation, server side. The transmission phase is in nbd-wire.ts. */

const MAGIC = Buffer.from('NBDMAGIC')
const OPTION_MAGIC = Buffer.from('IHAVEOPT')
const REPLY_MAGIC = Buffer.from('0003e889045565a9', 'hex')

export const CLIENT_FLAGS_BYTES = 4
export const OPTION_HEADER_BYTES = 16
/** The protocol's limit for names and texts. */
const MAX_TEXT_BYTES = 4096

export const HANDSHAKE_FLAG = { fixedNewstyle: 1, noZeroes: 2 } as const

export const NBD_OPT = {
  exportName: 1,
  abort: 2,
  list: 3,
  startTls: 5,
  info: 6,
  go: 7,
  structuredReply: 8,
  listMetaContext: 9,
  setMetaContext: 10,
} as const

/** Types of replies to options. */
export const NBD_REP = {
  ack: 1,
  server: 2,
  info: 3,
  metaContext: 4,
  unsupported: 0x80000001,
  policy: 0x80000002,
  invalid: 0x80000003,
  tlsRequired: 0x80000005,
  unknown: 0x80000006,
  tooBig: 0x80000009,
} as const

export const NBD_INFO = { export: 0, name: 1, description: 2, blockSize: 3 } as const

/** The first bytes on every connection. */
export function encodeGreeting(): Buffer {
  return Buffer.concat([MAGIC, OPTION_MAGIC, uint16(HANDSHAKE_FLAG.fixedNewstyle | HANDSHAKE_FLAG.noZeroes)])
}

/** Throws E_NBD_PROTOCOL for a client that does not speak fixed newstyle, or wants what was not offered. */
export function decodeClientFlags(bytes: Uint8Array): { readonly noZeroes: boolean } {
  const flags = new Cursor(bytes).uint32()
  const known = HANDSHAKE_FLAG.fixedNewstyle | HANDSHAKE_FLAG.noZeroes
  if ((flags & HANDSHAKE_FLAG.fixedNewstyle) === 0 || (flags & ~known) !== 0) {
    throw wrong('the client does not speak fixed newstyle NBD')
  }
  return { noZeroes: (flags & HANDSHAKE_FLAG.noZeroes) !== 0 }
}

export interface OptionHeader {
  /** One of NBD_OPT, or anything else. */
  readonly option: number
  /** Bytes of data that follow. */
  readonly length: number
}

/** Throws E_NBD_PROTOCOL. */
export function decodeOptionHeader(bytes: Uint8Array): OptionHeader {
  const cursor = new Cursor(bytes)
  if (!OPTION_MAGIC.equals(cursor.take(OPTION_MAGIC.length))) throw wrong('the client sent what is no NBD option')
  return { option: cursor.uint32(), length: cursor.uint32() }
}

/** What a client sends; for tests. */
export function encodeOption(option: number, data: Uint8Array): Buffer {
  return Buffer.concat([OPTION_MAGIC, uint32(option), uint32(data.length), data])
}

export interface ExportRequest {
  readonly name: string
  /** Of NBD_INFO, or anything else. */
  readonly infos: readonly number[]
}

/** Data of the options info and go. Throws E_NBD_PROTOCOL. */
export function decodeExportRequest(data: Uint8Array): ExportRequest {
  const cursor = new Cursor(data)
  const name = cursor.text()
  const infos = Array.from({ length: cursor.uint16() }, () => cursor.uint16())
  cursor.end()
  return { name, infos }
}

/** Data of the option exportName. Throws E_NBD_PROTOCOL. */
export function decodeExportName(data: Uint8Array): string {
  return new Cursor(data).textOf(data.length)
}

export interface MetaQuery {
  readonly name: string
  readonly queries: readonly string[]
}

/** Data of the options for meta contexts. Throws E_NBD_PROTOCOL. */
export function decodeMetaQuery(data: Uint8Array): MetaQuery {
  const cursor = new Cursor(data)
  const name = cursor.text()
  const queries: string[] = []
  for (let left = cursor.uint32(); left > 0; left--) queries.push(cursor.text())
  cursor.end()
  return { name, queries }
}

export function encodeOptionReply(option: number, type: number, data: Uint8Array = new Uint8Array()): Buffer {
  return Buffer.concat([REPLY_MAGIC, uint32(option), uint32(type), uint32(data.length), data])
}

/** Data of a `server` reply. */
export function encodeServerName(name: string): Buffer {
  const text = Buffer.from(name)
  return Buffer.concat([uint32(text.length), text])
}

/** Data of an `info` reply about the export itself. */
export function encodeExportInfo(size: number, flags: number): Buffer {
  return Buffer.concat([uint16(NBD_INFO.export), uint64(size), uint16(flags)])
}

/** Data of an `info` reply: name or description. */
export function encodeTextInfo(info: number, text: string): Buffer {
  return Buffer.concat([uint16(info), Buffer.from(text)])
}

export interface BlockSizes {
  readonly minimum: number
  readonly preferred: number
  readonly maximum: number
}

/** Data of an `info` reply about block sizes. */
export function encodeBlockSizes({ minimum, preferred, maximum }: BlockSizes): Buffer {
  return Buffer.concat([uint16(NBD_INFO.blockSize), uint32(minimum), uint32(preferred), uint32(maximum)])
}

/** Data of a `metaContext` reply. */
export function encodeMetaContext(id: number, name: string): Buffer {
  return Buffer.concat([uint32(id), Buffer.from(name)])
}

/** The whole answer to the option exportName. */
export function encodeExportNameReply(
  served: { readonly size: number; readonly flags: number },
  noZeroes: boolean,
): Buffer {
  return Buffer.concat([uint64(served.size), uint16(served.flags), Buffer.alloc(noZeroes ? 0 : 124)])
}

/** Reads fields in order; whatever does not fit is E_NBD_PROTOCOL. */
class Cursor {
  readonly #bytes: Uint8Array
  #at = 0

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes
  }

  take(length: number): Buffer {
    if (length > this.#bytes.length - this.#at) throw wrong('the client sent an option that is too short')
    const taken = Buffer.from(this.#bytes.buffer, this.#bytes.byteOffset + this.#at, length)
    this.#at += length
    return taken
  }

  uint16(): number {
    return this.take(2).readUInt16BE()
  }

  uint32(): number {
    return this.take(4).readUInt32BE()
  }

  /** A text behind its length. */
  text(): string {
    return this.textOf(this.uint32())
  }

  textOf(length: number): string {
    if (length > MAX_TEXT_BYTES) throw wrong('the client sent a name that is too long')
    const bytes = this.take(length)
    try {
      return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
    } catch (cause) {
      throw wrong('the client sent a name that is no UTF-8', cause)
    }
  }

  end(): void {
    if (this.#at !== this.#bytes.length) throw wrong('the client sent an option that is too long')
  }
}

function wrong(message: string, cause?: unknown): BackupError {
  return new BackupError('E_NBD_PROTOCOL', message, { cause })
}

function uint16(value: number): Buffer {
  const bytes = Buffer.alloc(2)
  bytes.writeUInt16BE(value)
  return bytes
}

function uint32(value: number): Buffer {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32BE(value)
  return bytes
}

function uint64(value: number): Buffer {
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64BE(BigInt(value))
  return bytes
}
