import type { DiskGeometry } from '../model/disk-tree.js'

/** A blob up to this is one record of kind 3; a larger one is a disk tree, and its id that of the root node. */
export const MAX_BLOB_RECORD_BYTES = 8 * 1024 * 1024

export function isOneRecord(length: number): boolean {
  return length <= MAX_BLOB_RECORD_BYTES
}

/** The disk that a larger blob is. */
export function blobGeometry(length: number, chunkSize: number): DiskGeometry {
  return { size: length, chunkSize }
}
