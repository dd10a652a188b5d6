import { invariant } from '../base/invariant.js'

/** Numbers per piece: offset in the export, length, offset in the buffer. */
export const PIECE_FIELDS = 3

/** Sum of the lengths. */
export function bytesOf(pieces: Float64Array): number {
  let total = 0
  for (let i = 1; i < pieces.length; i += PIECE_FIELDS) total += pieces[i] ?? 0
  return total
}

/**
 * Cuts `pieces` into at most `count` runs of about the same number of bytes,
 * in order, each cut a multiple of `unit` from the start of its piece.
 */
export function splitPieces(pieces: Float64Array, count: number, unit: number): Float64Array[] {
  invariant(pieces.length % PIECE_FIELDS === 0, 'pieces are triples')
  const share = Math.ceil(bytesOf(pieces) / count / unit) * unit
  const runs: number[][] = []
  let run: number[] = []
  let room = share
  for (let i = 0; i < pieces.length; i += PIECE_FIELDS) {
    let offset = pieces[i] ?? 0
    let left = pieces[i + 1] ?? 0
    let at = pieces[i + 2] ?? 0
    while (left > 0) {
      const part = Math.min(left, Math.max(Math.floor(room / unit) * unit, unit))
      run.push(offset, part, at)
      offset += part
      at += part
      left -= part
      room -= part
      if (room <= 0 && runs.length < count - 1) {
        runs.push(run)
        run = []
        room = share
      } else if (room <= 0) {
        room = Infinity
      }
    }
  }
  if (run.length > 0) runs.push(run)
  return runs.map(numbers => Float64Array.from(numbers))
}
