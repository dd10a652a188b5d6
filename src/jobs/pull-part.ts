import { errorCodeOf, messageOf, type Warning } from '../base/errors.js'
import { invariant } from '../base/invariant.js'
import type { BackupSessionPort, NewCheckpoint } from '../libvirt/session-types.js'
import { checkpointPrefix, familyOf } from '../model/checkpoint-name.js'
import { type BaseHealth, type PlannedDisk, planPull, type PullPlan } from '../model/pull-plan.js'
import type { DomainRef, PointBlob, PointContents, RecoveryPoint } from '../model/recovery-point.js'
import type { PointDraft, PullJournal, Run, StorePort } from '../store/store-types.js'
import { recoverDeadRuns } from './dead-runs.js'
import type { DomainSurvey, PullPorts, PullRequest, PullTarget } from './pull-ports.js'

/** Checkpoints of this many newest points are kept: the newest is the base, the one before it the way back. */
const CHECKPOINTS_KEPT = 2
/** Tag of a point whose W_BITMAP somebody has seen to. */
export const BITMAP_ACKNOWLEDGED = 'bitmap-acknowledged'

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
  #unreadable: readonly Warning[] = []
  #suspicion: Warning | undefined
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
    this.#latest = await this.#findLatest()
    const health = await this.#baseHealth()
    this.#suspicion = await this.#suspect()
    const wish = this.#suspicion === undefined ? request.wish : { ...request.wish, mode: 'full' as const }
    this.#plan = planPull(this.#domain, survey.disks, wish, this.#latest, health)
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
      ...this.#unreadable,
      ...(this.#suspicion === undefined ? [] : [this.#suspicion]),
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

  /**
   * The point to build on. A point file that cannot be read must not keep the
   * domain from being backed up: it might be the newest, so nothing is built on.
   */
  async #findLatest(): Promise<RecoveryPoint | undefined> {
    try {
      return await this.store.points.latest(this.#domain.uuid)
    } catch (error) {
      if (errorCodeOf(error) !== 'E_DAMAGED') throw error
      const message = `a recovery point cannot be read, so everything is read: ${messageOf(error)}`
      this.#unreadable = [{ code: 'W_CHAIN', message }]
      return undefined
    }
  }

  async #baseHealth(): Promise<BaseHealth> {
    const checkpoint = this.#latest?.checkpoint
    if (checkpoint === undefined) return { known: false, soundDisks: new Set() }
    return await this.#ports.hypervisor.baseHealth(this.#domain, checkpoint)
  }

  /**
   * Whether a dirty bitmap of this domain was caught missing writes, and nobody
   * has acknowledged it: nothing is inherited until then.
   */
  async #suspect(): Promise<Warning | undefined> {
    const latest = this.#latest
    if (latest?.warnings.some(({ code }) => code === 'W_BITMAP') !== true) return undefined
    if ((await this.store.points.notes(latest)).tags.includes(BITMAP_ACKNOWLEDGED)) return undefined
    const point = `@${latest.id.slice(0, 7)}`
    return {
      code: 'W_BITMAP',
      message:
        `the dirty bitmap was wrong at ${point} or before, so everything is read until somebody has looked into it ` +
        `and says so:   virtvault tag ${point} +${BITMAP_ACKNOWLEDGED}`,
    }
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
