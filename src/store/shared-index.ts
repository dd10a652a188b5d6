import { join } from 'node:path'

import type { Clock } from '../base/clock.js'
import type { DurableFs, FileLock } from '../base/durable-fs.js'
import { type IndexAnswer, type IndexRequest, MAX_FRAME_ENTRIES, type PackEntryState } from '../format/index-frame.js'
import { INDEX_VALUE_BYTES, type PackState } from '../format/index-value.js'
import { ID_BYTES } from '../format/record.js'
import { type ChunkIndex, type IndexBatch, IndexBrokenError, type IndexPage } from './chunk-index.js'
import { IndexClient } from './index-client.js'
import type { IndexRepair } from './index-holder.js'
import { IndexHost } from './index-host.js'
import { ConnectionLostError, type IndexService } from './index-protocol.js'

const LOCK_NAME = 'index.lock'
/** How often a process looks whether the one before it has gone or the one after it is there. */
const ELECTION_RETRY_MS = 10
/** Then whoever has the lock is stopped, stuck, or on another machine. */
const ELECTION_TIMEOUT_MS = 10_000
/** Holders that one request may outlive. */
const MAX_HOLDERS = 32

export interface SharedIndexOptions {
  readonly fs: DurableFs
  readonly clock: Clock
  /** LevelDB's directory. */
  readonly directory: string
  /** An existing directory for lock and socket. */
  readonly meeting: string
  readonly repair: IndexRepair
}

/**
 * The index of a store that many processes use at once. LevelDB admits one: the
 * first to get the lock opens it and answers the others on a socket. When it
 * leaves or dies, the next one that wants something takes over, and unanswered
 * requests are repeated; all of them may be.
 *
 * What cannot work here (read-only, full, a holder that is stopped or on
 * another machine) is IndexBrokenError, kind unwritable; damage is mended by
 * the holder and never shows.
 */
export class SharedIndex implements ChunkIndex {
  readonly #options: SharedIndexOptions
  #service: Promise<IndexService> | undefined
  #isClosed = false
  #hasBeenClient = false

  private constructor(options: SharedIndexOptions) {
    this.#options = options
  }

  /** Completed from the packs. Rejects with IndexBrokenError. */
  static async open(options: SharedIndexOptions): Promise<SharedIndex> {
    const index = new SharedIndex(options)
    try {
      await index.#elected()
      // What other processes sealed this very moment is no news; the holder tells what is.
      if (index.#hasBeenClient) await options.repair.fill(index)
      return index
    } catch (error) {
      await index.close()
      throw error
    }
  }

  async getMany(ids: Uint8Array): Promise<Uint8Array> {
    const values = new Uint8Array((ids.length / ID_BYTES) * INDEX_VALUE_BYTES)
    for (const { from, to } of parts(ids.length / ID_BYTES)) {
      const answer = await this.#ask({ kind: 'get', ids: slice(ids, { from, to }, ID_BYTES) })
      if (answer.kind !== 'values' || answer.values.length !== (to - from) * INDEX_VALUE_BYTES) throw senseless()
      values.set(answer.values, from * INDEX_VALUE_BYTES)
    }
    return values
  }

  async putBatch(batch: IndexBatch): Promise<void> {
    const count = batch.ids.length / ID_BYTES
    const entries = [...parts(count)]
    const last = entries.pop() ?? { from: count, to: count }
    for (const part of entries) await this.#do({ kind: 'put', ...entriesOf(batch, part), packs: [] })
    // The states come last, so that what is cut off is done again from the packs.
    const states = [...parts(batch.packs.length)]
    for (const { from, to } of states.length === 0 ? [{ from: 0, to: 0 }] : states) {
      await this.#do({ kind: 'put', ...entriesOf(batch, last), packs: batch.packs.slice(from, to) })
    }
  }

  async deleteBatch(ids: Uint8Array, values: Uint8Array): Promise<void> {
    for (const part of parts(ids.length / ID_BYTES))
      await this.#do({ kind: 'delete', ...entriesOf({ ids, values }, part) })
  }

  async *iterate(after?: Uint8Array): AsyncGenerator<IndexPage> {
    for (let cursor = after; ; ) {
      const answer = await this.#ask({ kind: 'page', after: cursor })
      if (answer.kind !== 'entries') throw senseless()
      const { ids, values } = answer
      if (ids.length === 0) return
      const next = ids.slice(-ID_BYTES)
      if (cursor !== undefined && Buffer.compare(next, cursor) <= 0) throw senseless()
      cursor = next
      yield { ids, values }
    }
  }

  async packs(): Promise<ReadonlyMap<string, PackState>> {
    const packs = new Map<string, PackState>()
    for (let after: string | undefined; ; ) {
      const page = await this.#askPacks({ kind: 'packPage', after })
      const next = page.at(-1)?.id
      if (next === undefined) return packs
      if (after !== undefined && next <= after) throw senseless()
      after = next
      for (const { id, state } of page) packs.set(id, state)
    }
  }

  async getPacks(packIds: readonly string[]): Promise<(PackState | undefined)[]> {
    const known = new Map<string, PackState>()
    for (const { from, to } of parts(packIds.length)) {
      const found = await this.#askPacks({ kind: 'getPacks', packIds: packIds.slice(from, to) })
      for (const { id, state } of found) known.set(id, state)
    }
    return packIds.map(id => known.get(id))
  }

  async deletePacks(packIds: readonly string[]): Promise<void> {
    for (const { from, to } of parts(packIds.length)) {
      await this.#do({ kind: 'deletePacks', packIds: packIds.slice(from, to) })
    }
  }

  clear(): Promise<void> {
    return this.#do({ kind: 'reset' })
  }

  async close(): Promise<void> {
    this.#isClosed = true
    const service = await this.#service?.catch(() => undefined)
    await service?.close()
  }

  async #do(request: IndexRequest): Promise<void> {
    const answer = await this.#ask(request)
    if (answer.kind !== 'done') throw senseless()
  }

  async #askPacks(request: IndexRequest): Promise<readonly PackEntryState[]> {
    const answer = await this.#ask(request)
    if (answer.kind !== 'packs') throw senseless()
    return answer.packs
  }

  /** Asks one holder after the other until there is an answer. */
  async #ask(request: IndexRequest): Promise<IndexAnswer> {
    let lost: unknown
    for (let holder = 0; holder < MAX_HOLDERS; holder++) {
      const elected = this.#elected()
      const service = await elected
      try {
        const answer = await service.handle(request)
        if (answer.kind === 'failed') throw new IndexBrokenError('unwritable', new Error(answer.message))
        return answer
      } catch (error) {
        if (!(error instanceof ConnectionLostError)) throw error
        lost = error.cause
        if (this.#service === elected) this.#service = undefined
        await service.close()
      }
    }
    throw new IndexBrokenError('unwritable', lost)
  }

  #elected(): Promise<IndexService> {
    if (this.#isClosed) return Promise.reject(new IndexBrokenError('unwritable', new Error('it was closed')))
    if (this.#service === undefined) {
      const service = this.#elect()
      this.#service = service
      service.catch(() => {
        if (this.#service === service) this.#service = undefined
      })
    }
    return this.#service
  }

  async #elect(): Promise<IndexService> {
    const { clock, meeting, directory, repair } = this.#options
    const deadline = clock.monotonic() + ELECTION_TIMEOUT_MS
    for (;;) {
      const { lock, obstacle } = await this.#tryLock()
      if (lock !== undefined) {
        return await IndexHost.start({ lock, clock, meeting, directory, repair, isSuccessor: this.#hasBeenClient })
      }
      try {
        const client = await IndexClient.connect(meeting)
        this.#hasBeenClient = true
        return client
      } catch (error) {
        // A place that cannot be locked can be shared if somebody holds it, not taken over.
        if (obstacle !== undefined) throw new IndexBrokenError('unwritable', obstacle)
        if (clock.monotonic() >= deadline) {
          throw new IndexBrokenError('unwritable', error instanceof ConnectionLostError ? error.cause : error)
        }
      }
      await clock.sleep(ELECTION_RETRY_MS)
    }
  }

  async #tryLock(): Promise<{ readonly lock?: FileLock | undefined; readonly obstacle?: unknown }> {
    try {
      return { lock: await this.#options.fs.lock(join(this.#options.meeting, LOCK_NAME), 'exclusive') }
    } catch (obstacle) {
      return { obstacle }
    }
  }
}

interface Part {
  readonly from: number
  readonly to: number
}

function* parts(count: number): Generator<Part> {
  for (let from = 0; from < count; from += MAX_FRAME_ENTRIES) {
    yield { from, to: Math.min(count, from + MAX_FRAME_ENTRIES) }
  }
}

function slice(bytes: Uint8Array, part: Part, each: number): Uint8Array {
  return bytes.subarray(part.from * each, part.to * each)
}

function entriesOf(entries: IndexPage, part: Part): IndexPage {
  return { ids: slice(entries.ids, part, ID_BYTES), values: slice(entries.values, part, INDEX_VALUE_BYTES) }
}

function senseless(): IndexBrokenError {
  return new IndexBrokenError('unwritable', new Error('the holder of the index gives answers that make no sense'))
}
