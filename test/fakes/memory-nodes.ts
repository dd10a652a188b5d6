import { createHash } from 'node:crypto'

import { BackupError } from '../../src/base/errors.js'
import { type TreeNode, decodeTreeNode } from '../../src/format/tree-node.js'
import type { NodeSink, StoredNodes } from '../../src/store/tree-draft.js'

/** Tree nodes in a map, named as in a plain store. */
export class MemoryNodes implements NodeSink {
  readonly #nodes = new Map<string, Uint8Array>()
  /** Nodes handed out. */
  loaded = 0
  /** Bytes of all nodes. */
  bytes = 0

  async load(ids: Uint8Array, level: number): Promise<TreeNode[]> {
    await Promise.resolve()
    return Array.from({ length: ids.length / 32 }, (_, at) => {
      this.loaded++
      const bytes = this.#nodes.get(keyOf(ids.subarray(32 * at, 32 * at + 32)))
      if (bytes === undefined) throw new BackupError('E_DAMAGED', 'a node is missing')
      const node = decodeTreeNode(bytes)
      if (node.level !== level) throw new BackupError('E_DAMAGED', `level ${node.level} where ${level} belongs`)
      return node
    })
  }

  async store(bytes: Uint8Array, spans: Uint32Array): Promise<StoredNodes> {
    await Promise.resolve()
    const ids = new Uint8Array((spans.length / 2) * 32)
    let newCount = 0
    let storedBytes = 0
    for (let at = 0; at < spans.length / 2; at++) {
      const plain = bytes.slice(spans[2 * at], spans[2 * at]! + spans[2 * at + 1]!)
      decodeTreeNode(plain)
      const id = createHash('sha256').update(Uint8Array.of(2)).update(plain).digest()
      ids.set(id, 32 * at)
      if (this.#nodes.has(keyOf(id))) continue
      this.#nodes.set(keyOf(id), plain)
      newCount++
      storedBytes += plain.length
    }
    this.bytes += storedBytes
    return { ids, newCount, storedBytes }
  }
}

function keyOf(id: Uint8Array): string {
  return Buffer.from(id).toString('hex')
}
