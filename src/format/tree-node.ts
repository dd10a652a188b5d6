import { TREE_FANOUT } from '../model/disk-tree.js'
import { expectIntact } from './damage.js'
import { ID_BYTES } from './record.js'

const NODE_VERSION = 1
/** Of a node with children that are as the images below; older versions must not take those for zeros. */
const BELOW_VERSION = 2
const STATES_AT = 4
const NODE_HEAD_BYTES = STATES_AT + TREE_FANOUT / 4
export const MAX_NODE_BYTES = NODE_HEAD_BYTES + TREE_FANOUT * ID_BYTES
/** 128^9 chunks are more than a 64-bit size can name. */
export const MAX_NODE_LEVEL = 8

/** What a child is; two bits each in the node. */
export const CHILD = { hole: 0, zero: 1, id: 2, below: 3 } as const

/** States that stand for a whole subtree as well: no node is stored for that. */
const UNIFORM = [CHILD.hole, CHILD.zero, CHILD.below] as const

export interface TreeNode {
  /** 0: the children are chunks. */
  readonly level: number
  /** One of CHILD per child. */
  readonly states: Uint8Array
  /** Ids of the children with state CHILD.id, in order, 32 bytes each. */
  readonly ids: Uint8Array
}

export function encodeTreeNode(node: TreeNode): Uint8Array {
  const bytes = new Uint8Array(NODE_HEAD_BYTES + node.ids.length)
  bytes[0] = node.states.includes(CHILD.below) ? BELOW_VERSION : NODE_VERSION
  bytes[1] = node.level
  for (let child = 0; child < TREE_FANOUT; child++) {
    const at = STATES_AT + (child >> 2)
    bytes[at] = (bytes[at] ?? 0) | ((node.states[child] ?? 0) << (2 * (child & 3)))
  }
  bytes.set(node.ids, NODE_HEAD_BYTES)
  return bytes
}

/** `ids` of the result is a view of `bytes`. Throws E_DAMAGED. */
export function decodeTreeNode(bytes: Uint8Array): TreeNode {
  const what = 'a tree node'
  expectIntact(bytes.length >= NODE_HEAD_BYTES && bytes.length <= MAX_NODE_BYTES, what, `${bytes.length} bytes`)
  const version = bytes[0] ?? 0
  expectIntact(version === NODE_VERSION || version === BELOW_VERSION, what, `unknown version ${version}`)
  const level = bytes[1] ?? 0
  expectIntact(level <= MAX_NODE_LEVEL, what, `level ${level}`)
  expectIntact(bytes[2] === 0 && bytes[3] === 0, what, 'reserved bytes are set')
  const states = new Uint8Array(TREE_FANOUT)
  const counts = [0, 0, 0, 0]
  for (let child = 0; child < TREE_FANOUT; child++) {
    const state = ((bytes[STATES_AT + (child >> 2)] ?? 0) >> (2 * (child & 3))) & 3
    states[child] = state
    counts[state] = (counts[state] ?? 0) + 1
  }
  const hasBelow = (counts[CHILD.below] ?? 0) > 0
  expectIntact(hasBelow === (version === BELOW_VERSION), what, 'its child states are not of its version')
  const named = counts[CHILD.id] ?? 0
  expectIntact(bytes.length === NODE_HEAD_BYTES + named * ID_BYTES, what, 'ids do not match the child states')
  expectIntact(!UNIFORM.some(state => counts[state] === TREE_FANOUT), what, 'it names nothing')
  return { level, states, ids: bytes.subarray(NODE_HEAD_BYTES) }
}
