import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import type { ChunkIndex } from './chunk-index.js'
import type { IndexProvider } from './index-holder.js'
import { LevelIndex } from './level-index.js'
import { MemoryIndex } from './memory-index.js'

/** LevelDB in a directory; where that cannot be, LevelDB in a temporary one; else memory. */
export class LevelProvider implements IndexProvider {
  readonly #directory: string

  constructor(directory: string) {
    this.#directory = directory
  }

  open(): Promise<ChunkIndex> {
    return LevelIndex.open(this.#directory)
  }

  destroy(): Promise<void> {
    return rm(this.#directory, { recursive: true, force: true })
  }

  async openTemporary(): Promise<ChunkIndex> {
    try {
      const directory = await mkdtemp(join(tmpdir(), 'virtvault-index-'))
      return await LevelIndex.open(directory, () => rm(directory, { recursive: true, force: true }))
    } catch {
      // Then memory must do: about 200 bytes per chunk.
      return new MemoryIndex()
    }
  }
}
