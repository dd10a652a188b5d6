import { collect } from '../base/async.js'
import { invariant } from '../base/invariant.js'
import type { ChunkRun, PlannedRun } from '../model/chunk-plan.js'
import type { TailRun } from '../model/clean-tail.js'
import type { DiskGeometry } from '../model/disk-tree.js'
import type { StoredChunks, TreeDraft, TreeSide } from '../store/store-types.js'
import { auditItems, countDifferent, hasData, resolveBelow } from './bitmap-check.js'
import type { DiskSink, SinkResult } from './pull-disk.js'

/** What became of the bytes of a batch in one store. */
export type SinkStored =
  | { readonly kind: 'stored'; readonly chunks: StoredChunks }
  | { readonly kind: 'nothing' }
  | { readonly kind: 'failed' }

/** The runs of a batch that one sink takes, and what was stored of them. */
export interface SinkPart {
  readonly items: readonly PlannedRun[]
  readonly stored: SinkStored
}

/** Chunks as the export shows them and, where images are left out, as those show them. */
export interface ComparedBytes {
  readonly bytes: Uint8Array
  readonly under: Uint8Array | undefined
}

/**
 * Writes one disk into one store. Its first failure is kept and told at the
 * end, and nothing is done after it; no method rejects for the store's sake.
 */
export class SinkWriter {
  /** The tree that clean chunks come from. */
  readonly inherited: TreeSide | undefined
  readonly #sink: DiskSink
  readonly #geometry: DiskGeometry
  readonly #tree: TreeDraft
  readonly #totals = { dirtyBytes: 0, readBytes: 0, newBytes: 0, storedBytes: 0, newChunks: 0 }
  readonly #check = { compared: 0, missed: 0, isCut: false }
  #damaged: readonly ChunkRun[] = []
  #failure: { readonly error: unknown } | undefined

  private constructor(sink: DiskSink, geometry: DiskGeometry) {
    this.#sink = sink
    this.#geometry = geometry
    this.inherited = sink.isAudit ? undefined : sink.parent
    this.#tree = sink.draft.tree(geometry, this.inherited)
  }

  static async open(sink: DiskSink, geometry: DiskGeometry, signal: AbortSignal): Promise<SinkWriter> {
    invariant(sink.parent !== undefined || !sink.isAudit, 'an audit has something to compare with')
    const writer = new SinkWriter(sink, geometry)
    const { inherited } = writer
    if (inherited !== undefined) {
      await writer.#guard(async () => {
        writer.#damaged = await collect(sink.store.damagedChunks(inherited, signal))
      })
    }
    return writer
  }

  get hasFailed(): boolean {
    return this.#failure !== undefined || this.#sink.isGivenUp?.() === true
  }

  /** Of the parent's tree, what the store has lost: to be read again. */
  get damaged(): readonly ChunkRun[] {
    return this.#damaged
  }

  /** Of these runs, those that this sink does not inherit. */
  own(items: readonly PlannedRun[]): readonly PlannedRun[] {
    return this.inherited === undefined ? items : items.filter(({ clean }) => clean !== true)
  }

  /** Stores pieces of `bytes` (pairs offset, length in `spans`); `bytes` is borrowed until it settles. */
  async store(bytes: Uint8Array, spans: Uint32Array, signal: AbortSignal): Promise<SinkStored> {
    if (this.hasFailed) return { kind: 'failed' }
    if (spans.length === 0) return { kind: 'nothing' }
    const { draft, pace } = this.#sink
    const chunks = await this.#guard(async () => {
      const stored = await draft.storeChunks(bytes, spans, signal)
      await pace?.take(stored.storedBytes, signal)
      return stored
    })
    return chunks === undefined ? { kind: 'failed' } : { kind: 'stored', chunks }
  }

  /** Puts a batch into the tree; batches come in disk order. */
  async apply({ items, stored }: SinkPart): Promise<void> {
    if (this.hasFailed || stored.kind === 'failed') return
    await this.#guard(async () => {
      const chunks = stored.kind === 'stored' ? stored.chunks : undefined
      await this.#edit(items, chunks)
      const { parent, isAudit } = this.#sink
      if (parent !== undefined && isAudit) {
        const { compared, missed } = await auditItems(this.#sink.store, parent, { items, stored: chunks })
        this.#check.compared += compared
        this.#check.missed += missed
      }
      const bytes = items.reduce(
        (sum, item) => sum + (item.kind === 'read' || item.compared === true ? bytesOf(item, this.#geometry) : 0),
        0,
      )
      this.#totals.dirtyBytes += bytes
      this.#totals.readBytes += bytes
      this.#totals.newBytes += chunks?.newBytes ?? 0
      this.#totals.storedBytes += chunks?.storedBytes ?? 0
      this.#totals.newChunks += chunks?.newChunks ?? 0
    })
  }

  /** Compares chunks as the export shows them with what is inherited; `under` has them as the images below. */
  async compare(indexes: Float64Array, spans: Uint32Array, { bytes, under }: ComparedBytes): Promise<void> {
    const { inherited } = this
    if (this.hasFailed || inherited === undefined) return
    await this.#guard(async () => {
      const shown = await this.#sink.store.identify(bytes, spans)
      const known = await this.#sink.store.chunkIdsAt(inherited, indexes)
      const expected = under === undefined ? known : resolveBelow(known, await this.#sink.store.identify(under, spans))
      this.#check.missed += countDifferent(shown, expected)
      this.#check.compared += indexes.length
    })
  }

  /** Looks whether something is inherited where the export has zeros. */
  async compareTail(runs: readonly TailRun[]): Promise<void> {
    const { inherited } = this
    if (this.hasFailed || inherited === undefined) return
    await this.#guard(async () => {
      for (const run of runs) this.#check.isCut ||= await hasData(this.#sink.store, inherited, run)
    })
  }

  /** The new tree. */
  async finish(): Promise<SinkResult> {
    const finished = this.hasFailed ? undefined : await this.#guard(() => this.#tree.finish())
    if (finished === undefined) return { kind: 'failed', error: this.#failure?.error }
    const { root, newNodes } = finished
    const storedBytes = this.#totals.storedBytes + finished.storedBytes
    const reread = this.#damaged.reduce((sum, run) => sum + run.count, 0)
    return {
      kind: 'pulled',
      disk: { ...this.#check, reread, root, statistics: { ...this.#totals, storedBytes, newNodes } },
    }
  }

  async #edit(items: readonly PlannedRun[], stored: StoredChunks | undefined): Promise<void> {
    let taken = 0
    for (const { kind, first, count } of items) {
      if (kind === 'zero' || kind === 'hole' || kind === 'below') {
        await this.#tree.putRun(first, count, kind)
      } else if (stored !== undefined) {
        const indexes = Float64Array.from({ length: count }, (_, i) => first + i)
        await this.#tree.putChunks(indexes, sliceStored(stored, taken, count))
        taken += count
      }
    }
  }

  async #guard<T>(work: () => Promise<T>): Promise<T | undefined> {
    try {
      return await work()
    } catch (error) {
      if (this.#failure === undefined) this.#sink.onFailure?.(error)
      this.#failure ??= { error }
      return undefined
    }
  }
}

/** Of a run, the last chunk cut short by the end of the disk. */
export function bytesOf(run: ChunkRun, geometry: DiskGeometry): number {
  const start = run.first * geometry.chunkSize
  return Math.min((run.first + run.count) * geometry.chunkSize, geometry.size) - start
}

function sliceStored(stored: StoredChunks, from: number, count: number): StoredChunks {
  if (from === 0 && count === stored.count) return stored
  return {
    ...stored,
    count,
    ids: stored.ids.subarray(from * 32, (from + count) * 32),
    zero: stored.zero.subarray(from, from + count),
  }
}
