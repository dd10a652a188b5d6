import { forEachLimited, throwIfAborted } from '../base/async.js'
import type { Clock } from '../base/clock.js'
import { errorCodeOf } from '../base/errors.js'
import type { RecoveryPoint } from '../model/recovery-point.js'
import type { LostPart, PointCatalog, VerifiedPack, VerifierPort, VerifySurvey } from '../store/store-types.js'
import type { Progress } from './progress.js'

/** Each reads 8 MiB at a time, and the native threads decode several batches at once. */
const PACKS_AT_ONCE = 3
/** After so many packs, what was read so far is kept for a run that is broken off. */
const PACKS_PER_NOTE = 64

export interface VerifyPorts {
  readonly points: PointCatalog
  readonly verifier: VerifierPort
  readonly progress: Progress
  readonly clock: Clock
}

export interface VerifyRequest {
  /** quick: structure alone. data: also reads, decodes and hashes. */
  readonly level: 'quick' | 'data'
  /** Which points, by domain. */
  readonly isMeant: (point: RecoveryPoint) => boolean
  /** Share of the needed bytes to read, 0 to 1, those first that were not read for longest. */
  readonly sample?: number | undefined
  /** Milliseconds: packs that were read since then are taken for good. */
  readonly maxAge?: number | undefined
}

/** Bytes of one disk, ascending, that a point has lost. */
export interface LostDisk {
  readonly disk: string
  readonly ranges: readonly { readonly offset: number; readonly length: number }[]
}

export interface HurtPoint {
  readonly point: RecoveryPoint
  readonly disks: readonly LostDisk[]
  /** Names of files beside the disks. */
  readonly files: readonly string[]
}

export interface VerifyResult {
  readonly points: number
  readonly hurt: readonly HurtPoint[]
  readonly unreadable: readonly { readonly file: string; readonly error: Error }[]
  readonly damagedPacks: readonly string[]
  readonly lostIds: number
  readonly readPacks: number
  readonly readBytes: number
  /** Of all packs with something needed in them. */
  readonly neededBytes: number
  /** Whether every needed byte was read, now or within `maxAge`. */
  readonly isComplete: boolean
  readonly durationMs: number
}

/**
 * Finds out whether every chosen point can be restored, by structure (quick)
 * or byte by byte (data). What is lost is told by point, disk and range, and
 * kept in the store: the next pull of a domain reads those chunks again from
 * the live disk. A run that is broken off keeps what it has read.
 */
export class VerifyJob {
  readonly #ports: VerifyPorts

  constructor(ports: VerifyPorts) {
    this.#ports = ports
  }

  /** Rejects with E_IO, E_INTERRUPTED. Damage is a result, not a rejection. */
  async run(request: VerifyRequest, signal: AbortSignal): Promise<VerifyResult> {
    const { verifier, progress, clock } = this.#ports
    const started = clock.monotonic()
    progress.report({ kind: 'started', subject: 'verify', verb: 'verify', facts: [['level', request.level]] })
    const { readable, unreadable } = await this.#listPoints()
    const meant = readable.filter(request.isMeant)
    progress.report({ kind: 'phase', subject: 'verify', phase: 'structure' })
    await using survey = await verifier.survey(meant, signal)

    const neededBytes = survey.packs.reduce((sum, pack) => sum + pack.liveBytes, 0)
    const read = request.level === 'data' ? await this.#readData(survey, request, signal) : NOTHING_READ
    await survey.remember()
    const hurt = survey.lostCount === 0 ? [] : await this.#hurtPoints(survey, meant, signal)
    await this.#noteResults(meant, { request, hurt, isComplete: read.isComplete })
    const status = hurt.length > 0 || unreadable.length > 0 ? 'failed' : 'success'
    progress.report({ kind: 'finished', subject: 'verify', status, readBytes: read.bytes })
    return {
      points: meant.length,
      hurt,
      unreadable,
      damagedPacks: survey.damagedPacks,
      lostIds: survey.lostCount,
      readPacks: read.packs,
      readBytes: read.bytes,
      neededBytes,
      isComplete: request.level === 'quick' || read.isComplete,
      durationMs: clock.monotonic() - started,
    }
  }

  /** A point that cannot be read must not hide the others. */
  async #listPoints(): Promise<{ readable: readonly RecoveryPoint[]; unreadable: VerifyResult['unreadable'] }> {
    const { points } = this.#ports
    const unreadable = await points.unreadable()
    if (unreadable.length === 0) return { readable: await points.list(), unreadable }
    return { readable: await points.readable(), unreadable }
  }

  async #readData(survey: VerifySurvey, request: VerifyRequest, signal: AbortSignal): Promise<ReadSums> {
    const { verifier, progress, clock } = this.#ports
    const before = await verifier.verifiedPacks()
    const chosen = choosePacks(survey.packs, before, request, clock.now())
    // Packs that are gone are forgotten here.
    const known = new Map([...before].filter(([id]) => survey.packs.some(pack => pack.id === id)))
    const sums = { packs: 0, bytes: 0 }
    const totalBytes = chosen.packs.reduce((sum, pack) => sum + pack.liveBytes, 0)
    const report = () =>
      progress.report({
        kind: 'disk',
        subject: 'verify',
        target: 'packs',
        totalBytes,
        doneBytes: Math.min(sums.bytes, totalBytes),
        newBytes: 0,
      })
    report()
    try {
      await forEachLimited(chosen.packs, PACKS_AT_ONCE, async pack => {
        throwIfAborted(signal)
        const onRead = (bytes: number) => {
          sums.bytes += bytes
          report()
        }
        const lost = await survey.readPack(pack.id, onRead, signal)
        sums.packs++
        // What is damaged is looked at again the next time.
        if (lost === 0) known.set(pack.id, Math.max(0, Math.floor(clock.now())))
        else known.delete(pack.id)
        if (sums.packs % PACKS_PER_NOTE === 0) await verifier.noteVerified(new Map(known))
      })
    } finally {
      await verifier.noteVerified(known)
    }
    return { ...sums, isComplete: chosen.isComplete }
  }

  async #hurtPoints(
    survey: VerifySurvey,
    points: readonly RecoveryPoint[],
    signal: AbortSignal,
  ): Promise<readonly HurtPoint[]> {
    const parts = new Map<string, LostPart[]>()
    for await (const part of survey.findLost(points, signal)) {
      const of = parts.get(part.point.id) ?? []
      of.push(part)
      parts.set(part.point.id, of)
    }
    const hurt: HurtPoint[] = []
    for (const [id, of] of parts) {
      // Forgotten since, and perhaps collected: then nothing of it is missed.
      const point = await this.#ports.points.get(id)
      if (point === undefined) continue
      const disks = new Map<string, { offset: number; length: number }[]>()
      const files: string[] = []
      for (const part of of) {
        if ('file' in part) {
          files.push(part.file)
          continue
        }
        const ranges = disks.get(part.disk) ?? []
        ranges.push({ offset: part.offset, length: part.length })
        disks.set(part.disk, ranges)
      }
      hurt.push({ point, files, disks: [...disks].map(([disk, ranges]) => ({ disk, ranges })) })
    }
    return hurt
  }

  /** Best effort: a store that cannot be written to can be verified all the same. */
  async #noteResults(
    points: readonly RecoveryPoint[],
    found: { readonly request: VerifyRequest; readonly hurt: readonly HurtPoint[]; readonly isComplete: boolean },
  ): Promise<void> {
    const { points: catalog, clock } = this.#ports
    const level = found.request.level === 'data' && found.isComplete ? 'data' : 'quick'
    const bad = new Map(found.hurt.map(one => [one.point.id, one]))
    for (const point of points) {
      const hurt = bad.get(point.id)
      const detail = hurt === undefined ? undefined : describeHurt(hurt)
      const ok = hurt === undefined
      try {
        const notes = await catalog.notes(point)
        const worst = ok ? level : found.request.level
        await catalog.annotate(point, { ...notes, verified: { level: worst, time: clock.now(), ok, detail } })
      } catch (error) {
        if (!NOT_WRITABLE.has(errorCodeOf(error))) throw error
      }
    }
  }
}

/** Also of notes that are damaged: they are no part of what can be restored, and list names them. */
const NOT_WRITABLE: ReadonlySet<string> = new Set(['E_NOT_FOUND', 'E_REFUSED', 'E_NO_SPACE', 'E_DAMAGED'])

interface ReadSums {
  readonly packs: number
  readonly bytes: number
  readonly isComplete: boolean
}

const NOTHING_READ: ReadSums = { packs: 0, bytes: 0, isComplete: false }

/** Those that were not read for longest first; whether what is left out was read recently. */
export function choosePacks(
  packs: readonly VerifiedPack[],
  verified: ReadonlyMap<string, number>,
  request: Pick<VerifyRequest, 'sample' | 'maxAge'>,
  now: number,
): { readonly packs: readonly VerifiedPack[]; readonly isComplete: boolean } {
  const { sample, maxAge } = request
  // A time from the future is a clock that jumped: it says nothing.
  const isRecent = (pack: VerifiedPack) => {
    const time = verified.get(pack.id)
    return maxAge !== undefined && time !== undefined && time <= now && now - time <= maxAge
  }
  const due = packs
    .filter(pack => !isRecent(pack))
    .toSorted((a, b) => (verified.get(a.id) ?? -1) - (verified.get(b.id) ?? -1) || (a.id < b.id ? -1 : 1))
  if (sample === undefined) return { packs: due, isComplete: true }
  const budget = packs.reduce((sum, pack) => sum + pack.liveBytes, 0) * sample
  const chosen: VerifiedPack[] = []
  let bytes = 0
  for (const pack of due) {
    if (bytes >= budget) break
    chosen.push(pack)
    bytes += pack.liveBytes
  }
  return { packs: chosen, isComplete: chosen.length === due.length }
}

function describeHurt({ disks, files }: HurtPoint): string {
  return [...disks.map(({ disk }) => disk), ...files].join(', ')
}
