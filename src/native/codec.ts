/**
 * Hashing, compression, encryption and record framing, on the libuv pool. All
 * buffers are borrowed until the promise settles: the caller must not touch
 * them before.
 */
export interface CodecBinding {
  /**
   * Names pieces of `bytes`. `spans` holds pairs (offset, length).
   * Id = SHA-256 (or HMAC-SHA-256 under `key`) over the byte `kind`, then the
   * plain bytes. Pieces that are all zero get `zero[i] = 1` and no id.
   */
  hashChunks(bytes: Uint8Array, spans: Uint32Array, options: HashOptions): Promise<HashedChunks>

  /**
   * Frames pieces of `bytes` as pack records, back to back, as docs/format.md
   * says. Rejects with E_INTERNAL where a record does not decode to what went
   * in (only with `verify`).
   */
  encodeRecords(bytes: Uint8Array, spans: Uint32Array, options: EncodeOptions): Promise<EncodedRecords>

  /**
   * Takes records apart, checks CRC, tag, lengths and id, and lays the plain
   * bytes at `outOffsets[i]` of `out`. Never throws for damage: each record has
   * a status of its own, and a damaged one leaves its place in `out` zeroed.
   */
  decodeRecords(bytes: Uint8Array, out: Uint8Array, options: DecodeOptions): Promise<Uint8Array>

  /** CRC32C (Castagnoli), as in RFC 3720, over `bytes`, continuing from `seed`. Synchronous. */
  crc32c(bytes: Uint8Array, seed?: number): number

  /** zstd of one buffer; for point files and other small things. Synchronous. */
  zstdCompress(bytes: Uint8Array, level: number): Uint8Array
  /** Rejects (throws E_DAMAGED) what does not decompress to exactly `plainLength` bytes. Synchronous. */
  zstdDecompress(bytes: Uint8Array, plainLength: number): Uint8Array
}

export interface HashOptions {
  readonly kind: number
  /** 32 bytes in an encrypted store. */
  readonly key?: Uint8Array | undefined
}

export interface HashedChunks {
  /** 32 bytes per piece; zeroes where `zero` is set. */
  readonly ids: Uint8Array
  readonly zero: Uint8Array
}

export interface RecordCipher {
  /** AES-256 key of this pack, 32 bytes. */
  readonly packKey: Uint8Array
  /** Additional data before the record's header: store id and pack id, 32 bytes. */
  readonly context: Uint8Array
}

export interface EncodeOptions {
  readonly kind: number
  /** 32 bytes per piece. */
  readonly ids: Uint8Array
  /** Number in the pack of the first record; the others follow. Nonce in an encrypted store. */
  readonly firstRecord: number
  /** zstd level; 0 stores plain. A piece that does not shrink is stored plain. */
  readonly level: number
  readonly cipher?: RecordCipher | undefined
  /** Key of the ids, for `verify` in an encrypted store. */
  readonly idKey?: Uint8Array | undefined
  /** Decodes and re-hashes every record before it is handed out. */
  readonly verify: boolean
}

export interface EncodedRecords {
  readonly bytes: Uint8Array
  /** Pairs (offset in `bytes`, length with header) per record. */
  readonly places: Uint32Array
}

export interface DecodeOptions {
  /** Offset in `bytes` of each record's header. */
  readonly offsets: Uint32Array
  /** Expected ids, 32 bytes each. */
  readonly ids: Uint8Array
  readonly kind: number
  /** Where each plain piece goes in `out`, and its room: pairs (offset, room). */
  readonly outSpans: Uint32Array
  readonly cipher?: RecordCipher | undefined
  readonly idKey?: Uint8Array | undefined
}

/** What decodeRecords says of one record. */
export const RECORD_STATUS = {
  ok: 0,
  badHeader: 1,
  badCrc: 2,
  badTag: 3,
  badCompression: 4,
  badId: 5,
  /** The plain length differs from the room given. */
  badLength: 6,
} as const
