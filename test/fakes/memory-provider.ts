import { MemoryIndex } from '../../src/store/memory-index.js'
import type { ChunkIndex } from '../../src/store/chunk-index.js'
import type { IndexProvider } from '../../src/store/index-holder.js'

/** An index that outlives the store that closed it, or is empty, as the test wants. */
export class MemoryProvider implements IndexProvider {
  index: ChunkIndex = new MemoryIndex()
  rebuilt = 0

  open(): Promise<ChunkIndex> {
    return Promise.resolve(this.index)
  }

  destroy(): Promise<void> {
    this.rebuilt++
    this.index = new MemoryIndex()
    return Promise.resolve()
  }

  openTemporary(): Promise<ChunkIndex> {
    return Promise.resolve(new MemoryIndex())
  }
}
