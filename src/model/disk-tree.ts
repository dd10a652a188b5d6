/** Children of one tree node. A constant of format v1. */
export const TREE_FANOUT = 128

export interface DiskGeometry {
  /** Bytes; the last chunk may be shorter than the others. */
  readonly size: number
  readonly chunkSize: number
}

export function chunkCount(geometry: DiskGeometry): number {
  return Math.ceil(geometry.size / geometry.chunkSize)
}

/** Bytes of chunk `index`. */
export function chunkLength(geometry: DiskGeometry, index: number): number {
  return Math.min(geometry.chunkSize, geometry.size - index * geometry.chunkSize)
}

/** Levels of nodes above the chunks; at least one. */
export function treeDepth(geometry: DiskGeometry): number {
  let depth = 1
  for (let reach = TREE_FANOUT; reach < chunkCount(geometry); reach *= TREE_FANOUT) depth++
  return depth
}

/** A run of chunks as a tree gives them back, in disk order. */
export type TreeRun =
  /** below: as the images that the point leaves out; these read as zeros past their end. */
  | { readonly kind: 'hole' | 'zero' | 'below'; readonly first: number; readonly count: number }
  /** `ids` holds 32 bytes per chunk. */
  | { readonly kind: 'data'; readonly first: number; readonly count: number; readonly ids: Uint8Array }
