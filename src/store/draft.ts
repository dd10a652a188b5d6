import { forEachLimited, throwIfAborted } from '../base/async.js'
import { BackupError } from '../base/errors.js'
import { invariant } from '../base/invariant.js'
import { ID_BYTES, RECORD_KIND } from '../format/record.js'
import { PACK_KIND, type PackKind } from '../format/pack.js'
import { type DiskGeometry, chunkCount } from '../model/disk-tree.js'
import type { PointBlob, PointContents, RecoveryPoint } from '../model/recovery-point.js'
import { native } from '../native/binding.js'
import { blobGeometry, isOneRecord } from './blobs.js'
import type { KnownDamage } from './damage-list.js'
import type { IndexHolder } from './index-holder.js'
import type { Locator } from './locator.js'
import { type PackCatalog, type PackContents, indexBatchOf } from './pack-catalog.js'
import { PackWriter, type PackWriterOptions } from './pack-writer.js'
import type { Points } from './points.js'
import type { LeasedRun, Runs } from './runs.js'
import type { PointDraft, StoredChunks, TreeDraft, TreeSide } from './store-types.js'
import { type NodeSink, TreeEditor } from './tree-draft.js'
import type { NodeSource } from './tree-nodes.js'

const CHECKS_AT_ONCE = 16
/** Chunks of a large blob that are stored together. */
const BLOB_CHUNKS_AT_ONCE = 64

export interface DraftOptions {
  readonly run: LeasedRun
  readonly runs: Runs
  readonly points: Points
  readonly index: IndexHolder
  readonly locator: Locator
  readonly packs: PackCatalog
  readonly nodes: NodeSource
  readonly writer: Omit<PackWriterOptions, 'kind' | 'onSealed'>
  readonly chunkSize: number
  /** Packs, in hex, that a gc is about to take away. */
  readonly condemned: ReadonlySet<string>
  /** Copies that verify found damaged: they count as absent. */
  readonly damage: KnownDamage
}

/** A recovery point in the making: what it stores is garbage until commit() has written the point file. */
export class Draft implements PointDraft {
  readonly #options: DraftOptions
  readonly #data: PackWriter
  readonly #meta: PackWriter
  /**
   * Ids that are being looked up or stored, or are in a pack that is not
   * indexed yet. What is here is not stored a second time; if it fails, the
   * whole draft does.
   */
  readonly #underWay = new Set<string>()
  /** Packs that this point relies on, its own and those that already had what it needs, and their sizes. */
  readonly #reliedOn = new Map<string, number>()
  #failure: unknown
  #ended = false

  constructor(options: DraftOptions) {
    this.#options = options
    this.#data = this.#writer(PACK_KIND.data)
    this.#meta = this.#writer(PACK_KIND.meta)
  }

  async storeChunks(bytes: Uint8Array, spans: Uint32Array, signal: AbortSignal): Promise<StoredChunks> {
    throwIfAborted(signal)
    return this.#store(this.#data, RECORD_KIND.chunk, bytes, spans)
  }

  async storeBlob(name: string, bytes: Uint8Array, path?: string): Promise<PointBlob> {
    const id = isOneRecord(bytes.length) ? await this.#storeRecord(bytes) : await this.#storeTree(bytes)
    return { name, id, length: bytes.length, path }
  }

  tree(geometry: DiskGeometry, parent: TreeSide | undefined): TreeDraft {
    const nodes: NodeSink = {
      load: (ids, level) => this.#options.nodes.load(ids, level),
      store: async (bytes, spans) => {
        const stored = await this.#store(this.#meta, RECORD_KIND.node, bytes, spans)
        return { ids: stored.ids, newCount: stored.newChunks, storedBytes: stored.storedBytes }
      },
    }
    return new TreeEditor(nodes, geometry, parent)
  }

  async commit(contents: PointContents): Promise<RecoveryPoint> {
    invariant(!this.#ended, 'a draft is committed once')
    this.#ended = true
    try {
      // I3: packs, index (when each is sealed), point.
      await Promise.all([this.#data.seal(), this.#meta.seal()])
      if (this.#failure !== undefined) throw toError(this.#failure)
      const commits = await this.#options.runs.lockCommits('shared')
      try {
        await this.#checkReliedOn()
        return await this.#options.points.commit(contents, this.#options.run.id)
      } finally {
        await commits[Symbol.asyncDispose]()
      }
    } catch (error) {
      await this.#abandon()
      throw error
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#ended) return
    this.#ended = true
    await this.#abandon()
  }

  #writer(kind: PackKind): PackWriter {
    return new PackWriter({
      ...this.#options.writer,
      kind,
      onSealed: (pack, contents) => this.#sealed(pack, contents),
    })
  }

  async #abandon(): Promise<void> {
    await Promise.all([this.#data.abandon(), this.#meta.abandon()])
  }

  /** Names the pieces and stores those that no sealed pack has. */
  async #store(writer: PackWriter, kind: number, bytes: Uint8Array, spans: Uint32Array): Promise<StoredChunks> {
    invariant(!this.#ended, 'nothing is stored after the end of a draft')
    if (this.#failure !== undefined) throw toError(this.#failure)
    if (spans.length === 0) return NOTHING_STORED
    try {
      const { idKey } = this.#options.writer.keys
      const { ids, zero, sums } = await native().hashChunks(bytes, spans, { kind, key: idKey })
      const fresh = await this.#claimFresh(ids, zero)
      const stored = { count: spans.length / 2, ids, zero, newChunks: fresh.length }
      if (fresh.length === 0) return { ...stored, newBytes: 0, storedBytes: 0 }
      const wanted = gatherPieces({ ids, spans, sums }, fresh)
      const storedBytes = await writer.append({ bytes, kind, ...wanted })
      return { ...stored, newBytes: wanted.plainBytes, storedBytes }
    } catch (error) {
      // Others may count on what failed here.
      this.#failure ??= error
      throw error
    }
  }

  /** Positions of the pieces that must be stored; each id once. */
  async #claimFresh(ids: Uint8Array, zero: Uint8Array): Promise<number[]> {
    const claimed: number[] = []
    const keys: string[] = []
    const all = keysOf(ids)
    for (let piece = 0; piece < zero.length; piece++) {
      if (zero[piece] === 1) continue
      const key = all.slice(piece * ID_BYTES, (piece + 1) * ID_BYTES)
      if (this.#underWay.has(key)) continue
      this.#underWay.add(key)
      claimed.push(piece)
      keys.push(key)
    }
    if (claimed.length === 0) return claimed
    const { locator, condemned, damage } = this.#options
    const claimedIds = gatherIds(ids, claimed)
    const places = await locator.locate(claimedIds)
    return claimed.filter((_, at) => {
      const place = places[at]
      if (place === undefined || !place.sealed || condemned.has(place.pack)) return true
      const id = claimedIds.subarray(at * ID_BYTES, (at + 1) * ID_BYTES)
      if (damage.hasCopy(place.pack, id) || locator.isDistrusted(place.pack, id)) return true
      this.#reliedOn.set(place.pack, place.packSize)
      const key = keys[at]
      if (key !== undefined) this.#underWay.delete(key)
      return false
    })
  }

  async #sealed(pack: string, contents: PackContents): Promise<void> {
    this.#reliedOn.set(pack, contents.state.size)
    await this.#options.index.use(index => index.putBatch(indexBatchOf(pack, contents)))
    this.#options.locator.learn(pack, contents.state)
    for (const entry of contents.entries) this.#underWay.delete(keysOf(entry.id))
  }

  /** M2 and the last step of the dedup rule: under the commit lock no gc takes a pack away. */
  async #checkReliedOn(): Promise<void> {
    if (!(await this.#options.run.isCurrent())) {
      throw new BackupError('E_LOCKED', 'the lease of this run was taken away', {
        why: 'Something removed its file in the store, so what it relied on is no longer protected.',
        hints: ['Start the backup again.'],
      })
    }
    await forEachLimited(this.#reliedOn, CHECKS_AT_ONCE, async ([pack, size]) => {
      if ((await this.#options.packs.size(pack)) === size) return
      this.#options.locator.forget([pack])
      throw new BackupError('E_DAMAGED', `pack ${pack} vanished or changed its size while it was relied on`, {
        hints: ['Start the backup again: it stores anew what is missing.', 'Run verify.'],
      })
    })
  }

  async #storeRecord(bytes: Uint8Array): Promise<Uint8Array> {
    if (bytes.length === 0) return new Uint8Array(ID_BYTES)
    const stored = await this.#store(this.#meta, RECORD_KIND.blob, bytes, Uint32Array.of(0, bytes.length))
    return stored.ids
  }

  /** A blob too large for one record is a disk of its own. All zero: 32 zero bytes, as for one record. */
  async #storeTree(bytes: Uint8Array): Promise<Uint8Array> {
    const geometry = blobGeometry(bytes.length, this.#options.chunkSize)
    const tree = this.tree(geometry, undefined)
    for (let first = 0; first < chunkCount(geometry); first += BLOB_CHUNKS_AT_ONCE) {
      const count = Math.min(BLOB_CHUNKS_AT_ONCE, chunkCount(geometry) - first)
      const offsets = Array.from({ length: count }, (_, index) => (first + index) * geometry.chunkSize)
      const spans = Uint32Array.from(
        offsets.flatMap(offset => [offset, Math.min(geometry.chunkSize, bytes.length - offset)]),
      )
      const stored = await this.#store(this.#data, RECORD_KIND.chunk, bytes, spans)
      await tree.putChunks(
        Float64Array.from({ length: count }, (_, index) => first + index),
        stored,
      )
    }
    const { root } = await tree.finish()
    return root.kind === 'node' ? root.id : new Uint8Array(ID_BYTES)
  }
}

const NOTHING_STORED: StoredChunks = {
  count: 0,
  ids: new Uint8Array(0),
  zero: new Uint8Array(0),
  newChunks: 0,
  newBytes: 0,
  storedBytes: 0,
}

/** What is known of these pieces, and how much they are. */
function gatherPieces(
  of: { readonly ids: Uint8Array; readonly spans: Uint32Array; readonly sums: Uint32Array },
  pieces: readonly number[],
): { ids: Uint8Array; spans: Uint32Array; sums: Uint32Array; plainBytes: number } {
  const spans = new Uint32Array(pieces.length * 2)
  const sums = new Uint32Array(pieces.length)
  let plainBytes = 0
  for (const [at, piece] of pieces.entries()) {
    const length = of.spans[2 * piece + 1] ?? 0
    spans[2 * at] = of.spans[2 * piece] ?? 0
    spans[2 * at + 1] = length
    sums[at] = of.sums[piece] ?? 0
    plainBytes += length
  }
  return { ids: gatherIds(of.ids, pieces), spans, sums, plainBytes }
}

function gatherIds(ids: Uint8Array, pieces: readonly number[]): Uint8Array {
  const gathered = new Uint8Array(pieces.length * ID_BYTES)
  pieces.forEach((piece, at) => {
    gathered.set(ids.subarray(piece * ID_BYTES, (piece + 1) * ID_BYTES), at * ID_BYTES)
  })
  return gathered
}

/** The ids as one text, a character for each byte. */
function keysOf(ids: Uint8Array): string {
  return Buffer.from(ids.buffer, ids.byteOffset, ids.length).toString('latin1')
}

function toError(reason: unknown): Error {
  return reason instanceof Error ? reason : new Error(String(reason))
}
