/**
 * Hashing, compression, encryption and record framing, on the libuv pool. All
 * buffers are borrowed until the promise settles: the caller must not touch
 * them before. A wrong argument is a bug: each function throws a TypeError that
 * names it, at once. Buffers handed out are the caller's alone.
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
   * says. With `verify`, rejects with E_INTERNAL where a record does not decode
   * to what went in, or that is not what `sums` says it was when it was named.
   */
  encodeRecords(bytes: Uint8Array, spans: Uint32Array, options: EncodeOptions): Promise<EncodedRecords>

  /**
   * Takes records apart, checks CRC, tag, lengths and id, and lays the plain
   * bytes at `outOffsets[i]` of `out`. Never throws for damage: each record has
   * a status of its own, and a damaged one leaves its place in `out` zeroed.
   */
  decodeRecords(bytes: Uint8Array, out: Uint8Array, options: DecodeOptions): Promise<Uint8Array>

  /**
   * Walks records from `offset` of `bytes` (under 4 GiB) while they are whole
   * and their CRC is right: what rebuilds an index from an unsealed pack. Needs
   * no key, and so says nothing of tags and ids; nor does it ask that the
   * record numbers follow one another. Never throws for damage.
   */
  scanRecords(bytes: Uint8Array, offset: number): Promise<ScannedRecords>

  /** CRC32C (Castagnoli), as in RFC 3720, over `bytes`, continuing from `seed`. Synchronous. */
  crc32c(bytes: Uint8Array, seed?: number): number

  /**
   * CRC32C over each of `ids` (32 bytes) and the first 36 bytes of its of
   * `values` (40 bytes each): what the last 4 of a value of the index must be,
   * as docs/format.md says. Throws a TypeError where there are not as many of
   * both. Synchronous.
   */
  indexSums(ids: Uint8Array, values: Uint8Array): Uint32Array

  /** zstd of one buffer; for point files and other small things. Synchronous. */
  zstdCompress(bytes: Uint8Array, level: number): Uint8Array
  /**
   * zstd of pieces of `bytes`, a frame each, on the libuv pool. The frame of a
   * piece is at the piece's own offset in `out`, which is as long as `bytes`;
   * the result has its length, 0 where the piece does not shrink. `spans` holds
   * pairs (offset, length), disjoint.
   */
  zstdPieces(
    bytes: Uint8Array,
    spans: Uint32Array,
    options: { readonly level: number; readonly out: Uint8Array },
  ): Promise<Uint32Array>
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
  /** CRC32C of the plain bytes of each piece; 0 where `zero` is set. */
  readonly sums: Uint32Array
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
  /** Decodes every record and compares it with the plain bytes before it is handed out. */
  readonly verify: boolean
  /** What hashChunks said of each piece, for `verify`: that its bytes are still the ones that were named. */
  readonly sums?: Uint32Array | undefined
  /** Where to; has room for the plain bytes and, per piece, a header and a tag. Without it a new buffer is made. */
  readonly out?: Uint8Array | undefined
}

export interface EncodedRecords {
  /** The start of `out`, where that was given. */
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

export interface ScannedRecords {
  /** Six per record: offset of its header in `bytes`, record number, kind, flags, plain length, stored length. */
  readonly fields: Uint32Array
  /** 32 bytes per record. */
  readonly ids: Uint8Array
  /** Where the walk stopped: just after the last good record. */
  readonly end: number
  /** Why, one of SCAN_STOP. */
  readonly stop: number
}

/** Why scanRecords stopped. */
export const SCAN_STOP = {
  /** At the end of `bytes`. */
  end: 0,
  /** A record begins whose end is not in `bytes`: torn, or more must be read. */
  torn: 1,
  /** What is there is no record: no header, or a wrong CRC. */
  damaged: 2,
} as const

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
