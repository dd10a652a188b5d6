import { messageOf, type Warning } from '../base/errors.js'
import { invariant } from '../base/invariant.js'
import type { BackupSessionPort, NewCheckpoint } from '../libvirt/session-types.js'
import { checkpointPrefix, familyOf } from '../model/checkpoint-name.js'
import { tooLittleChanged } from '../model/min-change.js'
import { type BaseHealth, type PlannedDisk, planPull, type PullPlan } from '../model/pull-plan.js'
import type { DomainRef, PointBlob, PointContents, RecoveryPoint } from '../model/recovery-point.js'
import type { PointDraft, PullJournal, Run, StorePort } from '../store/store-types.js'
import { recoverDeadRuns } from './dead-runs.js'
import { findPullBase } from './pull-base.js'
import type { DomainSurvey, PullPorts, PullRequest, PullTarget } from './pull-ports.js'

/** Checkpoints of this many newest points are kept: the newest is the base, the one before it the way back. */
const CHECKPOINTS_KEPT = 2

/** No point was made, since too little has changed: the newest one still stands for the domain. */
export interface SkippedPull {
  readonly latest: RecoveryPoint
  readonly changedBytes: number
  readonly warnings: readonly Warning[]
}

/** What one read gives for every target. */
export interface ReadFacts {
  readonly session: Pick<BackupSessionPort, 'checkpoint' | 'consistency' | 'keepCheckpoint' | 'time' | 'warnings'>
  readonly survey: DomainSurvey
}

/**
 * One target's part in a pull: its lock, its lease and journal, what it builds
 * on, its draft. Disposing it without finish() leaves the journal, so that the
 * next run cleans up.
 */
export class PullPart implements AsyncDisposable {
  readonly target: PullTarget
  readonly #ports: PullPorts
  readonly #domain: DomainRef
  readonly #lock: AsyncDisposable
  readonly #run: Run
  readonly #recovered: readonly Warning[]
  /** Why nothing, or less than there is, is built on. */
  #doubts: readonly Warning[] = []
  #plan: PullPlan = { disks: [], skipped: [], warnings: [] }
  #latest: RecoveryPoint | undefined
  #draft: PointDraft | undefined
  #checkpoint: NewCheckpoint | undefined

  private constructor(
    ports: PullPorts,
    parts: {
      readonly target: PullTarget
      readonly domain: DomainRef
      readonly lock: AsyncDisposable
      readonly run: Run
      readonly recovered: readonly Warning[]
    },
  ) {
    this.target = parts.target
    this.#ports = ports
    this.#domain = parts.domain
    this.#lock = parts.lock
    this.#run = parts.run
    this.#recovered = parts.recovered
  }

  /** Rejects with E_LOCKED where another pull of the domain runs on this store, and where a dead run cannot be cleaned up. */
  static async open(ports: PullPorts, target: PullTarget, domain: DomainRef): Promise<PullPart> {
    const { runs } = target.store
    const lock = await runs.lockDomain(domain.uuid)
    try {
      const recovered = await recoverDeadRuns({ ...ports, store: target.store }, domain)
      return new PullPart(ports, { target, domain, lock, recovered, run: await runs.begin('pull') })
    } catch (error) {
      await lock[Symbol.asyncDispose]()
      throw error
    }
  }

  get store(): StorePort {
    return this.target.store
  }

  /** What is read for this target. */
  get plan(): PullPlan {
    return this.#plan
  }

  /** The newest point of the domain in this store, where it can be built on. */
  get latest(): RecoveryPoint | undefined {
    return this.#latest
  }

  /** Of the checkpoint that is built on; undefined where none is, so that this part can be read with any other. */
  get family(): string | undefined {
    const base = this.#plan.disks.find(disk => disk.base !== undefined)?.base
    return base === undefined ? undefined : familyOf(base)
  }

  /** Finds out what to build on. Rejects with E_CHAIN_BROKEN, E_NO_DISK, E_NOT_FOUND. */
  async prepare(request: PullRequest, survey: DomainSurvey): Promise<void> {
    const { latest, wish, warnings } = await findPullBase(this.store, this.#domain, request.wish)
    this.#latest = latest
    this.#doubts = warnings
    this.#plan = planPull(this.#domain, survey.disks, wish, latest, await this.#baseHealth())
  }

  /** Too little has changed for a point, and nothing of the newest one waits to be read again. */
  async skipped({ minChangeBytes }: PullRequest, signal: AbortSignal): Promise<SkippedPull | undefined> {
    const latest = this.#latest
    if (minChangeBytes === undefined || minChangeBytes === 0 || latest?.checkpoint === undefined) return undefined
    const { dirtyBytes } = await this.#ports.hypervisor.takeCensus(this.#domain, latest.checkpoint, signal)
    const changedBytes = tooLittleChanged(this.#plan, latest, { dirtyBytes, minBytes: minChangeBytes })
    if (changedBytes === undefined) return undefined
    for (const { root, size } of latest.disks) {
      const side = { root, geometry: { size, chunkSize: this.store.chunkSize } }
      for await (const _lost of this.store.damagedChunks(side, signal)) return undefined
    }
    return { latest, changedBytes, warnings: [...this.#recovered, ...this.#doubts, ...this.#plan.warnings] }
  }

  plannedDisk(target: string): PlannedDisk | undefined {
    return this.#plan.disks.find(disk => disk.target === target)
  }

  /** What a later run would have to clean up; durable when it resolves. */
  async writeJournal(entry: Omit<PullJournal, 'baseCheckpoint'>): Promise<void> {
    await this.#run.writeJournal({ ...entry, baseCheckpoint: this.#latest?.checkpoint?.name })
  }

  async openDraft(): Promise<PointDraft> {
    this.#draft = await this.store.draft(this.#run)
    return this.#draft
  }

  /** The checkpoint of its own, where the session's is another target's. */
  useCheckpoint(checkpoint: NewCheckpoint): void {
    this.#checkpoint = checkpoint
  }

  /**
   * Makes the recovery point; then its checkpoint is kept, and older ones go.
   * Rejects with nothing committed, and as PointDraft.commit().
   */
  async commit(
    { session, survey }: ReadFacts,
    contents: Pick<PointContents, 'comment' | 'disks' | 'durationMs' | 'mode' | 'tags' | 'toolVersion'>,
    findings: readonly Warning[],
  ): Promise<{ readonly point: RecoveryPoint; readonly warnings: readonly Warning[] }> {
    const draft = this.#draft
    invariant(draft !== undefined, 'a commit has a draft')
    const blobs: PointBlob[] = []
    for (const { name, bytes, path } of survey.files) blobs.push(await draft.storeBlob(name, bytes, path))
    const warnings = [
      ...this.#recovered,
      ...survey.warnings,
      ...this.#doubts,
      ...this.#plan.warnings,
      ...session.warnings,
      ...findings,
    ]
    const { checkpoint, keepCheckpoint } =
      this.#checkpoint === undefined ? keeperOf(session) : keeperOf(this.#checkpoint)
    const point = await draft.commit({
      ...contents,
      domain: this.#domain,
      time: session.time,
      consistency: session.consistency,
      skipped: this.#plan.skipped,
      blobs,
      checkpoint,
      parent: this.#latest?.id,
      warnings,
    })
    // In this order: a point without its checkpoint costs one full read; a
    // checkpoint without its point is a bitmap that nobody deletes.
    await keepCheckpoint()
    return { point, warnings: [...warnings, ...(await this.#dropOldCheckpoints())] }
  }

  /** Nothing is left that a later run would have to clean up. */
  async finish(): Promise<void> {
    await this.#run.finish()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.#run[Symbol.asyncDispose]()
    } finally {
      await this.#lock[Symbol.asyncDispose]()
    }
  }

  async #baseHealth(): Promise<BaseHealth> {
    const checkpoint = this.#latest?.checkpoint
    if (checkpoint === undefined) return { known: false, soundDisks: new Set() }
    return await this.#ports.hypervisor.baseHealth(this.#domain, checkpoint)
  }

  /** The commit is done: what fails here is a warning, and tried again by the next run. */
  async #dropOldCheckpoints(): Promise<readonly Warning[]> {
    const { store } = this
    try {
      const points = await store.points.list(this.#domain.uuid)
      const keep = new Set(points.slice(-CHECKPOINTS_KEPT).flatMap(({ checkpoint }) => checkpoint?.name ?? []))
      return await this.#ports.hypervisor.dropCheckpoints(this.#domain, checkpointPrefix(store.id), keep)
    } catch (error) {
      return [{ code: 'W_CLEANUP', message: `older checkpoints were not deleted: ${messageOf(error)}` }]
    }
  }
}

function keeperOf(made: Pick<BackupSessionPort, 'checkpoint' | 'keepCheckpoint'>) {
  return { checkpoint: made.checkpoint, keepCheckpoint: () => made.keepCheckpoint() }
}
