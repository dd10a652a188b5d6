/** `[offset, offset + length)` of a disk: bytes to read, or zeros that are allocated or not. */
export interface ServedExtent {
  readonly offset: number
  readonly length: number
  readonly kind: 'data' | 'zero' | 'hole'
}

/**
 * A disk as the NBD server sees it. Both calls may be under way any number of
 * times at once; whoever implements it bounds its memory.
 */
export interface ReadableDisk {
  readonly size: number
  /** All of `[from, to)`, ascending, without gaps, clipped to it. Rejects with E_DAMAGED. */
  extents(from: number, to: number, signal: AbortSignal): AsyncIterable<ServedExtent>
  /** Fills `out` from `offset` on. `out` is borrowed until it settles. Rejects with E_DAMAGED. */
  read(offset: number, out: Uint8Array, signal: AbortSignal): Promise<void>
}

export interface ServedExport {
  readonly name: string
  readonly description: string
  readonly disk: ReadableDisk
  /** A power of two: the size of reads that costs least. */
  readonly preferredBlock: number
}

/** The longest read that is answered, as told to clients. */
export const MAX_REQUEST_BYTES = 32 * 1024 * 1024
