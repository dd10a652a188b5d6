import { errorCodeOf } from '../base/errors.js'
import { TREE_FANOUT, type TreeRun, chunkCount, treeDepth } from '../model/disk-tree.js'
import { ID_BYTES } from '../format/record.js'
import { CHILD, type TreeNode } from '../format/tree-node.js'
import type { TreeDifference, TreeSide } from './store-types.js'
import {
  BELOW,
  HOLE,
  type NodeSource,
  type TreeEntry,
  childSpan,
  entriesOf,
  entryOfRoot,
  kindOfState,
} from './tree-nodes.js'

/** Nodes loaded ahead: few for whoever wants one place, a whole family for whoever walks on. */
const FIRST_WINDOW = 4

/** Every chunk of the disk from chunk `from` on, in disk order; neighbouring holes and zeros as one run. */
export async function* walkTree(nodes: NodeSource, side: TreeSide, from = 0): AsyncGenerator<TreeRun> {
  const walk = new TreeWalk(nodes, from, chunkCount(side.geometry))
  let last: TreeRun | undefined
  try {
    for await (const run of walk.subtree(entryOfRoot(side.root), treeDepth(side.geometry), 0)) {
      if (last !== undefined && last.kind === run.kind && run.kind !== 'data') {
        last = { kind: run.kind, first: last.first, count: last.count + run.count }
        continue
      }
      if (last !== undefined) yield last
      last = run
    }
  } catch (error) {
    // Whoever goes on behind a lost node must have got everything before it.
    if (last !== undefined) yield last
    throw error
  }
  if (last !== undefined) yield last
}

class TreeWalk {
  readonly #nodes: NodeSource
  readonly #from: number
  readonly #end: number

  constructor(nodes: NodeSource, from: number, end: number) {
    this.#nodes = nodes
    this.#from = from
    this.#end = end
  }

  /** Runs of the subtree at chunk `first` whose top node, if it has one, is of level `height - 1`. */
  async *subtree(entry: TreeEntry, height: number, first: number): AsyncGenerator<TreeRun> {
    if (entry.id === undefined) {
      const run = this.#uniform(entry, first, first + TREE_FANOUT ** height)
      if (run !== undefined) yield run
      return
    }
    const [node] = await this.#nodes.load(entry.id, height - 1)
    if (node !== undefined) yield* this.#children(node, first)
  }

  async *#children(node: TreeNode, first: number): AsyncGenerator<TreeRun> {
    if (node.level === 0) {
      yield* this.#chunks(node, first)
      return
    }
    const span = childSpan(node.level)
    const wanted = entriesOf(node)
      .map((entry, index) => ({ entry, first: first + index * span }))
      .filter(child => child.first + span > this.#from && child.first < this.#end)
    let window = FIRST_WINDOW
    for (let at = 0; at < wanted.length; at += window, window = TREE_FANOUT) {
      const part = wanted.slice(at, at + window)
      const named = part.map(child => child.entry.id).filter(id => id !== undefined)
      const loaded = await this.#loadTogether(named, node.level - 1)
      let next = 0
      for (const child of part) {
        if (child.entry.id === undefined) {
          const run = this.#uniform(child.entry, child.first, child.first + span)
          if (run !== undefined) yield run
          continue
        }
        const below = loaded?.[next++] ?? (await this.#nodes.load(child.entry.id, node.level - 1))[0]
        if (below !== undefined) yield* this.#children(below, child.first)
      }
    }
  }

  /** undefined where one of them is lost: then they are loaded one by one, so that those before it are had. */
  async #loadTogether(ids: readonly Uint8Array[], level: number): Promise<TreeNode[] | undefined> {
    if (ids.length === 0) return []
    try {
      return await this.#nodes.load(Buffer.concat(ids), level)
    } catch (error) {
      if (errorCodeOf(error) !== 'E_DAMAGED') throw error
      return undefined
    }
  }

  *#chunks(leaf: TreeNode, first: number): Generator<TreeRun> {
    const start = Math.max(first, this.#from)
    const end = Math.min(first + TREE_FANOUT, this.#end)
    let id = 0
    for (let chunk = first; chunk < start; chunk++) if (leaf.states[chunk - first] === CHILD.id) id++
    for (let chunk = start; chunk < end; ) {
      const state = leaf.states[chunk - first]
      let count = 1
      while (chunk + count < end && leaf.states[chunk + count - first] === state) count++
      if (state === CHILD.id) {
        yield { kind: 'data', first: chunk, count, ids: leaf.ids.subarray(id * ID_BYTES, (id + count) * ID_BYTES) }
        id += count
      } else {
        yield { kind: kindOfState(state ?? CHILD.hole), first: chunk, count }
      }
      chunk += count
    }
  }

  #uniform(entry: TreeEntry, first: number, end: number): TreeRun | undefined {
    const start = Math.max(first, this.#from)
    const count = Math.min(end, this.#end) - start
    if (count <= 0) return undefined
    return { kind: kindOfState(entry.state), first: start, count }
  }
}

/**
 * Chunks whose content may differ, in order, neighbours as one. Equal subtrees
 * are not looked into. A hole, a zero chunk, and what lies beyond a disk's end
 * are all the same content; what is as the images below is the same in both
 * trees, and different from all else: it is for the caller to know whether both
 * are on the same images.
 */
export async function* diffTrees(nodes: NodeSource, a: TreeSide, b: TreeSide): AsyncGenerator<TreeDifference> {
  const height = Math.max(treeDepth(a.geometry), treeDepth(b.geometry))
  const end = Math.max(chunkCount(a.geometry), chunkCount(b.geometry))
  const ends = { a: chunkCount(a.geometry), b: chunkCount(b.geometry) }
  const root = { first: 0, a: liftedRoot(a, height), b: liftedRoot(b, height) }
  let last: TreeDifference | undefined
  for await (const found of diffFamily({ nodes, ends }, [root], height)) {
    const count = Math.min(found.count, end - found.first)
    if (count <= 0) continue
    if (last !== undefined && last.first + last.count === found.first) {
      last = { first: last.first, count: last.count + count }
      continue
    }
    if (last !== undefined) yield last
    last = { first: found.first, count }
  }
  if (last !== undefined) yield last
}

/** The same place in both trees. A side is an entry, or the family of children that a smaller tree was lifted into. */
interface Pair {
  readonly first: number
  readonly a: Side
  readonly b: Side
}

type Side = TreeEntry | readonly Side[]

/** A smaller tree, as the first child of first children, as high as the larger. */
function liftedRoot(side: TreeSide, height: number): Side {
  let root: Side = entryOfRoot(side.root)
  if (root.id === undefined) return root
  for (let level = treeDepth(side.geometry); level < height; level++) {
    root = [root, ...Array.from({ length: TREE_FANOUT - 1 }, () => HOLE)]
  }
  return root
}

interface Diff {
  readonly nodes: NodeSource
  /** Chunks of each disk: what lies beyond is a hole, also where a whole subtree is said to be as below. */
  readonly ends: { readonly a: number; readonly b: number }
}

async function* diffFamily(diff: Diff, family: readonly Pair[], height: number): AsyncGenerator<TreeDifference> {
  const { nodes, ends } = diff
  const span = TREE_FANOUT ** height
  const isCut = ({ first, a, b }: Pair) =>
    isCutBelow(a, { first, span, end: ends.a }) || isCutBelow(b, { first, span, end: ends.b })
  const different = family.filter(pair => !isSame(pair.a, pair.b) || isCut(pair))
  if (height === 0) {
    for (const pair of different) yield { first: pair.first, count: 1 }
    return
  }
  const [inA, inB] = await Promise.all([
    childrenOf(
      nodes,
      different.map(pair => pair.a),
      height - 1,
    ),
    childrenOf(
      nodes,
      different.map(pair => pair.b),
      height - 1,
    ),
  ])
  const childrenSpan = childSpan(height - 1)
  for (const [index, pair] of different.entries()) {
    if (isUniform(pair.a) && isUniform(pair.b) && !isCut(pair)) {
      yield { first: pair.first, count: span }
      continue
    }
    const [a, b] = [inA[index] ?? [], inB[index] ?? []]
    const children = Array.from({ length: TREE_FANOUT }, (_, child) => {
      const first = pair.first + child * childrenSpan
      return { first, a: within(a[child], first < ends.a), b: within(b[child], first < ends.b) }
    })
    yield* diffFamily(diff, children, height - 1)
  }
}

function within(side: Side | undefined, isOnDisk: boolean): Side {
  return side === undefined || (isBelow(side) && !isOnDisk) ? HOLE : side
}

function isBelow(side: Side): boolean {
  return !isFamily(side) && side.state === BELOW.state
}

/** A subtree that is as below, and ends behind the disk. */
function isCutBelow(
  side: Side,
  { first, span, end }: { readonly first: number; readonly span: number; readonly end: number },
): boolean {
  return isBelow(side) && end - first < span
}

async function childrenOf(nodes: NodeSource, sides: readonly Side[], level: number): Promise<(readonly Side[])[]> {
  const named = sides.map(side => (isFamily(side) ? undefined : side.id)).filter(id => id !== undefined)
  const loaded = named.length === 0 ? [] : await nodes.load(Buffer.concat(named), level)
  let next = 0
  return sides.map(side => {
    if (isFamily(side)) return side
    if (side.id === undefined) return Array.from({ length: TREE_FANOUT }, () => side)
    const node = loaded[next++]
    return node === undefined ? [] : entriesOf(node)
  })
}

function isFamily(side: Side): side is readonly Side[] {
  return Array.isArray(side)
}

/** Of one kind all over: nothing below it tells more. */
function isUniform(side: Side): boolean {
  return !isFamily(side) && side.id === undefined
}

function isSame(a: Side, b: Side): boolean {
  if (isFamily(a) || isFamily(b)) return false
  if (a.id === undefined || b.id === undefined) {
    return a.id === b.id && (a.state === BELOW.state) === (b.state === BELOW.state)
  }
  return Buffer.compare(a.id, b.id) === 0
}
