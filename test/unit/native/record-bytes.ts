// Records made by hand, from docs/format.md and node:crypto alone: what the
// addon writes is compared with this, and hostile ones are made by changing it.
import { createCipheriv, createHash, createHmac } from 'node:crypto'

import { native } from '../../../src/native/binding.js'
import type { RecordCipher } from '../../../src/native/codec.js'

export const HEADER_BYTES = 64
export const CHUNK = 1

export const CIPHER: RecordCipher = {
  packKey: Uint8Array.from({ length: 32 }, (_, i) => i),
  context: Uint8Array.from({ length: 32 }, (_, i) => 255 - i),
}
export const ID_KEY = Uint8Array.from({ length: 32 }, (_, i) => 100 + i)

/** One of: nothing, or everything that an encrypted store has. */
export interface Keys {
  readonly cipher?: RecordCipher | undefined
  readonly idKey?: Uint8Array | undefined
}
export const PLAIN_STORE: Keys = {}
export const ENCRYPTED_STORE: Keys = { cipher: CIPHER, idKey: ID_KEY }

export function idOf(plain: Uint8Array, keys: Keys = PLAIN_STORE, kind = CHUNK): Buffer {
  const hash = keys.idKey === undefined ? createHash('sha256') : createHmac('sha256', keys.idKey)
  return hash.update(Uint8Array.of(kind)).update(plain).digest()
}

export interface Fields {
  readonly magic?: string
  readonly kind?: number
  readonly flags?: number
  readonly headerLength?: number
  readonly number?: number
  readonly plainLength?: number
  readonly storedLength?: number
  readonly reserved?: number
  readonly id: Uint8Array
}

/** A record of `body` (what is stored, before encryption) with a right CRC, whatever the fields say. */
export function recordOf(body: Uint8Array, fields: Fields, cipher?: RecordCipher): Buffer {
  const header = Buffer.alloc(HEADER_BYTES)
  header.write(fields.magic ?? 'VVR1', 'latin1')
  header[4] = fields.kind ?? CHUNK
  header[5] = fields.flags ?? (cipher === undefined ? 0 : 2)
  header.writeUInt16LE(fields.headerLength ?? HEADER_BYTES, 6)
  header.writeUInt32LE(fields.number ?? 0, 8)
  header.writeUInt32LE(fields.plainLength ?? body.length, 12)
  header.writeUInt32LE(fields.storedLength ?? body.length + (cipher === undefined ? 0 : 16), 16)
  header.set(fields.id, 24)
  header.writeUInt8(fields.reserved ?? 0, 63)
  return withCrc(Buffer.concat([header, cipher === undefined ? body : sealed(body, header, cipher)]))
}

function sealed(body: Uint8Array, header: Buffer, cipher: RecordCipher): Buffer {
  const nonce = Buffer.alloc(12)
  nonce.writeBigUInt64LE(BigInt(header.readUInt32LE(8)), 4)
  const gcm = createCipheriv('aes-256-gcm', cipher.packKey, nonce)
  gcm.setAAD(Buffer.concat([cipher.context, header.subarray(0, 16), header.subarray(24, 56)]))
  return Buffer.concat([gcm.update(body), gcm.final(), gcm.getAuthTag()])
}

/** Makes the CRC of one whole record right again. */
export function withCrc(record: Buffer): Buffer {
  const covered = Buffer.concat([record.subarray(0, 20), record.subarray(24)])
  record.writeUInt32LE(native().crc32c(covered), 20)
  return record
}

export interface DecodeOne extends Keys {
  readonly id: Uint8Array
  readonly length: number
  readonly kind?: number
  readonly offset?: number
}

/** Decodes one record; the place for its bytes holds rubbish before. */
export async function decodeOne(record: Uint8Array, wanted: DecodeOne): Promise<{ status: number; plain: Buffer }> {
  const out = Buffer.alloc(wanted.length, 0xee)
  const statuses = await native().decodeRecords(record, out, {
    offsets: Uint32Array.of(wanted.offset ?? 0),
    ids: wanted.id,
    kind: wanted.kind ?? CHUNK,
    outSpans: Uint32Array.of(0, wanted.length),
    cipher: wanted.cipher,
    idKey: wanted.idKey,
  })
  return { status: statuses[0]!, plain: out }
}

export interface EncodeOne extends Keys {
  readonly level?: number
  readonly kind?: number
  readonly number?: number
}

export async function encodeOne(plain: Uint8Array, how: EncodeOne = {}): Promise<Buffer> {
  const kind = how.kind ?? CHUNK
  const { bytes } = await native().encodeRecords(plain, Uint32Array.of(0, plain.length), {
    kind,
    ids: idOf(plain, how, kind),
    firstRecord: how.number ?? 0,
    level: how.level ?? 1,
    verify: true,
    cipher: how.cipher,
  })
  return Buffer.from(bytes)
}
