import { throwIfAborted } from '../base/async.js'
import { fromHex, toHex } from '../base/hex.js'
import type { RandomSource } from '../base/random.js'
import { decodePlace, INDEX_VALUE_BYTES } from '../format/index-value.js'
import { encodeCondemned } from '../format/condemned.js'
import { ID_BYTES } from '../format/record.js'
import type { StoreUse } from '../model/gc-plan.js'
import type { RecoveryPoint } from '../model/recovery-point.js'
import type { DamageList } from './damage-list.js'
import type { IndexHolder } from './index-holder.js'
import { CONDEMNED_FILE } from './layout.js'
import type { PackCatalog } from './pack-catalog.js'
import { PackCensus, type Liveness } from './pack-census.js'
import type { PackRecordsParts } from './pack-records.js'
import type { PackWriterOptions } from './pack-writer.js'
import type { Points } from './points.js'
import { Reachability } from './reachability.js'
import type { Runs } from './runs.js'
import type { CollectorPort, GcSurvey, SweepWork, Swept } from './store-types.js'
import { Sweeper } from './sweeper.js'
import type { NodeSource } from './tree-nodes.js'

const GENERATION_BYTES = 16

export interface CollectorOptions extends PackRecordsParts {
  readonly points: Points
  readonly runs: Runs
  readonly packs: PackCatalog
  readonly index: IndexHolder
  readonly damage: DamageList
  readonly nodes: NodeSource
  readonly chunkSize: number
  readonly random: RandomSource
  readonly writer: Omit<PackWriterOptions, 'kind' | 'onSealed'>
}

/** The steps of a gc; gc-job.ts tells the story. */
export class Collector implements CollectorPort {
  readonly #options: CollectorOptions

  constructor(options: CollectorOptions) {
    this.#options = options
  }

  lock(): Promise<AsyncDisposable> {
    return this.#options.runs.lockGc()
  }

  async tidy(signal: AbortSignal): Promise<void> {
    const { points, runs, objects } = this.#options
    // What an earlier gc condemned and did not come to is nothing any more: its process is gone.
    await objects.remove(CONDEMNED_FILE)
    await points.forgetRemoved()
    for (const run of await runs.dead()) if (run.journal === undefined) await run.remove()
    await this.#forgetGonePacks(signal)
  }

  async survey(signal: AbortSignal): Promise<GcSurvey> {
    const { runs, points, packs, damage } = this.#options
    // In this order: a pack without a footer that is found although no run was alive is nobody's,
    // and what is committed after the listing of points is in packs that are not listed, or leased.
    const liveRuns = await runs.live()
    const listed = await points.list()
    const known = await damage.read()
    const isDamaged = (pack: string, id: Uint8Array) => known.hasCopy(pack, id)
    const census = await PackCensus.take(packs, { isDamaged }, signal)
    try {
      const marked = await this.#mark(listed, undefined, signal)
      return await Survey.take(this.#options, { census, marked, listed, liveRuns: liveRuns.length }, signal)
    } catch (error) {
      await census[Symbol.asyncDispose]()
      throw error
    }
  }

  async condemn(packIds: readonly string[]): Promise<void> {
    const { objects, random } = this.#options
    const condemned = { generation: random(GENERATION_BYTES), packIds: packIds.map(fromHex) }
    await objects.replace(CONDEMNED_FILE, encodeCondemned(condemned))
  }

  async pardon(): Promise<void> {
    await this.#options.objects.remove(CONDEMNED_FILE)
  }

  liveRuns(): Promise<string[]> {
    return this.#options.runs.live()
  }

  #mark(points: readonly RecoveryPoint[], known: Reachability | undefined, signal: AbortSignal): Promise<Reachability> {
    const { nodes, chunkSize } = this.#options
    const roots = points.map(point => ({ point, label: 0 }))
    return Reachability.mark(roots, { nodes, chunkSize, known }, signal)
  }

  /** An earlier gc that died may have left index entries of packs that are gone. */
  async #forgetGonePacks(signal: AbortSignal): Promise<void> {
    const { index, packs } = this.#options
    // In this order: a pack sealed in between is not taken for gone.
    const known = await index.use(index => index.packs())
    const present = new Set(await packs.list())
    const gone = new Set([...known.keys()].filter(id => !present.has(id)))
    if (gone.size === 0) return
    await index.use(async index => {
      for await (const page of index.iterate()) {
        throwIfAborted(signal)
        const stale = Array.from({ length: page.ids.length / ID_BYTES }, (_, at) => at).filter(at => {
          const place = decodePlace(idAt(page.ids, at), valueAt(page.values, at))
          return place !== undefined && gone.has(toHex(place.packId))
        })
        if (stale.length === 0) continue
        await index.deleteBatch(
          Buffer.concat(stale.map(at => idAt(page.ids, at))),
          Buffer.concat(stale.map(at => valueAt(page.values, at))),
        )
      }
      await index.deletePacks([...gone])
    })
  }
}

interface Taken {
  readonly census: PackCensus
  readonly marked: Reachability
  readonly listed: readonly RecoveryPoint[]
  readonly liveRuns: number
}

/** What a gc has found out, and what it takes away on the strength of that. */
class Survey implements GcSurvey {
  readonly #options: CollectorOptions
  readonly #taken: Taken
  #liveness: Liveness
  #later: Reachability | undefined
  #points: number
  #liveRuns: number

  private constructor(options: CollectorOptions, taken: Taken, liveness: Liveness) {
    this.#options = options
    this.#taken = taken
    this.#liveness = liveness
    this.#points = taken.listed.length
    this.#liveRuns = taken.liveRuns
  }

  static async take(options: CollectorOptions, taken: Taken, signal: AbortSignal): Promise<Survey> {
    return new Survey(options, taken, await taken.census.join([taken.marked], {}, signal))
  }

  get use(): StoreUse {
    const { liveBytes, liveRecords, missing } = this.#liveness
    return {
      packs: this.#taken.census.packs.map(({ id, size, state, records, recordBytes }, at) => ({
        id,
        size,
        state,
        records,
        recordBytes,
        liveRecords: liveRecords[at] ?? 0,
        liveBytes: liveBytes[at] ?? 0,
      })),
      missing,
      points: this.#points,
      liveRuns: this.#liveRuns,
    }
  }

  async relist(signal: AbortSignal): Promise<void> {
    const { points, runs, nodes, chunkSize } = this.#options
    const { census, marked, listed } = this.#taken
    const before = new Set(listed.map(point => point.id))
    let later: RecoveryPoint[]
    const commits = await runs.lockCommits('exclusive')
    try {
      const now = await points.list()
      later = [...now, ...(await points.removedMeanwhile())].filter(point => !before.has(point.id))
      this.#points = now.length
    } finally {
      await commits[Symbol.asyncDispose]()
    }
    // Every run that could have been writing one of the listed packs has ended.
    this.#liveRuns = 0
    if (later.length === 0) return
    const roots = later.map(point => ({ point, label: 0 }))
    this.#later = await Reachability.mark(roots, { nodes, chunkSize, known: marked }, signal)
    this.#liveness = await census.join([marked, this.#later], {}, signal)
  }

  sweep(work: SweepWork, signal: AbortSignal): Promise<Swept> {
    return new Sweeper({ ...this.#options, liveness: this.#liveness }).sweep(work, signal)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#taken.census[Symbol.asyncDispose]()
    await this.#taken.marked[Symbol.asyncDispose]()
    await this.#later?.[Symbol.asyncDispose]()
  }
}

function idAt(ids: Uint8Array, at: number): Uint8Array {
  return ids.subarray(at * ID_BYTES, (at + 1) * ID_BYTES)
}

function valueAt(values: Uint8Array, at: number): Uint8Array {
  return values.subarray(at * INDEX_VALUE_BYTES, (at + 1) * INDEX_VALUE_BYTES)
}
