import { ID_BYTES } from '../format/record.js'
import { CHILD } from '../format/tree-node.js'
import { treeDepth } from '../model/disk-tree.js'
import { AS_BELOW, type ChunkIds, type TreeSide } from './store-types.js'
import { childSpan, entriesOf, entryOfRoot, type NodeSource, type TreeEntry } from './tree-nodes.js'

/**
 * What a tree says of single chunks, given by ascending index. Loads each node
 * on the way once. Rejects with E_DAMAGED.
 */
export async function lookUpChunks(nodes: NodeSource, side: TreeSide, indexes: Float64Array): Promise<ChunkIds> {
  const found: ChunkIds = { ids: new Uint8Array(indexes.length * ID_BYTES), zero: new Uint8Array(indexes.length) }
  const subtree = async (entry: TreeEntry, height: number, wanted: Wanted): Promise<void> => {
    if (entry.id === undefined) {
      found.zero.fill(entry.state === CHILD.below ? AS_BELOW : 1, wanted.from, wanted.to)
      return
    }
    if (height === 0) {
      found.ids.set(entry.id, wanted.from * ID_BYTES)
      return
    }
    const [node] = await nodes.load(entry.id, height - 1)
    if (node === undefined) return
    const entries = entriesOf(node)
    const span = childSpan(height - 1)
    for (let from = wanted.from; from < wanted.to; ) {
      const child = Math.floor(((indexes[from] ?? 0) - wanted.first) / span)
      const first = wanted.first + child * span
      let to = from + 1
      while (to < wanted.to && (indexes[to] ?? 0) < first + span) to++
      await subtree(entries[child] ?? { state: CHILD.hole, id: undefined }, height - 1, { first, from, to })
      from = to
    }
  }
  await subtree(entryOfRoot(side.root), treeDepth(side.geometry), { first: 0, from: 0, to: indexes.length })
  return found
}

/** The indexes `[from, to)` of the list lie in the subtree that starts at chunk `first`. */
interface Wanted {
  readonly first: number
  readonly from: number
  readonly to: number
}
