import { forEachLimited } from '../base/async.js'
import { BackupError } from '../base/errors.js'
import { isHex } from '../base/hex.js'
import { invariant } from '../base/invariant.js'
import type { RandomSource } from '../base/random.js'
import { damaged } from '../format/damage.js'
import { decodeNotes, encodeNotes } from '../format/notes.js'
import { decodePoint, encodePoint, isDomainUuid } from '../format/point.js'
import type { PointContents, PointNotes, RecoveryPoint } from '../model/recovery-point.js'
import type { FileSeals } from './file-seals.js'
import { notesKeyOf, pointKeyOf, tombstoneKeyOf } from './layout.js'
import type { ObjectStore } from './object-store.js'
import type { PointCatalog } from './store-types.js'

const READS_AT_ONCE = 8
/** Decoded points kept in memory; they are immutable. */
const MAX_CACHED = 4096

export interface PointsOptions {
  readonly objects: ObjectStore
  readonly seals: FileSeals
  /** 32 hex characters. */
  readonly storeId: string
  readonly random: RandomSource
  /** Whether a gc is under way in some process. */
  readonly isGcActive: () => Promise<boolean>
}

/** A point file that was found, readable or not. */
interface FoundPoint {
  readonly file: string
  readonly point: RecoveryPoint | undefined
  readonly error: Error | undefined
}

/** The point files of a store. */
export class Points implements PointCatalog {
  readonly #objects: ObjectStore
  readonly #seals: FileSeals
  readonly #storeId: string
  readonly #random: RandomSource
  readonly #isGcActive: () => Promise<boolean>
  readonly #cache = new Map<string, RecoveryPoint>()

  constructor(options: PointsOptions) {
    this.#objects = options.objects
    this.#seals = options.seals
    this.#storeId = options.storeId
    this.#random = options.random
    this.#isGcActive = options.isGcActive
  }

  async list(domainUuid?: string): Promise<RecoveryPoint[]> {
    const points: RecoveryPoint[] = []
    for (const { point, error } of await this.#find(domainUuid)) {
      if (error !== undefined) throw error
      if (point !== undefined) points.push(point)
    }
    return points.sort(byDomainAndSequence)
  }

  async readable(): Promise<RecoveryPoint[]> {
    const points = (await this.#find(undefined)).map(({ point }) => point).filter(point => point !== undefined)
    return points.sort(byDomainAndSequence)
  }

  async unreadable(): Promise<{ readonly file: string; readonly error: Error }[]> {
    const found = await this.#find(undefined)
    return found.flatMap(({ file, error }) => (error === undefined ? [] : [{ file, error }]))
  }

  async latest(domainUuid: string): Promise<RecoveryPoint | undefined> {
    return (await this.list(domainUuid)).at(-1)
  }

  async get(id: string): Promise<RecoveryPoint | undefined> {
    if (!isHex(id, 32)) return undefined
    const key = (await this.#objects.list('points')).find(candidate => candidate.endsWith(`/${id}.point`))
    if (key === undefined) return undefined
    const { point, error } = await this.#read(key)
    if (error !== undefined) throw error
    return point
  }

  async notes(point: RecoveryPoint): Promise<PointNotes> {
    const bytes = await this.#objects.get(notesKeyOf(point.domain.uuid, point.id))
    return bytes === undefined ? { tags: point.tags } : decodeNotes(point.id, bytes, this.#seals.expectation())
  }

  async annotate(point: RecoveryPoint, notes: PointNotes): Promise<void> {
    if ((await this.#objects.size(pointKeyOf(point.domain.uuid, point.id))) === undefined) {
      throw new BackupError('E_NOT_FOUND', `recovery point ${point.id} is gone`)
    }
    await this.#objects.replace(
      notesKeyOf(point.domain.uuid, point.id),
      encodeNotes(point.id, notes, this.#seals.next()),
    )
  }

  async remove(point: RecoveryPoint): Promise<void> {
    // I8: a pull that began meanwhile may inherit from this point, and a gc that
    // has not seen it may be about to list points for the last time.
    if (await this.#isGcActive()) {
      const key = tombstoneKeyOf(point.domain.uuid, point.id)
      await this.#objects.replace(key, encodePoint(point, this.#seals.next()))
    }
    // The commit goes first (I3, backwards); notes without a point mean nothing.
    await this.#objects.remove(pointKeyOf(point.domain.uuid, point.id))
    this.#cache.delete(pointKeyOf(point.domain.uuid, point.id))
    await this.#objects.remove(notesKeyOf(point.domain.uuid, point.id))
  }

  /** Points that were removed while a gc was under way. Rejects with E_DAMAGED. */
  async removedMeanwhile(): Promise<RecoveryPoint[]> {
    const removed: RecoveryPoint[] = []
    for (const key of await this.#objects.list('points')) {
      if (!key.endsWith('.gone')) continue
      const bytes = await this.#objects.get(key)
      if (bytes !== undefined) removed.push(decodePoint(bytes, this.#seals.expectation()))
    }
    return removed
  }

  /** For a gc that has just begun: what is removed from now on is kept for it once more. */
  async forgetRemoved(): Promise<void> {
    for (const key of await this.#objects.list('points')) {
      if (key.endsWith('.gone')) await this.#objects.remove(key)
    }
  }

  /**
   * The commit itself. The caller has made durable, and checked, everything
   * that `contents` names (I1, I3), and holds the domain's lock.
   */
  async commit(contents: PointContents, runId: string): Promise<RecoveryPoint> {
    invariant(isDomainUuid(contents.domain.uuid), 'a point belongs to a domain with a uuid')
    const point: RecoveryPoint = {
      ...contents,
      id: Buffer.from(this.#random(16)).toString('hex'),
      storeId: this.#storeId,
      sequence: await this.#nextSequence(contents.domain.uuid),
      runId,
    }
    const key = pointKeyOf(contents.domain.uuid, point.id)
    const bytes = encodePoint(point, this.#seals.next())
    // What cannot be read back must not become a commit.
    const decoded = decodePoint(bytes, this.#seals.expectation())
    invariant(decoded.id === point.id && decoded.disks.length === point.disks.length, 'a point decodes to itself')
    if (!(await this.#objects.putNew(key, bytes))) {
      throw new BackupError('E_EXISTS', `${key} exists`, { why: 'Two recovery points drew the same random name.' })
    }
    this.#remember(key, decoded)
    return decoded
  }

  async #nextSequence(domainUuid: string): Promise<number> {
    const found = await this.#find(domainUuid)
    const highest = found.reduce((most, { point }) => Math.max(most, point?.sequence ?? 0), 0)
    // One that cannot be read had a number too.
    return highest + 1 + found.filter(({ error }) => error !== undefined).length
  }

  async #find(domainUuid: string | undefined): Promise<FoundPoint[]> {
    // What is no uuid names no directory of ours.
    if (domainUuid !== undefined && !isDomainUuid(domainUuid)) return []
    const keys = await this.#objects.list(domainUuid === undefined ? 'points' : `points/${domainUuid}`)
    const found: FoundPoint[] = []
    await forEachLimited(keys, READS_AT_ONCE, async key => {
      if (key.endsWith('.point')) found.push(await this.#read(key))
    })
    return found
  }

  /** A file that cannot be decoded is an answer; a directory or disk that cannot be read rejects. */
  async #read(key: string): Promise<FoundPoint> {
    const cached = this.#cache.get(key)
    if (cached !== undefined) return { file: key, point: cached, error: undefined }
    const bytes = await this.#objects.get(key)
    // Removed between listing and reading: then it is no point any more.
    if (bytes === undefined) return { file: key, point: undefined, error: undefined }
    try {
      const point = decodePoint(bytes, this.#seals.expectation())
      if (pointKeyOf(point.domain.uuid, point.id) !== key) throw damaged(key, 'it has the name of another point')
      this.#remember(key, point)
      return { file: key, point, error: undefined }
    } catch (error) {
      if (!(error instanceof BackupError)) throw error
      const named = new BackupError(error.code, `${key}: ${error.message}`, { cause: error, why: error.why })
      return { file: key, point: undefined, error: named }
    }
  }

  #remember(key: string, point: RecoveryPoint): void {
    const oldest = this.#cache.keys().next()
    if (this.#cache.size >= MAX_CACHED && oldest.done !== true) this.#cache.delete(oldest.value)
    this.#cache.set(key, point)
  }
}

function byDomainAndSequence(a: RecoveryPoint, b: RecoveryPoint): number {
  if (a.domain.uuid !== b.domain.uuid) return a.domain.uuid < b.domain.uuid ? -1 : 1
  return a.sequence - b.sequence || a.time - b.time || (a.id < b.id ? -1 : 1)
}
