import { invariant } from '../base/invariant.js'
import { ID_BYTES } from '../format/record.js'
import { CHILD, type TreeNode, encodeTreeNode } from '../format/tree-node.js'
import { type DiskGeometry, TREE_FANOUT, chunkCount, chunkLength, treeDepth } from '../model/disk-tree.js'
import type { TreeRoot } from '../model/recovery-point.js'
import type { StoredChunks, TreeDraft, TreeSide } from './store-types.js'
import {
  HOLE,
  type NodeSource,
  type TreeEntry,
  type UniformKind,
  ZERO,
  childSpan,
  entriesOf,
  entryOfKind,
  entryOfRoot,
  kindOfState,
  loadNode,
  rootOfEntry,
} from './tree-nodes.js'

/** Changes whose paths are loaded together: bounds the nodes held in memory. */
const CHANGES_AT_ONCE = 256

/** Where a draft keeps its nodes. */
export interface NodeSink extends NodeSource {
  /** Names and stores pieces of `bytes`; spans holds pairs (offset, length). */
  store(bytes: Uint8Array, spans: Uint32Array): Promise<StoredNodes>
}

export interface StoredNodes {
  readonly ids: Uint8Array
  readonly newCount: number
  readonly storedBytes: number
}

/**
 * Edits a disk tree in one pass from left to right. Only the path to the place
 * of change is in memory, loaded when it is come to:
 *
 *     level 2            ┌─ open ─┐
 *     level 1      done  │  open  │  not looked at
 *     level 0   done done│  open  │
 *
 * A node that is left behind is named together with its sisters when their
 * parent is left. Whatever was not changed keeps its id, and is not stored.
 */
export class TreeEditor implements TreeDraft {
  readonly #nodes: NodeSink
  readonly #geometry: DiskGeometry
  readonly #parent: TreeSide
  readonly #count: number
  readonly #depth: number
  /** Chunks that both disks have; what lies beyond is a hole at first. */
  readonly #shared: number
  /** The open node of each level. */
  readonly #path: (OpenNode | undefined)[]
  /** Nodes loaded ahead, by level and index. */
  readonly #ahead = new Map<string, TreeNode>()
  #root: TreeEntry = HOLE
  /** Last shared chunk where the disks have different sizes: the nodes above it must be looked at. */
  #seam: number | undefined
  /** A chunk that the parent has with another length: it must come anew. */
  #mustCome: number | undefined
  /** Changes before this have been. */
  #next = 0
  #newNodes = 0
  #storedBytes = 0
  #begun = false
  #turn: Promise<unknown> = Promise.resolve()

  constructor(nodes: NodeSink, geometry: DiskGeometry, parent: TreeSide | undefined) {
    this.#nodes = nodes
    this.#geometry = geometry
    this.#parent = parent ?? { root: { kind: 'hole' }, geometry }
    this.#count = chunkCount(geometry)
    this.#depth = treeDepth(geometry)
    this.#path = Array.from({ length: this.#depth }, () => undefined)
    const parentCount = chunkCount(this.#parent.geometry)
    this.#shared = Math.min(this.#count, parentCount)
    invariant(this.#parent.geometry.chunkSize === geometry.chunkSize, 'trees of one store have one chunk size')
    if (this.#shared > 0) {
      const last = this.#shared - 1
      if (this.#count !== parentCount) this.#seam = last
      if (chunkLength(geometry, last) !== chunkLength(this.#parent.geometry, last)) {
        this.#seam = last
        this.#mustCome = last
      }
    }
  }

  putChunks(indexes: Float64Array, stored: StoredChunks): Promise<void> {
    return this.#inTurn(async () => {
      invariant(indexes.length === stored.count, 'one index per stored chunk')
      for (let from = 0; from < indexes.length; from += CHANGES_AT_ONCE) {
        const part = indexes.subarray(from, from + CHANGES_AT_ONCE)
        await this.#loadAhead(part)
        for (const [offset, chunk] of part.entries()) {
          if (this.#seam !== undefined) await this.#crossSeam(chunk)
          this.#advance(chunk, chunk + 1)
          const at = from + offset
          const leaf = this.#openLeaf(chunk) ?? (await this.#reach(0, chunk))
          if (stored.zero[at] === 1) leaf.set(chunk % TREE_FANOUT, ZERO)
          else
            leaf.set(chunk % TREE_FANOUT, {
              state: CHILD.id,
              id: stored.ids.subarray(at * ID_BYTES, (at + 1) * ID_BYTES),
            })
        }
        this.#ahead.clear()
      }
    })
  }

  putRun(first: number, count: number, kind: UniformKind): Promise<void> {
    return this.#inTurn(async () => {
      const end = first + count
      if (count === 0) return
      await this.#crossSeam(first)
      this.#advance(first, end)
      const entry = entryOfKind(kind)
      for (let chunk = first; chunk < end; ) {
        const level = this.#widestLevel(chunk, end)
        const node = await this.#reach(level, chunk)
        node.set(Math.floor(chunk / childSpan(level)) % TREE_FANOUT, entry)
        chunk += childSpan(level)
      }
    })
  }

  finish(): Promise<{ readonly root: TreeRoot; readonly newNodes: number; readonly storedBytes: number }> {
    return this.#inTurn(async () => {
      await this.#crossSeam(Number.POSITIVE_INFINITY)
      await this.#leave(this.#depth - 1)
      this.#next = Number.POSITIVE_INFINITY
      return { root: rootOfEntry(this.#root), newNodes: this.#newNodes, storedBytes: this.#storedBytes }
    })
  }

  /** One change at a time, in the order of the calls. */
  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#turn.then(async () => {
      if (!this.#begun) await this.#begin()
      return work()
    })
    // A failure stays: what follows must not build on half a change.
    this.#turn = result
    result.catch(() => undefined)
    return result
  }

  /** Brings the parent's root to the depth of this tree. */
  async #begin(): Promise<void> {
    this.#begun = true
    const parentDepth = treeDepth(this.#parent.geometry)
    let entry = entryOfRoot(this.#parent.root)
    for (let level = parentDepth - 1; level >= this.#depth && entry.id !== undefined; level--) {
      entry = entriesOf(await loadNode(this.#nodes, entry.id, level))[0] ?? HOLE
    }
    this.#root = entry
    if (entry.state === CHILD.hole) return
    for (let level = this.#depth - 1; level >= parentDepth; level--) {
      const node = OpenNode.uniform(level, 0, HOLE)
      node.changed = true
      this.#path[level] = node
      if (level === parentDepth) node.set(0, entry)
    }
  }

  #advance(first: number, end: number): void {
    invariant(first >= this.#next && end <= this.#count, 'changes of a tree come in ascending order, within the disk')
    this.#next = end
    if (this.#seam !== undefined && end > this.#seam) this.#seam = undefined
    if (this.#mustCome !== undefined && first <= this.#mustCome && end > this.#mustCome) this.#mustCome = undefined
  }

  /** Opens the path to the seam if it lies before `chunk` and nobody has been there. */
  async #crossSeam(chunk: number): Promise<void> {
    const seam = this.#seam
    if (seam === undefined || seam >= chunk) return
    this.#seam = undefined
    await this.#reach(0, seam)
  }

  /** The widest level at whose nodes one child begins at `chunk` and does not pass `end`, or passes only the disk's. */
  #widestLevel(chunk: number, end: number): number {
    let level = 0
    while (level + 1 < this.#depth) {
      const span = childSpan(level + 1)
      if (chunk % span !== 0 || (span > end - chunk && end !== this.#count)) break
      level++
    }
    return level
  }

  #openLeaf(chunk: number): OpenNode | undefined {
    const leaf = this.#path[0]
    return leaf?.index === Math.floor(chunk / TREE_FANOUT) ? leaf : undefined
  }

  /** Opens the node of `level` above `chunk`, and leaves every other node at and below its level. */
  async #reach(level: number, chunk: number): Promise<OpenNode> {
    const indexAt = (at: number) => Math.floor(chunk / childSpan(at + 1))
    // Leave from the highest node that is not on the way.
    for (let at = this.#depth - 1; at >= 0; at--) {
      const open = this.#path[at]
      if (open !== undefined && (at < level || open.index !== indexAt(at))) {
        await this.#leave(at)
        break
      }
    }
    let node: OpenNode | undefined
    for (let at = this.#depth - 1; at >= level; at--) {
      node = this.#path[at]
      if (node !== undefined) continue
      const above = this.#path[at + 1]
      node = await this.#openNode(
        at,
        indexAt(at),
        above === undefined ? this.#root : above.get(indexAt(at) % TREE_FANOUT),
      )
      this.#path[at] = node
    }
    invariant(node !== undefined, 'a tree has a node at every level')
    return node
  }

  async #openNode(level: number, index: number, entry: TreeEntry): Promise<OpenNode> {
    const span = childSpan(level)
    let node: OpenNode
    if (entry.id === undefined) {
      node = OpenNode.uniform(level, index, entry)
    } else {
      const loaded = this.#ahead.get(aheadKey(level, index)) ?? (await loadNode(this.#nodes, entry.id, level))
      node = OpenNode.loaded(index, loaded, entry.id)
    }
    // What only one of the two disks has is a hole until something is put there.
    const firstBeyond = Math.max(0, Math.ceil((this.#shared - index * TREE_FANOUT * span) / span))
    for (let child = firstBeyond; child < TREE_FANOUT; child++) node.set(child, HOLE)
    return node
  }

  /** Closes the open nodes from the leaf up to `level`. */
  async #leave(level: number): Promise<void> {
    for (let at = 0; at <= level; at++) {
      const node = this.#path[at]
      if (node === undefined) continue
      this.#path[at] = undefined
      await this.#nameChildren(node)
      if (at === 0) this.#checkLength(node)
      const entry = this.#entryOf(node)
      const above = this.#path[at + 1]
      if (above === undefined) {
        this.#root = entry ?? (await this.#nameRoot(node))
      } else if (entry !== undefined) {
        above.set(node.index % TREE_FANOUT, entry)
      } else {
        above.unnamed.push({ child: node.index % TREE_FANOUT, bytes: node.encode() })
      }
    }
  }

  /** undefined where the node must be stored to have a name. */
  #entryOf(node: OpenNode): TreeEntry | undefined {
    const within = Math.min(TREE_FANOUT, Math.ceil(this.#count / childSpan(node.level)) - node.index * TREE_FANOUT)
    const states = node.states.subarray(0, within)
    const [first] = states
    if (first !== undefined && first !== CHILD.id && states.every(state => state === first)) {
      return entryOfKind(kindOfState(first))
    }
    return node.changed || node.origin === undefined ? undefined : { state: CHILD.id, id: node.origin }
  }

  #checkLength(leaf: OpenNode): void {
    const chunk = this.#mustCome
    if (chunk === undefined || leaf.index !== Math.floor(chunk / TREE_FANOUT)) return
    invariant(
      leaf.states[chunk % TREE_FANOUT] !== CHILD.id,
      `I6: chunk ${chunk} has another length than in the parent and was not put`,
    )
  }

  async #nameChildren(node: OpenNode): Promise<void> {
    if (node.unnamed.length === 0) return
    const ids = await this.#store(node.unnamed.map(({ bytes }) => bytes))
    node.unnamed.forEach(({ child }, index) =>
      node.set(child, { state: CHILD.id, id: ids.subarray(index * ID_BYTES, (index + 1) * ID_BYTES) }),
    )
    node.unnamed.length = 0
  }

  async #nameRoot(node: OpenNode): Promise<TreeEntry> {
    return { state: CHILD.id, id: await this.#store([node.encode()]) }
  }

  async #store(nodes: readonly Uint8Array[]): Promise<Uint8Array> {
    const spans = new Uint32Array(nodes.length * 2)
    let offset = 0
    nodes.forEach((bytes, index) => {
      spans.set([offset, bytes.length], 2 * index)
      offset += bytes.length
    })
    const stored = await this.#nodes.store(Buffer.concat(nodes), spans)
    this.#newNodes += stored.newCount
    this.#storedBytes += stored.storedBytes
    return stored.ids
  }

  /** Loads the paths to many chunks, level by level, each level in one go. */
  async #loadAhead(chunks: Float64Array): Promise<void> {
    for (let level = this.#depth - 1; level >= 0; level--) {
      const span = childSpan(level + 1)
      const wanted = new Map<number, Uint8Array>()
      for (const chunk of chunks) {
        const index = Math.floor(chunk / span)
        if (wanted.has(index) || this.#path[level]?.index === index) continue
        const id = this.#idOf(level, index)
        if (id !== undefined) wanted.set(index, id)
      }
      if (wanted.size < 2) continue
      const nodes = await this.#nodes.load(Buffer.concat([...wanted.values()]), level)
      for (const [at, index] of [...wanted.keys()].entries()) {
        const node = nodes[at]
        if (node !== undefined) this.#ahead.set(aheadKey(level, index), node)
      }
    }
  }

  /** Id of a node that is not open, as far as what is in memory tells. */
  #idOf(level: number, index: number): Uint8Array | undefined {
    if (level === this.#depth - 1) return this.#root.id
    const above = Math.floor(index / TREE_FANOUT)
    const open = this.#path[level + 1]
    if (open?.index === above) return open.get(index % TREE_FANOUT).id
    const loaded = this.#ahead.get(aheadKey(level + 1, above))
    return loaded === undefined ? undefined : entriesOf(loaded)[index % TREE_FANOUT]?.id
  }
}

/** A node that is being changed. */
class OpenNode {
  readonly level: number
  /** Position among the nodes of its level. */
  readonly index: number
  readonly states: Uint8Array
  readonly #ids: Uint8Array
  /** Id that it was loaded under. */
  readonly origin: Uint8Array | undefined
  changed = false
  /** Children that were left but have no name yet. */
  readonly unnamed: { readonly child: number; readonly bytes: Uint8Array }[] = []

  private constructor(level: number, index: number, origin: Uint8Array | undefined) {
    this.level = level
    this.index = index
    this.origin = origin
    this.states = new Uint8Array(TREE_FANOUT)
    this.#ids = new Uint8Array(TREE_FANOUT * ID_BYTES)
  }

  static uniform(level: number, index: number, entry: TreeEntry): OpenNode {
    const node = new OpenNode(level, index, undefined)
    node.states.fill(entry.state)
    return node
  }

  static loaded(index: number, from: TreeNode, id: Uint8Array): OpenNode {
    const node = new OpenNode(from.level, index, id)
    entriesOf(from).forEach((entry, child) => node.set(child, entry))
    node.changed = false
    return node
  }

  get(child: number): TreeEntry {
    const state = this.states[child] ?? CHILD.hole
    if (state !== CHILD.id) return entryOfKind(kindOfState(state))
    return { state, id: this.#ids.slice(child * ID_BYTES, (child + 1) * ID_BYTES) }
  }

  set(child: number, entry: TreeEntry): void {
    const at = child * ID_BYTES
    if (this.states[child] === entry.state) {
      if (entry.id === undefined || Buffer.compare(this.#ids.subarray(at, at + ID_BYTES), entry.id) === 0) return
    }
    this.states[child] = entry.state
    if (entry.id !== undefined) this.#ids.set(entry.id, at)
    this.changed = true
  }

  encode(): Uint8Array {
    const named: Uint8Array[] = []
    this.states.forEach((state, child) => {
      if (state === CHILD.id) named.push(this.#ids.subarray(child * ID_BYTES, (child + 1) * ID_BYTES))
    })
    return encodeTreeNode({ level: this.level, states: this.states, ids: Buffer.concat(named) })
  }
}

function aheadKey(level: number, index: number): string {
  return `${level}:${index}`
}
