import { forEachLimited } from '../base/async.js'
import { BufferPool } from '../base/buffer-pool.js'
import { BackupError, errorCodeOf, messageOf, type Warning } from '../base/errors.js'
import { invariant } from '../base/invariant.js'
import type { BackupSessionPort, ExportedDisk, ScratchPlace } from '../libvirt/session-types.js'
import type { PlannedRun } from '../model/chunk-plan.js'
import { planPull, type BaseHealth, type PlannedDisk, type PullPlan } from '../model/pull-plan.js'
import type { DomainRef, PointBlob, PointDisk, RecoveryPoint } from '../model/recovery-point.js'
import type { PointDraft, PullJournal, Run, TreeSide } from '../store/store-types.js'
import { recoverDeadRuns } from './dead-runs.js'
import { BATCH_BYTES, type PulledDisk, pullDisk } from './pull-disk.js'
import type { DomainSurvey, PullPorts, PullRequest, RunPlaces } from './pull-ports.js'

/** Disks of one domain that are read at the same time. */
const DISKS_AT_ONCE = 4
/** Buffers of all disks together; with BATCH_BYTES this bounds a pull's memory. */
const POOL_BUFFERS = 8
/** Checkpoints of this many newest points are kept: the newest is the base, the one before it the way back. */
const CHECKPOINTS_KEPT = 2
/** Chunks per disk and pull that the dirty bitmap calls clean and that are read all the same. */
const CANARIES = 256
/** Tag of a point whose W_BITMAP somebody has seen to. */
export const BITMAP_ACKNOWLEDGED = 'bitmap-acknowledged'

export interface PullResult {
  readonly point: RecoveryPoint
  /** Of the point, and those that came after its commit. */
  readonly warnings: readonly Warning[]
}

/**
 * Copies one domain into the store as a new recovery point.
 *
 * Reads only what changed since the newest point of this store where libvirt
 * still has its checkpoint, everything otherwise. On failure no point appears,
 * the job is ended, the new checkpoint is deleted, and what was packed is
 * garbage for gc. What a dead run left behind is cleaned up first.
 */
export class PullJob {
  readonly #ports: PullPorts

  constructor(ports: PullPorts) {
    this.#ports = ports
  }

  /**
   * Rejects with E_LOCKED where another pull of the domain runs on this store,
   * E_DOMAIN_BUSY where libvirt runs another job on it, E_NO_DISK, E_AGENT,
   * E_NO_SPACE, E_SOURCE_GONE, E_INTERRUPTED once `signal` is aborted, and
   * with what reading and storing can meet.
   */
  async run(request: PullRequest, signal: AbortSignal): Promise<PullResult> {
    const { store } = this.#ports
    await using _lock = await store.runs.lockDomain(request.domain.uuid)
    const recovered = await recoverDeadRuns(this.#ports, request.domain)
    await using run = await store.runs.begin('pull')
    try {
      const result = await this.#pull(request, run, recovered, signal)
      await run.finish()
      return result
    } catch (error) {
      // A journal whose clean-up failed stays for the next run.
      if (isSuppressed(error)) throw asFirstFailure(error)
      await run.finish()
      throw error
    }
  }

  async #pull(request: PullRequest, run: Run, recovered: readonly Warning[], signal: AbortSignal): Promise<PullResult> {
    const { store, hypervisor, progress, clock } = this.#ports
    const { domain } = request
    const started = clock.monotonic()
    // A process of its own takes a while to be ready: meanwhile the domain is looked at.
    const arming = this.#ports.startGuardian()
    await using _guardian = disposedWhenReady(arming)
    await using _started = request.startPaused === true ? await hypervisor.startPaused(domain) : undefined
    const survey = await hypervisor.survey(domain, signal)
    const { latest, unreadable } = await this.#latestPoint(domain)
    const health = await this.#baseHealth(domain, latest)
    const suspicion = await this.#suspicion(latest)
    const wish = suspicion === undefined ? request.wish : { ...request.wish, mode: 'full' as const }
    const plan = planPull(domain, survey.disks, wish, latest, health)
    const places = hypervisor.namePlaces(
      checkpointPrefix(store.id),
      plan.disks.map(({ target }) => target),
    )
    progress.report({ kind: 'started', subject: domain.name, verb: 'pull', facts: describe(plan, latest) })

    const journal = this.#journalOf(request.domain, places, latest)
    const guardian = await arming
    const noteFrozen = async (frozen: boolean) => {
      guardian.order({ domainUuid: domain.uuid, frozen, socket: places.socket, disarmed: false })
      await run.writeJournal({ ...journal, frozen })
    }
    await noteFrozen(false)
    await using _dirs = await hypervisor.makePlaces(places)

    progress.report({ kind: 'phase', subject: domain.name, phase: 'checkpoint' })
    await using session = await hypervisor.beginBackup(
      {
        domain,
        disks: plan.disks.map(disk => ({ ...disk, scratch: scratchOf(places, disk) })),
        checkpoint: plan.disks.some(({ tracked }) => tracked) ? places.checkpoint : undefined,
        socket: places.socket,
        freeze: request.freeze,
        scratchLimits: request.scratchLimits,
        onFreeze: noteFrozen,
      },
      signal,
    )
    await using draft = await store.draft(run)

    const untilFailure = AbortSignal.any([signal, session.failure])
    const { disks, findings } = await this.#pullDisks({ domain, plan, session, draft, latest }, untilFailure)
    await session.end()

    progress.report({ kind: 'phase', subject: domain.name, phase: 'commit' })
    const warnings = [
      ...recovered,
      ...survey.warnings,
      ...unreadable,
      ...(suspicion === undefined ? [] : [suspicion]),
      ...plan.warnings,
      ...session.warnings,
      ...findings,
    ]
    const point = await draft.commit({
      domain,
      time: session.time,
      mode: disks.some(({ mode }) => mode === 'incremental') ? 'incremental' : 'full',
      consistency: session.consistency,
      disks,
      skipped: plan.skipped,
      blobs: await storeFiles(draft, survey),
      checkpoint: session.checkpoint,
      parent: latest?.id,
      warnings,
      durationMs: Math.round(clock.monotonic() - started),
      tags: request.tags,
      comment: request.comment,
      toolVersion: this.#ports.toolVersion,
    })
    // In this order: a point without its checkpoint costs one full read; a
    // checkpoint without its point is a bitmap that nobody deletes.
    await session.keepCheckpoint()
    return { point, warnings: [...warnings, ...(await this.#dropOldCheckpoints(domain))] }
  }

  async #pullDisks(
    { domain, plan, session, draft, latest }: DisksToPull,
    signal: AbortSignal,
  ): Promise<{ readonly disks: readonly PointDisk[]; readonly findings: readonly Warning[] }> {
    const { store, progress } = this.#ports
    const pool = new BufferPool(POOL_BUFFERS, Math.max(BATCH_BYTES, store.chunkSize))
    const disks = new Map<string, PointDisk>()
    const findings: Warning[] = []
    await forEachLimited(session.disks, DISKS_AT_ONCE, async exported => {
      const { target, size } = exported
      const planned = plan.disks.find(disk => disk.target === target)
      invariant(planned !== undefined, 'libvirt exports only what was asked for')
      const geometry = { size, chunkSize: store.chunkSize }
      const seen = { totalBytes: 0, doneBytes: 0, newBytes: 0 }
      const show = () => progress.report({ kind: 'disk', subject: domain.name, target, ...seen })

      await using source = await this.#ports.openExport(session.address, exported, signal)
      if (source.size !== size) {
        throw new BackupError('E_NBD_PROTOCOL', `${target}: the export has ${source.size} bytes, the disk ${size}`)
      }
      const pull = async (parent: TreeSide | undefined, isAudit: boolean) =>
        await pullDisk(
          {
            source,
            geometry,
            parent,
            isAudit,
            canaries: { count: CANARIES, random: this.#ports.random },
            store,
            draft,
            pool,
            storePace: this.#ports.storePace,
            onPlanned: run => {
              if (run.kind === 'read') seen.totalBytes += bytesOf(run, geometry)
              show()
            },
            onProgress: ({ readBytes, newBytes }) => {
              seen.doneBytes += readBytes
              seen.newBytes += newBytes
              show()
            },
          },
          signal,
        )

      const parent = parentOf(exported, latest, store.chunkSize)
      const isAudit = parent !== undefined && planned.isAudit
      let isIncremental = parent !== undefined && !isAudit
      let result = await pull(parent, isAudit).catch((error: unknown) => {
        // What the parent's tree lost is in the domain still.
        if (parent === undefined || errorCodeOf(error) !== 'E_DAMAGED') throw error
        findings.push(lostParentWarning(target, error))
        isIncremental = false
        return pull(undefined, false)
      })
      if (result.reread > 0) findings.push(healedWarning(target, result.reread))
      if (result.missed > 0) findings.push(bitmapWarning(target, result, isAudit))
      if (result.missed > 0 && isIncremental) {
        result = await pull(undefined, false)
        isIncremental = false
      }
      const { root, statistics } = result
      const mode = isIncremental ? 'incremental' : 'full'
      disks.set(target, { target, size, root, mode, source: planned.source, statistics })
    })
    const inOrder = plan.disks.map(({ target }) => {
      const disk = disks.get(target)
      invariant(disk !== undefined, 'every planned disk was exported')
      return disk
    })
    return { disks: inOrder, findings }
  }

  /**
   * The point to build on. A point file that cannot be read must not keep the
   * domain from being backed up: it might be the newest, so nothing is built on.
   */
  async #latestPoint(domain: DomainRef): Promise<{ latest: RecoveryPoint | undefined; unreadable: Warning[] }> {
    try {
      return { latest: await this.#ports.store.points.latest(domain.uuid), unreadable: [] }
    } catch (error) {
      if (errorCodeOf(error) !== 'E_DAMAGED') throw error
      const message = `a recovery point cannot be read, so everything is read: ${messageOf(error)}`
      return { latest: undefined, unreadable: [{ code: 'W_CHAIN', message }] }
    }
  }

  /**
   * Whether a dirty bitmap of this domain was caught missing writes, and nobody
   * has acknowledged it: nothing is inherited until then.
   */
  async #suspicion(latest: RecoveryPoint | undefined): Promise<Warning | undefined> {
    if (latest?.warnings.some(({ code }) => code === 'W_BITMAP') !== true) return undefined
    if ((await this.#ports.store.points.notes(latest)).tags.includes(BITMAP_ACKNOWLEDGED)) return undefined
    const point = `@${latest.id.slice(0, 7)}`
    return {
      code: 'W_BITMAP',
      message:
        `the dirty bitmap was wrong at ${point} or before, so everything is read until somebody has looked into it ` +
        `and says so:   virtvault tag ${point} +${BITMAP_ACKNOWLEDGED}`,
    }
  }

  async #baseHealth(domain: DomainRef, latest: RecoveryPoint | undefined): Promise<BaseHealth> {
    if (latest?.checkpoint === undefined) return { known: false, soundDisks: new Set() }
    return await this.#ports.hypervisor.baseHealth(domain, latest.checkpoint)
  }

  /** The commit is done: what fails here is a warning, and tried again by the next run. */
  async #dropOldCheckpoints(domain: DomainRef): Promise<Warning[]> {
    const { store, hypervisor } = this.#ports
    try {
      const points = await store.points.list(domain.uuid)
      const keep = new Set(points.slice(-CHECKPOINTS_KEPT).flatMap(({ checkpoint }) => checkpoint?.name ?? []))
      return [...(await hypervisor.dropCheckpoints(domain, checkpointPrefix(store.id), keep))]
    } catch (error) {
      return [{ code: 'W_CLEANUP', message: `older checkpoints were not deleted: ${messageOf(error)}` }]
    }
  }

  #journalOf(domain: DomainRef, places: RunPlaces, latest: RecoveryPoint | undefined): PullJournal {
    return {
      kind: 'pull',
      domainUuid: domain.uuid,
      domainName: domain.name,
      uri: this.#ports.hypervisor.uri,
      checkpoint: places.checkpoint,
      baseCheckpoint: latest?.checkpoint?.name,
      socket: places.socket,
      scratch: [...places.scratch.values()].flatMap(place => (place.kind === 'file' ? place.path : [])),
      frozen: false,
    }
  }
}

interface DisksToPull {
  readonly domain: DomainRef
  readonly plan: PullPlan
  readonly session: BackupSessionPort
  readonly draft: PointDraft
  readonly latest: RecoveryPoint | undefined
}

/** Disposes of what is being made, whether it is waited for before that or not. */
function disposedWhenReady(made: Promise<AsyncDisposable>): AsyncDisposable {
  // Who waits for it hears of a failure; who never gets there need not.
  const quiet = made.catch(() => undefined)
  return { [Symbol.asyncDispose]: async () => (await quiet)?.[Symbol.asyncDispose]() }
}

/** Starts the names of a store's checkpoints, so that several stores and tools can share a domain. */
export function checkpointPrefix(storeId: string): string {
  return `virtvault-${storeId.slice(0, 8)}-`
}

/** I7: a parent only where libvirt confirmed the base for this very disk. */
function parentOf(exported: ExportedDisk, latest: RecoveryPoint | undefined, chunkSize: number) {
  if (exported.bitmap === undefined) return undefined
  const before = latest?.disks.find(({ target }) => target === exported.target)
  invariant(before !== undefined, 'I7: an incremental disk has a parent')
  return { root: before.root, geometry: { size: before.size, chunkSize } }
}

function scratchOf(places: RunPlaces, disk: PlannedDisk): ScratchPlace {
  const place = places.scratch.get(disk.target)
  invariant(place !== undefined, 'every disk has a place for its scratch')
  return place
}

function bitmapWarning(target: string, { compared, missed }: PulledDisk, isAudit: boolean): Warning {
  return {
    code: 'W_BITMAP',
    message:
      `${target}: ${missed} of ${compared} chunks that the dirty bitmap calls unchanged have changed: something ` +
      'writes to the image past QEMU, or its bitmap is broken. ' +
      (isAudit ? 'This point has all of them' : 'Everything was read instead') +
      '; earlier incremental points of this disk may lack such changes',
  }
}

function healedWarning(target: string, chunks: number): Warning {
  return {
    code: 'W_DAMAGE_HEALED',
    message: `${target}: ${chunks} chunks that verify had found damaged in the store were read again from the disk`,
  }
}

function lostParentWarning(target: string, error: unknown): Warning {
  return {
    code: 'W_CHAIN',
    message: `${target}: the store has lost a part of the last recovery point (${messageOf(error)}): everything was read`,
  }
}

function bytesOf(run: PlannedRun, geometry: { readonly size: number; readonly chunkSize: number }): number {
  const start = run.first * geometry.chunkSize
  return Math.min((run.first + run.count) * geometry.chunkSize, geometry.size) - start
}

async function storeFiles(draft: PointDraft, survey: DomainSurvey): Promise<readonly PointBlob[]> {
  const blobs: PointBlob[] = []
  for (const { name, bytes, path } of survey.files) blobs.push(await draft.storeBlob(name, bytes, path))
  return blobs
}

function describe(plan: PullPlan, latest: RecoveryPoint | undefined): (readonly [string, string])[] {
  const incremental = plan.disks.some(({ base }) => base !== undefined)
  const facts: [string, string][] = [['mode', incremental ? 'incremental' : 'full']]
  if (incremental && latest !== undefined) facts.push(['since', `@${latest.id.slice(0, 7)}`])
  facts.push(['disks', plan.disks.map(({ target }) => target).join(',')])
  return facts
}

/** What `await using` throws when undoing failed too: `suppressed` is what went wrong first. */
interface Suppressed extends Error {
  readonly error: unknown
  readonly suppressed: unknown
}

function isSuppressed(error: unknown): error is Suppressed {
  return error instanceof Error && error.name === 'SuppressedError' && 'suppressed' in error
}

function asFirstFailure(error: Suppressed): BackupError {
  let first: unknown = error
  while (isSuppressed(first)) first = first.suppressed
  const known = first instanceof BackupError ? first : undefined
  return new BackupError(errorCodeOf(first), messageOf(first), {
    why: known?.why,
    hints: [...(known?.hints ?? []), `cleaning up failed too (${messageOf(error.error)}); the next pull tries again`],
    cause: error,
  })
}
