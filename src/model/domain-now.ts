/** A domain as it is before its disks are rolled back. */
export interface DomainNow {
  readonly uuid: string
  readonly name: string
  readonly isOff: boolean
  readonly hasManagedSave: boolean
  readonly disks: readonly DiskNow[]
}

export type DiskNow =
  /** Cannot be written to from outside, and why. */
  | { readonly target: string; readonly obstacle: string }
  | ({ readonly target: string; readonly obstacle: undefined } & ImageNow)

/** An image of this machine. */
export interface ImageNow {
  readonly path: string
  readonly isBlockDevice: boolean
  readonly format: string
  /** Those that know of every write to the disk. */
  readonly bitmaps: readonly StoredBitmap[]
}

/** A dirty bitmap that is kept in an image. */
export interface StoredBitmap {
  readonly name: string
  /** Enabled, and saved in order: `in-use` ones miss what was written since they were loaded. */
  readonly isSound: boolean
}
