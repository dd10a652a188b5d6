/** What a record holds. The kind is part of what an id is computed over. */
export const RECORD_KIND = { chunk: 1, node: 2, blob: 3 } as const

export const RECORD_FLAG = { zstd: 1, encrypted: 2 } as const

export const ID_BYTES = 32
export const RECORD_HEADER_BYTES = 64
/** Authentication tag that follows the payload of an encrypted record; part of its stored length. */
export const TAG_BYTES = 16
/** Plain bytes of one record; a chunk has at most 4 MiB of them. */
export const MAX_RECORD_BYTES = 16 * 1024 * 1024

export interface RecordHeader {
  readonly kind: number
  readonly flags: number
  readonly record: number
  readonly plainLength: number
  /** Payload as stored, without this header. */
  readonly storedLength: number
}

/**
 * Reads the header at `offset` of bytes that the native codec wrote a moment
 * ago. What comes from disk is taken apart by the native codec alone.
 */
export function readRecordHeader(bytes: DataView, offset: number): RecordHeader {
  return {
    kind: bytes.getUint8(offset + 4),
    flags: bytes.getUint8(offset + 5),
    record: bytes.getUint32(offset + 8, true),
    plainLength: bytes.getUint32(offset + 12, true),
    storedLength: bytes.getUint32(offset + 16, true),
  }
}
