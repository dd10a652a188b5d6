import { BackupError } from '../base/errors.js'

/** A piece that could not be had. */
export interface DamagedPiece {
  /** Position in the list that was asked for. */
  readonly piece: number
  /** The pack that has it, in hex; undefined where none is known. */
  readonly pack: string | undefined
  readonly offset: number | undefined
  readonly reason: string
}

/** E_DAMAGED with the pieces that it is about. The one refinement of BackupError: the list is for programs. */
export class DamagedChunksError extends BackupError {
  readonly pieces: readonly DamagedPiece[]

  constructor(pieces: readonly DamagedPiece[], asked: number) {
    const first = pieces[0]
    super('E_DAMAGED', `${pieces.length} of ${asked} stored pieces cannot be read`, {
      why:
        first === undefined
          ? undefined
          : `${first.reason}${first.pack === undefined ? '' : ` in pack ${first.pack} at ${first.offset ?? 0}`}`,
      hints: ['Run verify to see which recovery points are hurt.'],
    })
    this.pieces = pieces
  }
}
