import { ID_BYTES, RECORD_KIND } from '../format/record.js'
import { MAX_NODE_BYTES, type TreeNode, decodeTreeNode } from '../format/tree-node.js'
import { damaged } from '../format/damage.js'
import { DamagedChunksError } from './damaged-chunks.js'
import type { PackReader } from './pack-reader.js'
import type { NodeSource } from './tree-nodes.js'

/** Tree nodes out of packs. Loading is never interrupted: a family of nodes is half a megabyte at most. */
export class NodeReader implements NodeSource {
  readonly #reader: PackReader

  constructor(reader: PackReader) {
    this.#reader = reader
  }

  async load(ids: Uint8Array, level: number): Promise<TreeNode[]> {
    const lengths = await this.#reader.plainLengths(ids)
    const absent = lengths.flatMap((length, piece) =>
      length === undefined || length > MAX_NODE_BYTES
        ? [{ piece, pack: undefined, offset: undefined, reason: 'a tree node is in no pack' }]
        : [],
    )
    if (absent.length > 0) throw new DamagedChunksError(absent, lengths.length)
    const outSpans = new Uint32Array(lengths.length * 2)
    let end = 0
    lengths.forEach((length = 0, piece) => {
      outSpans.set([end, length], 2 * piece)
      end += length
    })
    const out = new Uint8Array(end)
    await this.#reader.read({ ids, out, outSpans, kind: RECORD_KIND.node }, new AbortController().signal)
    return Array.from({ length: ids.length / ID_BYTES }, (_, piece) => {
      const at = outSpans[2 * piece] ?? 0
      const node = decodeTreeNode(out.subarray(at, at + (outSpans[2 * piece + 1] ?? 0)))
      if (node.level !== level) throw damaged('a disk tree', `a node of level ${node.level} where ${level} belongs`)
      return node
    })
  }
}
