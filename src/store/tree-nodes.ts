import { invariant } from '../base/invariant.js'
import { TREE_FANOUT } from '../model/disk-tree.js'
import type { TreeRoot } from '../model/recovery-point.js'
import { damaged } from '../format/damage.js'
import { ID_BYTES } from '../format/record.js'
import { CHILD, type TreeNode } from '../format/tree-node.js'

/** Loads tree nodes. */
export interface NodeSource {
  /** Nodes by id (32 bytes each), all of one level. Rejects with E_DAMAGED. */
  load(ids: Uint8Array, level: number): Promise<TreeNode[]>
}

/** What stands in a tree for one subtree, or one chunk: a state, and an id where it is CHILD.id. */
export interface TreeEntry {
  readonly state: number
  readonly id: Uint8Array | undefined
}

export const HOLE: TreeEntry = { state: CHILD.hole, id: undefined }
export const ZERO: TreeEntry = { state: CHILD.zero, id: undefined }
export const BELOW: TreeEntry = { state: CHILD.below, id: undefined }

/** A state that needs no id: of a chunk, or of all chunks of a subtree. */
export type UniformKind = 'hole' | 'zero' | 'below'

export function entryOfKind(kind: UniformKind): TreeEntry {
  switch (kind) {
    case 'hole':
      return HOLE
    case 'zero':
      return ZERO
    case 'below':
      return BELOW
  }
}

/** Of a state other than CHILD.id. */
export function kindOfState(state: number): UniformKind {
  switch (state) {
    case CHILD.zero:
      return 'zero'
    case CHILD.below:
      return 'below'
    default:
      invariant(state === CHILD.hole, 'I6: a tree knows four states')
      return 'hole'
  }
}

export function entryOfRoot(root: TreeRoot): TreeEntry {
  return root.kind === 'node' ? { state: CHILD.id, id: root.id } : entryOfKind(root.kind)
}

/** The id is a copy: it outlives the node that it was taken from. */
export function rootOfEntry(entry: TreeEntry): TreeRoot {
  if (entry.id !== undefined) return { kind: 'node', id: Uint8Array.from(entry.id) }
  return { kind: kindOfState(entry.state) }
}

/** Chunks below one child of a node of `level`. */
export function childSpan(level: number): number {
  return TREE_FANOUT ** level
}

/** All children of a node, in order. */
export function entriesOf(node: TreeNode): TreeEntry[] {
  let at = 0
  return Array.from(node.states, state => {
    if (state !== CHILD.id) return entryOfKind(kindOfState(state))
    const id = node.ids.subarray(at, at + ID_BYTES)
    at += ID_BYTES
    return { state, id }
  })
}

/** One node, checked to be of `level`. Rejects with E_DAMAGED. */
export async function loadNode(nodes: NodeSource, id: Uint8Array, level: number): Promise<TreeNode> {
  const [node] = await nodes.load(id, level)
  if (node === undefined) throw damaged('a disk tree', 'a node is missing')
  return node
}
