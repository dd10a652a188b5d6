import { BackupError, errorCodeOf } from '../base/errors.js'
import type { ImagePiece } from '../image/image-writer.js'
import type { RecoveryPoint } from '../model/recovery-point.js'

/** Ranges named in a message; all are in the map file. */
const RANGES_SHOWN = 8

/** Positions of the pieces that a store's E_DAMAGED for chunks lists; undefined for any other error. */
export function asChunkDamage(error: unknown): readonly number[] | undefined {
  if (!isDamage(error) || !('pieces' in error) || !Array.isArray(error.pieces)) return undefined
  const pieces: unknown[] = error.pieces
  const positions = pieces.flatMap(positionOf)
  return positions.length > 0 ? positions : undefined
}

function positionOf(piece: unknown): number[] {
  return typeof piece === 'object' && piece !== null && 'piece' in piece && typeof piece.piece === 'number'
    ? [piece.piece]
    : []
}

export function isDamage(error: unknown): error is Error {
  return errorCodeOf(error) === 'E_DAMAGED'
}

/** Lost ranges of one disk, kept sorted and merged. */
export class LostRanges {
  #ranges: ImagePiece[] = []

  add(range: ImagePiece): void {
    this.#ranges.push(range)
  }

  get isEmpty(): boolean {
    return this.#ranges.length === 0
  }

  /** Ascending, disjoint, neighbours merged. */
  list(): readonly ImagePiece[] {
    const merged: { offset: number; length: number }[] = []
    for (const { offset, length } of this.#ranges.toSorted((a, b) => a.offset - b.offset)) {
      const before = merged.at(-1)
      if (before !== undefined && before.offset + before.length >= offset) {
        before.length = Math.max(before.length, offset + length - before.offset)
      } else {
        merged.push({ offset, length })
      }
    }
    this.#ranges = merged
    return merged
  }
}

/** What a restore that stops says: the point, the disk, the bytes, and the ways on. */
export function damagedDisk(
  point: RecoveryPoint,
  target: string,
  lost: { readonly ranges: readonly ImagePiece[]; readonly cause: unknown },
): BackupError {
  const shown = lost.ranges.slice(0, RANGES_SHOWN).map(describeRange)
  const more = lost.ranges.length > RANGES_SHOWN ? [`and ${lost.ranges.length - RANGES_SHOWN} more`] : []
  const name = pointName(point)
  return new BackupError('E_DAMAGED', `${name}: disk ${target} cannot be restored, the store lost part of it`, {
    why: `Lost so far, in bytes of the disk: ${[...shown, ...more].join(', ')}. Nothing was left under the final name.`,
    hints: [
      `See what else is damaged: virtvault verify ${name} --level data`,
      'Restore an older point, or this one from another target.',
      `Take what can be read: virtvault restore ${name} --disk ${target} --to DIR --allow-damaged`,
    ],
    cause: lost.cause,
  })
}

function describeRange({ offset, length }: ImagePiece): string {
  return `[${offset}, ${offset + length})`
}

/** As people type it: `web01@3f9c2a1`. */
export function pointName(point: RecoveryPoint): string {
  return `${point.domain.name}@${point.id.slice(0, 7)}`
}
