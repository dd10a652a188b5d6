import { createCipheriv } from 'node:crypto'

export const KIB = 1024
export const MIB = 1024 * KIB
export const GIB = 1024 * MIB

/** What to write: one byte repeated, or bytes without pattern, the same for the same seed. */
export type Fill = number | { readonly seed: number }

/** `length` bytes of `fill`, counted from the start of the fill, not of the disk. */
export function fillBytes(fill: Fill, length: number): Buffer {
  if (typeof fill === 'number') return Buffer.alloc(length, fill)
  const key = Buffer.alloc(16)
  key.writeDoubleLE(fill.seed)
  return createCipheriv('aes-128-ctr', key, Buffer.alloc(16)).update(Buffer.alloc(length))
}
