import { BackupError, type Warning } from '../base/errors.js'
import { type ChunkIndex, IndexBrokenError, IndexHeldError } from './chunk-index.js'
import type { PackCatalog } from './pack-catalog.js'

/** Where a store's index comes from. */
export interface IndexProvider {
  /**
   * Opens it, empty where there is none. Rejects with IndexBrokenError or
   * IndexHeldError. One that mends itself does it with `repair`.
   */
  open(repair: IndexRepair): Promise<ChunkIndex>
  /** Deletes it. */
  destroy(): Promise<void>
  /** An empty one elsewhere, for as long as this process lives. */
  openTemporary(): Promise<ChunkIndex>
}

/** What it takes to mend an index while it is used. */
export interface IndexRepair {
  /** Fills in what the packs have and `index` lacks. Gives the number of packs, 0 where other runs account for them. */
  fill(index: ChunkIndex): Promise<number>
  /** Tells the user. */
  announce(message: string): void
}

export interface IndexHolderOptions {
  readonly provider: IndexProvider
  readonly packs: PackCatalog
  readonly onNotice: (warning: Warning) => void
  /** How many runs are alive that this store did not begin. */
  readonly otherRuns: () => Promise<number>
}

/** Packs of one run that are sealed and not indexed yet, at most: of data and of meta two that seal and the last one. */
const PACKS_UNDER_WAY = 6

/**
 * The one owner of the index: opens it at first use, fills in what the packs
 * have and it lacks, and rebuilds it when it breaks (I4). Where its place
 * cannot be written, works from a temporary one.
 */
export class IndexHolder {
  readonly #provider: IndexProvider
  readonly #packs: PackCatalog
  readonly #notice: (warning: Warning) => void
  readonly #otherRuns: () => Promise<number>
  readonly #repair: IndexRepair
  #current: Promise<ChunkIndex> | undefined
  #reindexed: Promise<void> | undefined

  constructor(options: IndexHolderOptions) {
    this.#provider = options.provider
    this.#packs = options.packs
    this.#notice = options.onNotice
    this.#otherRuns = options.otherRuns
    this.#repair = {
      fill: index => this.#fill(index),
      announce: message => this.#announce(message),
    }
  }

  /** Runs `work` on the index; once more on a rebuilt one where the first breaks under it. Rejects with E_LOCKED. */
  async use<T>(work: (index: ChunkIndex) => Promise<T>): Promise<T> {
    this.#current ??= this.#open()
    const opening = this.#current
    try {
      return await work(await opening)
    } catch (error) {
      if (!(error instanceof IndexBrokenError)) {
        // What could not be opened is tried anew by the next caller.
        if (this.#current === opening) await opening.catch(() => (this.#current = undefined))
        throw error
      }
      if (this.#current === opening) this.#current = this.#replace(opening, error)
      return await work(await this.#current)
    }
  }

  /** Indexes sealed packs that came since, from any process. Gives how many. */
  catchUp(): Promise<number> {
    return this.use(index => this.#packs.indexMissing(index))
  }

  /** Makes it anew from the packs, also where it seems whole. Gives the number of packs that it knows then. */
  rebuild(): Promise<number> {
    return this.use(async index => {
      await index.clear()
      await this.#packs.indexMissing(index)
      return (await index.packs()).size
    })
  }

  /** Takes every footer again, and what records of unsealed packs can be had: for chunks that cannot be found. Once per process. */
  async reindexAll(): Promise<void> {
    this.#reindexed ??= this.#reindex()
    await this.#reindexed
  }

  #reindex(): Promise<void> {
    this.#announce('stored pieces were not found: the index is read anew from all packs')
    return this.use(index => this.#packs.reindexAll(index))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const index = await this.#current?.catch(() => undefined)
    this.#current = undefined
    await index?.close()
  }

  async #open(): Promise<ChunkIndex> {
    try {
      const index = await this.#provider.open(this.#repair)
      return await this.#filled(index)
    } catch (error) {
      if (error instanceof IndexHeldError) {
        throw new BackupError('E_LOCKED', 'another process is using this store', { cause: error })
      }
      if (!(error instanceof IndexBrokenError)) throw error
      return await this.#rebuild(error)
    }
  }

  async #replace(broken: Promise<ChunkIndex>, cause: IndexBrokenError): Promise<ChunkIndex> {
    const index = await broken
    await index.close().catch(() => undefined)
    return this.#rebuild(cause)
  }

  async #rebuild(cause: IndexBrokenError): Promise<ChunkIndex> {
    if (cause.kind === 'damaged') {
      this.#announce(`the index was unusable and is rebuilt from the packs${reason(cause)}`)
      try {
        await this.#provider.destroy()
        return await this.#filled(await this.#provider.open(this.#repair))
      } catch (error) {
        if (error instanceof BackupError) throw error
      }
    }
    this.#announce(`the index cannot be written where it belongs and is rebuilt elsewhere for now${reason(cause)}`)
    return await this.#filled(await this.#provider.openTemporary())
  }

  #announce(message: string): void {
    this.#notice({ code: 'W_INDEX_REBUILT', message })
  }

  /** What others have sealed a moment ago and are about to index is no news. */
  async #fill(index: ChunkIndex): Promise<number> {
    const added = await this.#packs.indexMissing(index)
    return added > 0 && added <= PACKS_UNDER_WAY * (await this.#otherRuns()) ? 0 : added
  }

  async #filled(index: ChunkIndex): Promise<ChunkIndex> {
    try {
      const added = await this.#fill(index)
      if (added > 0) {
        this.#announce(`the index lacked ${added} packs and was completed from them`)
      }
      return index
    } catch (error) {
      await index.close().catch(() => undefined)
      throw error
    }
  }
}

function reason(cause: IndexBrokenError): string {
  return cause.cause instanceof Error ? ` (${cause.cause.message})` : ''
}
