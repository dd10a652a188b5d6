import { createHash } from 'node:crypto'
import { open } from 'node:fs/promises'

import type { Change } from '../lab/lab-disk.js'

export interface Figures {
  readonly readBytes: number
  readonly newBytes: number
}

/**
 * What pulls must read and store, worked out from the changes and the
 * reference images alone: chunks that a change touches and that hold a byte
 * other than zero are read; of those, contents never seen before are new.
 */
export class ExpectedFigures {
  readonly #chunkSize: number
  readonly #seen = new Set<string>()

  constructor(chunkSize: number) {
    this.#chunkSize = chunkSize
  }

  /** For the next pull of one disk, whose size is a multiple of the chunk size. */
  async next(_target: string, reference: string, changes: readonly Change[]): Promise<Figures> {
    const size = this.#chunkSize
    const touched = new Set<number>()
    for (const { offset, length } of changes) {
      for (let chunk = Math.floor(offset / size); chunk * size < offset + length; chunk++) touched.add(chunk)
    }
    let readBytes = 0
    let newBytes = 0
    const zero = Buffer.alloc(size)
    await using file = await open(reference, 'r')
    for (const chunk of touched) {
      const { buffer } = await file.read(Buffer.alloc(size), 0, size, chunk * size)
      if (buffer.equals(zero)) continue
      readBytes += size
      const id = createHash('sha256').update(buffer).digest('hex')
      if (!this.#seen.has(id)) newBytes += size
      this.#seen.add(id)
    }
    return { readBytes, newBytes }
  }
}
