import { throwIfAborted } from '../base/async.js'
import { errorCodeOf } from '../base/errors.js'
import { fromHex, toHex } from '../base/hex.js'
import type { DamagedCopy } from '../format/damage-list.js'
import { PACK_ID_BYTES } from '../format/pack.js'
import { RECORD_HEADER_BYTES } from '../format/record.js'
import { type VerifiedPacks, decodeVerifiedPacks, encodeVerifiedPacks } from '../format/verified-packs.js'
import type { PointBlob, RecoveryPoint } from '../model/recovery-point.js'
import { RECORD_STATUS } from '../native/codec.js'
import { blobGeometry, isOneRecord } from './blobs.js'
import type { DamageList, KnownDamage } from './damage-list.js'
import { VERIFIED_FILE } from './layout.js'
import { LostRangeFinder } from './lost-ranges.js'
import type { PackCatalog } from './pack-catalog.js'
import { type CountedPack, type Liveness, liveEntriesOf, PackCensus } from './pack-census.js'
import type { PackReader } from './pack-reader.js'
import { type PackRecordsParts, type RecordBatch, readPackRecords } from './pack-records.js'
import type { Points } from './points.js'
import { Reachability } from './reachability.js'
import type { LostPart, VerifiedPack, VerifierPort, VerifySurvey } from './store-types.js'
import type { NodeSource } from './tree-nodes.js'

/** A copy that is in no pack. */
const NO_PACK = new Uint8Array(PACK_ID_BYTES)
/** Ids looked up together to make sure that they are missing. */
const LOOK_UPS_AT_ONCE = 1024

export interface VerifierOptions extends PackRecordsParts {
  readonly points: Pick<Points, 'readable'>
  readonly packs: PackCatalog
  readonly reader: PackReader
  readonly nodes: NodeSource
  readonly damage: DamageList
  readonly chunkSize: number
}

/** Finds out what of the store can be relied on; verify-job.ts tells the story. */
export class Verifier implements VerifierPort {
  readonly #options: VerifierOptions

  constructor(options: VerifierOptions) {
    this.#options = options
  }

  async survey(points: readonly RecoveryPoint[], signal: AbortSignal): Promise<VerifySurvey> {
    for (let left = points; ; ) {
      const survey = await Survey.take(this.#options, left, signal)
      if (survey.lostCount === 0) return survey
      // What a point needs that was forgotten meanwhile may be gone by right; no gc takes anything from the others.
      const there = new Set((await this.#options.points.readable()).map(({ id }) => id))
      const still = left.filter(({ id }) => there.has(id))
      if (still.length === left.length) return survey
      await survey[Symbol.asyncDispose]()
      left = still
    }
  }

  async verifiedPacks(): Promise<VerifiedPacks> {
    const bytes = await this.#options.objects.get(VERIFIED_FILE)
    if (bytes === undefined) return new Map()
    try {
      return decodeVerifiedPacks(bytes)
    } catch (error) {
      if (errorCodeOf(error) !== 'E_DAMAGED') throw error
      return new Map()
    }
  }

  async noteVerified(packs: VerifiedPacks): Promise<void> {
    await this.#options.objects.replace(VERIFIED_FILE, encodeVerifiedPacks(packs))
  }
}

class Survey implements VerifySurvey {
  readonly #options: VerifierOptions
  readonly #known: KnownDamage
  readonly #census: PackCensus
  readonly #liveness: Liveness
  /** Ids, in hex, that no copy gives back. */
  readonly #lost: Set<string>
  /** Copies found damaged in this run. */
  readonly #damaged: DamagedCopy[] = []
  /** Copies that were called damaged and were read well in this run. */
  readonly #sound = new Set<string>()

  private constructor(
    options: VerifierOptions,
    found: {
      readonly known: KnownDamage
      readonly census: PackCensus
      readonly liveness: Liveness
      readonly lost: Set<string>
    },
  ) {
    this.#options = options
    this.#known = found.known
    this.#census = found.census
    this.#liveness = found.liveness
    this.#lost = found.lost
  }

  static async take(options: VerifierOptions, points: readonly RecoveryPoint[], signal: AbortSignal): Promise<Survey> {
    const known = await options.damage.read()
    const lost = new Set<string>()
    const missing: Uint8Array[] = []
    await using marked = await Reachability.mark(
      points.map(point => ({ point, label: 0 })),
      { nodes: options.nodes, chunkSize: options.chunkSize, onLostNode: id => lost.add(toHex(id)) },
      signal,
    )
    const isDamaged = (pack: string, id: Uint8Array) => known.hasCopy(pack, id)
    const census = await PackCensus.take(options.packs, { isDamaged, isThorough: true }, signal)
    try {
      // What an earlier run could not read is lost until somebody reads it.
      const visitor = {
        onMissing: (id: Uint8Array) => missing.push(id),
        onOnlyDamaged: (id: Uint8Array) => lost.add(toHex(id)),
      }
      const liveness = await census.join([marked], visitor, signal)
      const survey = new Survey(options, { known, census, liveness, lost })
      await survey.#confirmMissing(missing, signal)
      return survey
    } catch (error) {
      await census[Symbol.asyncDispose]()
      throw error
    }
  }

  get packs(): readonly VerifiedPack[] {
    return this.#census.packs.flatMap((pack, at) => {
      const liveBytes = this.#liveness.liveBytes[at] ?? 0
      return liveBytes === 0 ? [] : [{ id: pack.id, liveBytes }]
    })
  }

  get damagedPacks(): readonly string[] {
    const isNeeded = (at: number) => (this.#liveness.liveRecords[at] ?? 0) > 0
    return this.#census.packs
      .filter(
        ({ state, hasHeader }, at) => state === 'unreadable' || (isNeeded(at) && (state !== 'sealed' || !hasHeader)),
      )
      .map(({ id }) => id)
  }

  get lostCount(): number {
    return this.#lost.size
  }

  async readPack(packId: string, onRead: (bytes: number) => void, signal: AbortSignal): Promise<number> {
    const pack = this.#census.packs.find(({ id }) => id === packId)
    if (pack === undefined) return 0
    let damaged = 0
    for await (const batch of this.#records(pack, signal)) {
      damaged += await this.#judge(packId, batch, signal)
      onRead(batch.entries.reduce((sum, entry) => sum + RECORD_HEADER_BYTES + entry.storedLength, 0))
    }
    return damaged
  }

  async *findLost(points: readonly RecoveryPoint[], signal: AbortSignal): AsyncGenerator<LostPart> {
    const finder = new LostRangeFinder(this.#options.nodes, id => this.#lost.has(toHex(id)))
    for (const point of points) {
      for (const disk of point.disks) {
        const geometry = { size: disk.size, chunkSize: this.#options.chunkSize }
        for await (const { first, count } of finder.find({ root: disk.root, geometry }, signal)) {
          const offset = first * geometry.chunkSize
          const end = Math.min(disk.size, (first + count) * geometry.chunkSize)
          yield { point, disk: disk.target, offset, length: end - offset }
        }
      }
      for (const blob of point.blobs) {
        if (await this.#isLostBlob(finder, blob, signal)) yield { point, file: blob.name }
      }
    }
  }

  async remember(): Promise<void> {
    const { damage } = this.#options
    // Others may have written meanwhile; what they found stays unless this run has looked itself.
    const before = await damage.read()
    const present = new Set(this.#census.packs.map(({ id }) => id))
    const kept = before.copies.filter(({ packId, id }) => {
      const pack = toHex(packId)
      // A healed copy is damaged all the same: its pack keeps it until a gc rewrites the pack.
      return present.has(pack) && !this.#sound.has(keyOf({ packId, id }))
    })
    const found = new Set(this.#damaged.map(({ id }) => toHex(id)))
    const missing = [...this.#lost].filter(id => !found.has(id)).map(id => ({ packId: NO_PACK, id: fromHex(id) }))
    const all = new Map([...kept, ...this.#damaged, ...missing].map(copy => [keyOf(copy), copy]))
    if (all.size > 0 || before.copies.length > 0) await damage.write([...all.values()])
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#census[Symbol.asyncDispose]()
  }

  async *#records(pack: CountedPack, signal: AbortSignal): AsyncGenerator<RecordBatch> {
    const { packs } = this.#options
    const read = pack.state === 'sealed' ? packs.read(pack.id) : packs.scan(pack.id)
    const contents = await read.catch(async (error: unknown) => {
      if ((await packs.size(pack.id)) === undefined) return undefined
      throw error
    })
    // A gc has rewritten it: what was needed is elsewhere, in a pack that was just checked.
    if (contents === undefined) return
    const entries = liveEntriesOf(pack.id, contents, this.#liveness)
    yield* readPackRecords(this.#options, { id: pack.id, entries }, signal)
  }

  /** Takes note of the damaged records of a batch. Gives how many ids are lost with them. */
  async #judge(packId: string, batch: RecordBatch, signal: AbortSignal): Promise<number> {
    let lost = 0
    for (const [at, entry] of batch.entries.entries()) {
      if (batch.statuses[at] === RECORD_STATUS.ok) {
        if (this.#known.hasCopy(packId, entry.id)) this.#sound.add(keyOf({ packId: fromHex(packId), id: entry.id }))
        this.#lost.delete(toHex(entry.id))
        continue
      }
      // Perhaps a gc has taken the pack away since.
      if ((await this.#options.packs.size(packId)) === undefined) return lost
      this.#damaged.push({ packId: fromHex(packId), id: entry.id })
      if (await this.#isReadable(entry.id, { kind: entry.kind, length: entry.plainLength }, signal)) continue
      this.#lost.add(toHex(entry.id))
      lost++
    }
    return lost
  }

  /** Whether any copy gives the bytes back. */
  async #isReadable(
    ids: Uint8Array,
    record: { readonly kind: number; readonly length: number },
    signal: AbortSignal,
  ): Promise<boolean> {
    const out = new Uint8Array(record.length)
    const outSpans = Uint32Array.of(0, record.length)
    try {
      await this.#options.reader.read({ ids, out, outSpans, kind: record.kind }, signal)
      return true
    } catch (error) {
      if (errorCodeOf(error) !== 'E_DAMAGED') throw error
      return false
    }
  }

  /** A gc may have moved them to packs that came after the listing. */
  async #confirmMissing(missing: readonly Uint8Array[], signal: AbortSignal): Promise<void> {
    // What this process saw of packs before says nothing of now.
    this.#options.locator.forgetAll()
    for (let at = 0; at < missing.length; at += LOOK_UPS_AT_ONCE) {
      throwIfAborted(signal)
      const ids = missing.slice(at, at + LOOK_UPS_AT_ONCE)
      const lengths = await this.#options.reader.plainLengths(Buffer.concat(ids))
      ids.forEach((id, index) => {
        if (lengths[index] === undefined) this.#lost.add(toHex(id))
      })
    }
  }

  async #isLostBlob(finder: LostRangeFinder, blob: PointBlob, signal: AbortSignal): Promise<boolean> {
    if (blob.id.every(byte => byte === 0)) return false
    if (this.#lost.has(toHex(blob.id))) return true
    if (isOneRecord(blob.length)) return false
    const side = {
      root: { kind: 'node' as const, id: blob.id },
      geometry: blobGeometry(blob.length, this.#options.chunkSize),
    }
    const first = await finder.find(side, signal).next()
    return first.done !== true
  }
}

function keyOf({ packId, id }: DamagedCopy): string {
  return `${toHex(packId)}${toHex(id)}`
}
