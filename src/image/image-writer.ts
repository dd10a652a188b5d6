/** A run of bytes of the image, `[offset, offset + length)`. */
export interface ImagePiece {
  readonly offset: number
  readonly length: number
}

/**
 * Where one restored disk goes. The writer owns what it creates: leaving its
 * scope without commit() undoes, and no file ever carries the final name
 * before it is complete and durable.
 *
 * The pieces of all calls, write() and zero() together, are disjoint and
 * ascend: a call begins where an earlier one ended, or after it. So a writer
 * needs one pass and memory that does not grow with the disk. Calls may overlap
 * in time as long as they are made in that order.
 */
export interface ImageWriter extends AsyncDisposable {
  /** What people call it: the final path, the device or the export. */
  readonly name: string
  /** Bytes of the disk that it shows. */
  readonly size: number
  /** What is never written reads as zeros; otherwise every zero must be told with zero(). */
  readonly startsZeroed: boolean

  /**
   * Writes `bytes`, which holds the pieces back to back. The memory is borrowed
   * until the promise settles. Rejects with E_NO_SPACE, E_IO, E_INTERRUPTED;
   * then the image is lost and can only be disposed.
   */
  write(pieces: readonly ImagePiece[], bytes: Uint8Array, signal: AbortSignal): Promise<void>

  /** What an interrupted restore of it can go on with; only images with a `partial` name have it. */
  readonly resume?: ResumePort | undefined

  /** Makes a range read as zeros, without allocating it where the image can. Rejects as write(). */
  zero(offset: number, length: number, signal: AbortSignal): Promise<void>

  /**
   * Notes that part of the content is lost: a file will be called
   * `NAME.damaged.EXT` instead (`name` says so from now on); a device, export
   * or stream has no name to mark. Rejects with E_EXISTS where that name is taken.
   */
  markDamaged(): Promise<void>

  /**
   * Makes everything durable and gives it its final name, as the last step.
   * Rejects with E_EXISTS (something took the name meanwhile), E_NO_SPACE, E_IO;
   * then nothing has the final name, and what had it before is untouched.
   */
  commit(signal: AbortSignal): Promise<ImageOutcome>
}

/** An image whose file outlives its writer. */
export interface ResumePort {
  /** Whether an earlier writer left something. Nothing of that is believed: see recall(). */
  readonly isAdopted: boolean
  /**
   * As write(), of bytes that the file may hold already: reads what is where
   * they belong into `bytes` (zeros behind the file's end), and asks `settle`,
   * which says whether that is right, or puts the right bytes there: then they
   * are written. Resolves to what `settle` said. One call at a time.
   */
  recall(
    pieces: readonly ImagePiece[],
    bytes: Uint8Array,
    settle: () => Promise<boolean>,
    signal: AbortSignal,
  ): Promise<boolean>
  /** Instead of commit(): leaves the file under its partial name. Disposing does nothing afterwards. */
  keep(): Promise<void>
}

/** Bytes. */
export interface ImageOutcome {
  /** Guest data written, metadata not counted. */
  readonly dataBytes: number
  /** Of the finished file; the disk's size for devices, exports and streams. */
  readonly fileBytes: number
}

export type ImageFormat = 'qcow2' | 'raw'

/**
 * off: allocate what is written. metadata: tables for the whole disk, file
 * sparse. falloc: every byte reserved on the file system. full: every byte written.
 */
export type Preallocation = 'off' | 'metadata' | 'falloc' | 'full'

export interface FileOwner {
  readonly uid: number
  readonly gid: number
}

/** What all images in files have in common. */
export interface ImageFileOptions {
  /** Final path. */
  readonly path: string
  readonly size: number
  /** Name of the temporary instead of a random one, in the same directory. What an interrupted writer left there is adopted. */
  readonly partial?: string | undefined
  /** Replace what carries the final name; without it that is E_EXISTS. */
  readonly force?: boolean | undefined
  readonly preallocation?: Preallocation | undefined
  /** For QEMU; given before the file gets its final name. */
  readonly owner?: FileOwner | undefined
  /** Permission bits of the finished file; 0o600 unless said otherwise. */
  readonly mode?: number | undefined
}

/** Total bytes of pieces. */
export function pieceBytes(pieces: readonly ImagePiece[]): number {
  let total = 0
  for (const piece of pieces) total += piece.length
  return total
}
