import { throwIfAborted } from '../base/async.js'
import { errorCodeOf } from '../base/errors.js'
import { toHex } from '../base/hex.js'
import { TREE_FANOUT, chunkCount, treeDepth } from '../model/disk-tree.js'
import type { TreeDifference, TreeSide } from './store-types.js'
import { type NodeSource, type TreeEntry, childSpan, entriesOf, entryOfRoot } from './tree-nodes.js'

/** Subtrees remembered to hold nothing that is lost; about 100 bytes each. */
const MAX_CLEAN = 500_000

/**
 * Finds where disk trees name what is lost. Subtrees that trees share are
 * walked once.
 */
export class LostRangeFinder {
  readonly #nodes: NodeSource
  readonly #isLost: (id: Uint8Array) => boolean
  readonly #clean = new Set<string>()

  /** `isLost` is asked for chunks and nodes alike; a node that cannot be loaded is lost too. */
  constructor(nodes: NodeSource, isLost: (id: Uint8Array) => boolean) {
    this.#nodes = nodes
    this.#isLost = isLost
  }

  /** Runs of chunks, ascending, neighbours as one. Rejects with E_IO, E_INTERRUPTED. */
  async *find(side: TreeSide, signal: AbortSignal): AsyncGenerator<TreeDifference> {
    const end = chunkCount(side.geometry)
    let last: TreeDifference | undefined
    for await (const run of this.#subtree(
      entryOfRoot(side.root),
      { height: treeDepth(side.geometry), first: 0 },
      signal,
    )) {
      const count = Math.min(run.count, end - run.first)
      if (count <= 0) continue
      if (last !== undefined && last.first + last.count === run.first) {
        last = { first: last.first, count: last.count + count }
        continue
      }
      if (last !== undefined) yield last
      last = { first: run.first, count }
    }
    if (last !== undefined) yield last
  }

  async *#subtree(
    entry: TreeEntry,
    place: { readonly height: number; readonly first: number },
    signal: AbortSignal,
  ): AsyncGenerator<TreeDifference> {
    if (entry.id === undefined) return
    const { height, first } = place
    const span = TREE_FANOUT ** height
    if (this.#isLost(entry.id)) {
      yield { first, count: span }
      return
    }
    if (height === 0) return
    throwIfAborted(signal)
    const key = toHex(entry.id)
    if (this.#clean.has(key)) return
    const children = await this.#children(entry.id, height - 1)
    if (children === undefined) {
      yield { first, count: span }
      return
    }
    let isClean = true
    for (const [at, child] of children.entries()) {
      const below = { height: height - 1, first: first + at * childSpan(height - 1) }
      for await (const run of this.#subtree(child, below, signal)) {
        isClean = false
        yield run
      }
    }
    if (isClean && this.#clean.size < MAX_CLEAN) this.#clean.add(key)
  }

  async #children(id: Uint8Array, level: number): Promise<TreeEntry[] | undefined> {
    try {
      const [node] = await this.#nodes.load(id, level)
      return node === undefined ? undefined : entriesOf(node)
    } catch (error) {
      if (errorCodeOf(error) !== 'E_DAMAGED') throw error
      return undefined
    }
  }
}
