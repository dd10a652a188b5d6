import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import type { Clock } from '../base/clock.js'
import type { DurableFs } from '../base/durable-fs.js'
import type { ChunkIndex } from './chunk-index.js'
import type { IndexProvider, IndexRepair } from './index-holder.js'
import { LevelIndex } from './level-index.js'
import { MemoryIndex } from './memory-index.js'
import { SharedIndex } from './shared-index.js'

export interface SharedProviderOptions {
  readonly fs: DurableFs
  readonly clock: Clock
  /** Its folder `index` is LevelDB's, lock and socket are in its folder `locks`. The store itself, or a directory like it. */
  readonly home: string
}

/** One LevelDB for all processes; where that cannot be, LevelDB in a temporary directory; else memory. */
export class SharedProvider implements IndexProvider {
  readonly #fs: DurableFs
  readonly #clock: Clock
  readonly #home: string

  constructor(options: SharedProviderOptions) {
    this.#fs = options.fs
    this.#clock = options.clock
    this.#home = options.home
  }

  async open(repair: IndexRepair): Promise<ChunkIndex> {
    const meeting = join(this.#home, 'locks')
    // Where these cannot be made, the lock cannot either, and that says so.
    await this.#fs.makeDirectory(this.#home).catch(() => false)
    await this.#fs.makeDirectory(meeting).catch(() => false)
    const directory = join(this.#home, 'index')
    return await SharedIndex.open({ fs: this.#fs, clock: this.#clock, directory, meeting, repair })
  }

  /** Nothing to do: the process that has LevelDB open replaces it when it is damaged. */
  destroy(): Promise<void> {
    return Promise.resolve()
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
