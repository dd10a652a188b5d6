import { randomBytes } from 'node:crypto'

/** Unpredictable bytes; tests pass their own. */
export type RandomSource = (length: number) => Uint8Array

/** The operating system's. */
export const systemRandom: RandomSource = length => randomBytes(length)
