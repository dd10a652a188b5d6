import type { DiskExport } from '../../src/jobs/pull-disk.js'
import type { Extent } from '../../src/model/extent.js'

const BLOCK = 512

/** A disk in memory that knows, block by block, what was written since its last checkpoint. */
export class FakeExport implements DiskExport {
  bytes: Buffer
  #dirty: Set<number> | undefined
  readonly reads: { offset: number; length: number }[] = []

  /** Everything is dirty until checkpoint(). */
  constructor(bytes: Buffer) {
    this.bytes = bytes
  }

  get size(): number {
    return this.bytes.length
  }

  checkpoint(): void {
    this.#dirty = new Set()
    this.reads.length = 0
  }

  write(offset: number, data: Buffer): void {
    data.copy(this.bytes, offset)
    for (let block = Math.floor(offset / BLOCK); block * BLOCK < offset + data.length; block++) this.#dirty?.add(block)
  }

  resize(size: number): void {
    const grown = Buffer.alloc(size)
    this.bytes.copy(grown)
    this.bytes = grown
  }

  async *extents(): AsyncGenerator<Extent> {
    for (let offset = 0; offset < this.size; offset += BLOCK) {
      const block = this.bytes.subarray(offset, offset + BLOCK)
      const zero = block.every(byte => byte === 0)
      const dirty = this.#dirty?.has(offset / BLOCK) ?? true
      yield { offset, length: block.length, dirty, zero, hole: zero }
    }
  }

  async read(pieces: Float64Array, buffer: Uint8Array): Promise<void> {
    for (let i = 0; i < pieces.length; i += 3) {
      const [offset, length, place] = [pieces[i]!, pieces[i + 1]!, pieces[i + 2]!]
      this.reads.push({ offset, length })
      buffer.set(this.bytes.subarray(offset, offset + length), place)
    }
  }
}
