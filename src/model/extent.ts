/** A run of bytes of an export with one status, `[offset, offset + length)`. */
export interface Extent {
  readonly offset: number
  readonly length: number
  /** Written since the base checkpoint; everything where there is none. */
  readonly dirty: boolean
  /** Reads as zeros. */
  readonly zero: boolean
  /** Not allocated. Says nothing about content. */
  readonly hole: boolean
}
