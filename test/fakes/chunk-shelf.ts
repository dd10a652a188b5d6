import { createHash } from 'node:crypto'

import { chunkCount, chunkLength, type DiskGeometry, type TreeRun } from '../../src/model/disk-tree.js'
import type { PointBlob, TreeRoot } from '../../src/model/recovery-point.js'
import type { StorePort } from '../../src/store/store-types.js'

/**
 * The reading side of a store, in memory: disks cut into chunks by id, zero
 * chunks left out. Chunks and stretches of a tree can be lost on purpose; then
 * it fails as a store does.
 */
export class ChunkShelf implements Pick<StorePort, 'chunkSize' | 'walkTree' | 'chunks' | 'readBlob'> {
  readonly chunkSize: number
  readonly chunks = { read: this.#read.bind(this) }
  readonly #chunks = new Map<string, Uint8Array>()
  readonly #trees = new Map<string, readonly (string | undefined)[]>()
  readonly #lostNodes = new Map<string, { readonly first: number; readonly end: number }>()
  readonly #blobs = new Map<string, Uint8Array>()
  reads = 0

  constructor(chunkSize: number) {
    this.chunkSize = chunkSize
  }

  addDisk(bytes: Uint8Array): TreeRoot {
    const ids: (string | undefined)[] = []
    for (let at = 0; at < bytes.length; at += this.chunkSize) {
      const chunk = bytes.slice(at, at + this.chunkSize)
      ids.push(chunk.every(byte => byte === 0) ? undefined : this.#add(chunk))
    }
    if (ids.every(id => id === undefined)) return { kind: 'hole' }
    const id = createHash('sha256')
      .update(JSON.stringify(ids.map(name => name ?? '')))
      .digest()
    this.#trees.set(id.toString('hex'), ids)
    return { kind: 'node', id }
  }

  addBlob(name: string, bytes: Uint8Array): PointBlob {
    const id = Buffer.from(this.#add(bytes), 'hex')
    this.#blobs.set(id.toString('hex'), bytes)
    return { name, id, length: bytes.length }
  }

  /** Loses what holds these bytes. */
  loseChunk(bytes: Uint8Array): void {
    const id = createHash('sha256').update(bytes).digest('hex')
    this.#chunks.delete(id)
    this.#blobs.delete(id)
  }

  loseNode(root: TreeRoot, first: number, end: number): void {
    if (root.kind === 'node') this.#lostNodes.set(Buffer.from(root.id).toString('hex'), { first, end })
  }

  async *walkTree(root: TreeRoot, geometry: DiskGeometry, from = 0): AsyncGenerator<TreeRun> {
    const count = chunkCount(geometry)
    if (root.kind !== 'node') {
      if (from < count) yield { kind: root.kind, first: from, count: count - from }
      return
    }
    const name = Buffer.from(root.id).toString('hex')
    const ids = this.#trees.get(name)
    if (ids === undefined) throw damaged('no such tree', {})
    const lost = this.#lostNodes.get(name)
    // Runs end at odd places, as node borders would have them.
    for (let at = from; at < count; ) {
      if (lost !== undefined && at >= lost.first && at < lost.end) {
        throw damaged('a node is missing', {})
      }
      const isData = ids[at] !== undefined
      const stop = Math.min(count, at + 128, lost !== undefined && at < lost.first ? lost.first : count)
      let end = at + 1
      while (end < stop && (ids[end] !== undefined) === isData) end++
      if (isData) {
        yield { kind: 'data', first: at, count: end - at, ids: Buffer.from(ids.slice(at, end).join(''), 'hex') }
      } else {
        yield { kind: 'hole', first: at, count: end - at }
      }
      at = end
    }
  }

  async readBlob(blob: PointBlob): Promise<Uint8Array> {
    const bytes = this.#blobs.get(Buffer.from(blob.id).toString('hex'))
    if (bytes === undefined) throw damaged(`blob ${blob.name} is missing`, {})
    return bytes
  }

  async #read(ids: Uint8Array, out: Uint8Array, outSpans: Uint32Array, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    this.reads++
    const pieces: { readonly piece: number }[] = []
    // Settles later than it was called, so that several are under way at once.
    await new Promise<void>(done => {
      setImmediate(done)
    })
    for (let i = 0; i * 2 < outSpans.length; i++) {
      const chunk = this.#chunks.get(Buffer.from(ids.subarray(i * 32, i * 32 + 32)).toString('hex'))
      const [offset = 0, length = 0] = outSpans.subarray(i * 2, i * 2 + 2)
      if (chunk?.length !== length) pieces.push({ piece: i })
      else out.set(chunk, offset)
    }
    if (pieces.length > 0) throw damaged('chunks are missing', { pieces })
  }

  #add(bytes: Uint8Array): string {
    const id = createHash('sha256').update(bytes).digest('hex')
    this.#chunks.set(id, bytes)
    return id
  }
}

export function chunkOf(disk: Uint8Array, geometry: DiskGeometry, index: number): Uint8Array {
  const start = index * geometry.chunkSize
  return disk.slice(start, start + chunkLength(geometry, index))
}

function damaged(message: string, facts: object): Error {
  return Object.assign(new Error(message), { code: 'E_DAMAGED' }, facts)
}
