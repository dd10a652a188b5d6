import { rename, rm } from 'node:fs/promises'

import type { Clock } from '../base/clock.js'
import type { FileLock } from '../base/durable-fs.js'
import { messageOf } from '../base/errors.js'
import type { IndexAnswer, IndexRequest } from '../format/index-frame.js'
import { IndexBrokenError, IndexHeldError } from './chunk-index.js'
import type { IndexRepair } from './index-holder.js'
import type { IndexService } from './index-protocol.js'
import { IndexServer } from './index-server.js'
import { LevelIndex } from './level-index.js'

/** A process that was killed keeps LevelDB's own lock until the kernel is done with it. */
const RELEASE_TIMEOUT_MS = 5_000
const RELEASE_RETRY_MS = 10

export interface IndexHostOptions {
  /** LevelDB's directory; `<directory>.new` is used too. */
  readonly directory: string
  /** Where the socket is. */
  readonly meeting: string
  /** Held as long as this lives. */
  readonly lock: FileLock
  readonly repair: IndexRepair
  readonly clock: Clock
  /** Whether this process has used the index before, through another holder. */
  readonly isSuccessor: boolean
}

/**
 * The one process that has LevelDB open. Answers itself and, on the socket,
 * all others; mends what breaks while they wait.
 */
export class IndexHost implements IndexService {
  readonly #options: IndexHostOptions
  #server: IndexServer | undefined
  #level: Promise<LevelIndex>
  #isClosed = false

  private constructor(options: IndexHostOptions) {
    this.#options = options
    this.#level = this.#open()
    // Whoever asks meets the failure.
    this.#level.catch(() => undefined)
  }

  /**
   * Opens LevelDB and completes it from the packs; others can connect at once
   * and wait for that. Lets go of the lock where that fails: IndexBrokenError,
   * kind unwritable.
   */
  static async start(options: IndexHostOptions): Promise<IndexHost> {
    const host = new IndexHost(options)
    try {
      host.#server = await IndexServer.listen(options.meeting, request => host.handle(request)).catch(
        (error: unknown) => {
          throw unusable(error)
        },
      )
      await host.#level
      return host
    } catch (error) {
      await host.close()
      throw error
    }
  }

  async handle(request: IndexRequest): Promise<IndexAnswer> {
    const level = this.#level
    if (request.kind === 'reset') {
      this.#level = this.#renew(level)
      await this.#level
      return { kind: 'done' }
    }
    try {
      return await answer(await level, request)
    } catch (error) {
      if (!isDamage(error) || this.#isClosed) throw error
      if (this.#level === level) {
        this.#options.repair.announce(`the index was unusable and is rebuilt from the packs (${reasonOf(error)})`)
        this.#level = this.#renew(level)
      }
      // Damaged once more: then this is no place for an index.
      return await answer(await this.#level, request).catch((again: unknown) => {
        throw unusable(again)
      })
    }
  }

  async close(): Promise<void> {
    if (this.#isClosed) return
    this.#isClosed = true
    await this.#server?.stop()
    const level = await this.#level.catch(() => undefined)
    await level?.close().catch(() => undefined)
    await this.#options.lock[Symbol.asyncDispose]()
    await this.#server?.[Symbol.asyncDispose]()
  }

  async #open(): Promise<LevelIndex> {
    const { directory, repair, isSuccessor } = this.#options
    let level: LevelIndex | undefined
    try {
      level = await this.#openWhenFree(directory)
      // After a holder that died, packs whose entries others wait to put are no news.
      const isExpected = isSuccessor && (await level.packs()).size > 0
      const added = await repair.fill(level)
      if (added > 0 && !isExpected) repair.announce(`the index lacked ${added} packs and was completed from them`)
      return level
    } catch (error) {
      await level?.close().catch(() => undefined)
      if (!isDamage(error)) throw error
      repair.announce(`the index was unusable and is rebuilt from the packs (${reasonOf(error)})`)
      return await this.#build()
    }
  }

  /** Replaces `broken`; what others still do on it fails, and is done again on the new one. */
  async #renew(broken: Promise<LevelIndex>): Promise<LevelIndex> {
    const level = await broken.catch(() => undefined)
    await level?.close().catch(() => undefined)
    return await this.#build()
  }

  /** Aside first: a rebuild that is cut off leaves what was there. */
  async #build(): Promise<LevelIndex> {
    const { directory, repair } = this.#options
    const aside = `${directory}.new`
    try {
      await rm(aside, { recursive: true, force: true })
      const fresh = await LevelIndex.open(aside)
      try {
        await repair.fill(fresh)
      } finally {
        await fresh.close()
      }
      await rm(directory, { recursive: true, force: true })
      await rename(aside, directory)
      return await LevelIndex.open(directory)
    } catch (error) {
      throw unusable(error)
    }
  }

  async #openWhenFree(directory: string): Promise<LevelIndex> {
    const { clock } = this.#options
    const deadline = clock.monotonic() + RELEASE_TIMEOUT_MS
    for (;;) {
      try {
        return await LevelIndex.open(directory)
      } catch (error) {
        if (!(error instanceof IndexHeldError)) throw error
        if (clock.monotonic() >= deadline) throw new IndexBrokenError('unwritable', error)
        await clock.sleep(RELEASE_RETRY_MS)
      }
    }
  }
}

async function answer(level: LevelIndex, request: Exclude<IndexRequest, { kind: 'reset' }>): Promise<IndexAnswer> {
  switch (request.kind) {
    case 'get':
      return { kind: 'values', values: await level.getMany(request.ids) }
    case 'put':
      await level.putBatch(request)
      return { kind: 'done' }
    case 'delete':
      await level.deleteBatch(request.ids, request.values)
      return { kind: 'done' }
    case 'page':
      for await (const { ids, values } of level.iterate(request.after)) {
        // Entries of a wrong size are left out: a page may be empty before the end.
        if (ids.length > 0) return { kind: 'entries', ids, values }
      }
      return { kind: 'entries', ids: new Uint8Array(0), values: new Uint8Array(0) }
    case 'packPage': {
      const states = await level.packPage(request.after)
      return { kind: 'packs', packs: Array.from(states, ([id, state]) => ({ id, state })) }
    }
    case 'getPacks': {
      const states = await level.getPacks(request.packIds)
      const known = request.packIds.map((id, at) => ({ id, state: states[at] }))
      return { kind: 'packs', packs: known.flatMap(({ id, state }) => (state === undefined ? [] : [{ id, state }])) }
    }
    case 'deletePacks':
      await level.deletePacks(request.packIds)
      return { kind: 'done' }
  }
}

function isDamage(error: unknown): error is IndexBrokenError {
  return error instanceof IndexBrokenError && error.kind === 'damaged'
}

/** Whatever it was: the index cannot be used where it is. */
function unusable(error: unknown): IndexBrokenError {
  if (!(error instanceof IndexBrokenError)) return new IndexBrokenError('unwritable', error)
  return error.kind === 'unwritable' ? error : new IndexBrokenError('unwritable', error.cause)
}

function reasonOf(error: IndexBrokenError): string {
  return error.cause === undefined ? error.message : messageOf(error.cause)
}
