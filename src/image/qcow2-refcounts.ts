import { invariant } from '../base/invariant.js'
import type { Qcow2Geometry } from './qcow2-layout.js'

/** With 16 bits. */
const MAX_REFCOUNT = 65535

/**
 * Refcounts of a file that is written front to back, as the blocks that will
 * hold them. A block is given away once nothing can be added to it any more,
 * so memory does not grow with the file.
 */
export class RefcountBlocks {
  readonly #clusterSize: number
  /** Host clusters that one block counts. */
  readonly #perBlock: number
  readonly #blocks = new Map<number, DataView>()
  /** Blocks given away, all from the first on. */
  #taken = 0

  constructor({ clusterSize }: Qcow2Geometry) {
    this.#clusterSize = clusterSize
    this.#perBlock = clusterSize / 2
  }

  get taken(): number {
    return this.#taken
  }

  /** Counts one more use of each host cluster that `[offset, offset + length)` of the file touches. */
  use(offset: number, length: number): void {
    const end = Math.ceil((offset + length) / this.#clusterSize)
    for (let cluster = Math.floor(offset / this.#clusterSize); cluster < end; cluster++) {
      const { block, at } = this.#placeOf(cluster)
      const count = block.getUint16(at) + 1
      invariant(count <= MAX_REFCOUNT, `refcount of host cluster ${cluster} is too large`)
      block.setUint16(at, count)
    }
  }

  /** Whether the host cluster at `offset` can be used once more. */
  hasRoom(offset: number): boolean {
    const { block, at } = this.#placeOf(Math.floor(offset / this.#clusterSize))
    return block.getUint16(at) < MAX_REFCOUNT
  }

  /** The next block, once all that it counts lies below `offset`. */
  takeBelow(offset: number): Uint8Array | undefined {
    return (this.#taken + 1) * this.#perBlock * this.#clusterSize <= offset ? this.take() : undefined
  }

  /** The next block, whatever is in it. */
  take(): Uint8Array {
    const index = this.#taken++
    const block = this.#blocks.get(index)
    this.#blocks.delete(index)
    return block === undefined ? new Uint8Array(this.#clusterSize) : new Uint8Array(block.buffer)
  }

  #placeOf(cluster: number): { readonly block: DataView; readonly at: number } {
    const index = Math.floor(cluster / this.#perBlock)
    invariant(index >= this.#taken, 'a refcount block that was given away is needed again')
    let block = this.#blocks.get(index)
    if (block === undefined) {
      block = new DataView(new ArrayBuffer(this.#clusterSize))
      this.#blocks.set(index, block)
    }
    return { block, at: (cluster % this.#perBlock) * 2 }
  }
}
