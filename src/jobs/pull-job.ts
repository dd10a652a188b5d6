import { BackupError, errorCodeOf, messageOf, type Warning } from '../base/errors.js'
import { invariant } from '../base/invariant.js'
import type { ScratchPlace } from '../libvirt/session-types.js'
import { checkpointPrefix, MAX_STEPS, stepOf, tokenOfStep } from '../model/checkpoint-name.js'
import type { PlannedDisk } from '../model/pull-plan.js'
import type { DomainRef, RecoveryPoint } from '../model/recovery-point.js'
import { BelowOfRead } from './below-of-read.js'
import { withBacking } from './below-survey.js'
import type { GuardianPort } from './guardian-port.js'
import { PartOfRead, pullDisks } from './pull-disks.js'
import { PullPart, type ReadFacts, type SkippedPull } from './pull-part.js'
import type { DomainSurvey, PullPorts, PullRequest, PullTarget, RunPlaces } from './pull-ports.js'

export interface PullResult {
  readonly point: RecoveryPoint
  /** Of the point, and those that came after its commit. */
  readonly warnings: readonly Warning[]
}

/** What came of a pull for one of its targets. */
export type TargetOutcome =
  | ({ readonly kind: 'made'; readonly target: PullTarget } & PullResult)
  | ({ readonly kind: 'skipped'; readonly target: PullTarget } & SkippedPull)
  | { readonly kind: 'failed'; readonly target: PullTarget; readonly error: unknown }

/**
 * Copies one domain into one or several stores as a new recovery point.
 *
 * Reads only what changed since the newest point of a store where libvirt
 * still has its checkpoint, everything otherwise. Targets whose newest points
 * are of one read share the next one: docs/decisions/0050-one-read-many-stores.md.
 * On failure no point appears, the job is ended, the new checkpoint is deleted,
 * and what was packed is garbage for gc. What a dead run left behind is cleaned
 * up first.
 */
export class PullJob {
  readonly #ports: PullPorts

  constructor(ports: PullPorts) {
    invariant(ports.targets.length > 0, 'a pull has a target')
    this.#ports = ports
  }

  get targets(): readonly PullTarget[] {
    return this.#ports.targets
  }

  /**
   * One outcome per target, in their order; what fails for one of them does
   * not keep the others from theirs. Failures are E_LOCKED where another pull
   * of the domain runs on this store, E_DOMAIN_BUSY where libvirt runs another
   * job on it, E_NO_DISK, E_AGENT, E_NO_SPACE, E_SOURCE_GONE, E_INTERRUPTED
   * once `signal` is aborted, and what reading and storing can meet.
   */
  async run(request: PullRequest, signal: AbortSignal): Promise<readonly TargetOutcome[]> {
    const outcomes = new Map<PullTarget, TargetOutcome>()
    const parts: PullPart[] = []
    await using held = new Disposables()
    for (const target of this.#ports.targets) {
      try {
        parts.push(held.add(await PullPart.open(this.#ports, target, request.domain)))
      } catch (error) {
        outcomes.set(target, { kind: 'failed', target, error })
      }
    }
    const pull: Pull = { request, outcomes, parts, untidy: new Set() }
    if (parts.length > 0) await this.#settling(pull, parts, () => this.#pull(pull, signal))
    return this.#ports.targets.map(target => {
      const outcome = outcomes.get(target)
      invariant(outcome !== undefined, 'every target has an outcome')
      return outcome
    })
  }

  /** Sees to it that all `parts` have an outcome when `work` is over, and no journal where nothing is left behind. */
  async #settling(pull: Pull, parts: readonly PullPart[], work: () => Promise<void>): Promise<void> {
    let left: unknown
    try {
      await work()
    } catch (error) {
      left = error
    }
    for (const part of parts) {
      const { target } = part
      if (!pull.outcomes.has(target)) {
        pull.outcomes.set(target, { kind: 'failed', target, error: isSuppressed(left) ? asFirstFailure(left) : left })
      }
      // A journal whose clean-up failed stays for the next run.
      if (isSuppressed(left)) pull.untidy.add(part)
      if (!pull.untidy.has(part)) await part.finish()
    }
  }

  async #pull(pull: Pull, signal: AbortSignal): Promise<void> {
    const { request, outcomes, parts } = pull
    const { hypervisor } = this.#ports
    const { domain } = request
    const started = this.#ports.clock.monotonic()
    // A process of its own takes a while to be ready: meanwhile the domain is looked at.
    const arming = this.#ports.startGuardian()
    await using _guardian = disposedWhenReady(arming)
    await using _started = request.startPaused === true ? await hypervisor.startPaused(domain) : undefined
    const survey = await withBacking(hypervisor, await hypervisor.survey(domain, signal), request, signal)
    for (const part of parts) {
      try {
        await part.prepare(request, survey)
        const skipped = await part.skipped(request, signal)
        if (skipped !== undefined) outcomes.set(part.target, { kind: 'skipped', target: part.target, ...skipped })
      } catch (error) {
        outcomes.set(part.target, { kind: 'failed', target: part.target, error })
      }
    }
    const reads = sharedReads(parts.filter(({ target }) => !outcomes.has(target)))
    let token: string | undefined
    for (const [step, together] of reads.entries()) {
      const places = hypervisor.namePlaces(
        checkpointPrefix(together[0].store.id),
        together[0].plan.disks.map(({ target }) => target),
        token === undefined || step >= MAX_STEPS ? undefined : tokenOfStep(token, step),
      )
      token ??= places.token
      const read = { parts: together, places, survey, guardian: await arming, started }
      await this.#settling(pull, together, () => this.#read(pull, read, signal))
    }
  }

  /** Reads once, for all parts of `read`. */
  async #read(pull: Pull, read: Read, signal: AbortSignal): Promise<void> {
    const { hypervisor, progress } = this.#ports
    const { domain, freeze, scratchLimits } = pull.request
    const { parts, places } = read
    const disks = disksOf(parts)
    progress.report({ kind: 'started', subject: domain.name, verb: 'pull', facts: describe(disks, parts) })

    const noteFrozen = async (frozen: boolean) => {
      const scratch = { files: scratchFilesOf(places), minFreeBytes: scratchLimits.minFreeBytes }
      read.guardian.order({ domainUuid: domain.uuid, frozen, socket: places.socket, scratch, disarmed: false })
      for (const part of parts) await part.writeJournal(this.#journalOf(domain, { part, places, frozen }))
    }
    await noteFrozen(false)
    await using _dirs = await hypervisor.makePlaces(places)
    await using below = await BelowOfRead.open(this.#ports, { domain, disks, places, parts }, signal)

    progress.report({ kind: 'phase', subject: domain.name, phase: 'checkpoint' })
    const tracked = disks.filter(disk => disk.tracked).map(({ target }) => target)
    await using further = new Disposables()
    for (const part of parts.slice(1)) {
      if (tracked.length === 0) break
      const name = checkpointOf(part, places)
      part.useCheckpoint(further.add(await hypervisor.makeCheckpoint(domain, { name, disks: tracked })))
    }
    await using session = await hypervisor.beginBackup(
      {
        domain,
        disks: disks.map(disk => ({ ...disk, scratch: scratchOf(places, disk) })),
        checkpoint: tracked.length > 0 ? places.checkpoint : undefined,
        socket: places.socket,
        tcp: places.tcp,
        freeze,
        scratchLimits,
        onFreeze: noteFrozen,
      },
      signal,
    )
    await using drafts = new Disposables()
    const reading: PartOfRead[] = []
    for (const part of parts) {
      await this.#attempt(pull, part, async () => {
        reading.push(new PartOfRead(part, drafts.add(await part.openDraft())))
      })
    }
    if (reading.length > 0) {
      await pullDisks(
        this.#ports,
        { domain, session, parts: reading, below },
        AbortSignal.any([signal, session.failure]),
      )
    }
    await session.end()
    await below.check()

    progress.report({ kind: 'phase', subject: domain.name, phase: 'commit' })
    for (const one of reading) {
      await this.#attempt(pull, one.part, () => this.#commit(pull, one, { session, survey: read.survey }, read.started))
    }
  }

  async #commit(pull: Pull, { part, disks, findings, failure }: PartOfRead, facts: ReadFacts, started: number) {
    if (failure !== undefined) throw failure.error
    const { tags, comment } = pull.request
    const inOrder = part.plan.disks.map(({ target }) => {
      const disk = disks.get(target)
      invariant(disk !== undefined, 'every planned disk was exported')
      return disk
    })
    const contents = {
      mode: inOrder.some(({ mode }) => mode === 'incremental') ? ('incremental' as const) : ('full' as const),
      disks: inOrder,
      durationMs: Math.round(this.#ports.clock.monotonic() - started),
      tags,
      comment,
      toolVersion: this.#ports.toolVersion,
    }
    const result = await part.commit(facts, contents, findings)
    pull.outcomes.set(part.target, { kind: 'made', target: part.target, ...result })
  }

  /** What fails here is this part's alone. */
  async #attempt(pull: Pull, { target }: PullPart, work: () => Promise<void>): Promise<void> {
    try {
      await work()
    } catch (error) {
      pull.outcomes.set(target, { kind: 'failed', target, error })
    }
  }

  #journalOf(
    domain: DomainRef,
    run: { readonly part: PullPart; readonly places: RunPlaces; readonly frozen: boolean },
  ) {
    const { part, places, frozen } = run
    return {
      kind: 'pull' as const,
      domainUuid: domain.uuid,
      domainName: domain.name,
      uri: this.#ports.hypervisor.uri,
      checkpoint: checkpointOf(part, places),
      socket: places.socket,
      scratch: scratchFilesOf(places),
      frozen,
    }
  }
}

/** The result of a pull into one target. Throws what it failed with. */
export function onlyResult(outcomes: readonly TargetOutcome[]): PullResult {
  const [outcome] = outcomes
  invariant(outcome !== undefined && outcomes.length === 1, 'one target has one outcome')
  if (outcome.kind === 'failed') throw outcome.error
  invariant(outcome.kind === 'made', 'only where a least change was asked for a pull is skipped')
  return outcome
}

interface Pull {
  readonly request: PullRequest
  readonly outcomes: Map<PullTarget, TargetOutcome>
  readonly parts: readonly PullPart[]
  /** What they left behind could not be cleaned up. */
  readonly untidy: Set<PullPart>
}

type Parts = readonly [PullPart, ...PullPart[]]

interface Read {
  readonly parts: Parts
  readonly places: RunPlaces
  readonly survey: DomainSurvey
  readonly guardian: GuardianPort
  /** Monotonic. */
  readonly started: number
}

/**
 * Which parts are read together: those whose chunks have one size, and whose
 * bases are of one family or that have none. The others are read after them;
 * next time all have one family.
 */
export function sharedReads(parts: readonly PullPart[]): readonly Parts[] {
  const reads: [PullPart, ...PullPart[]][] = []
  // Those with a base first: one without goes with any.
  const based = parts.filter(({ family }) => family !== undefined)
  for (const part of [...based, ...parts.filter(one => !based.includes(one))]) {
    const fitting = reads.find(([first]) => {
      const isKin = part.family === undefined || part.family === first.family
      return isKin && part.store.chunkSize === first.store.chunkSize
    })
    if (fitting === undefined) reads.push([part])
    else fitting.push(part)
  }
  return reads
}

/** For each disk the earliest base of the parts: its bitmap has all that any of them misses. */
function disksOf(parts: Parts): readonly PlannedDisk[] {
  return parts[0].plan.disks.map(disk => {
    const bases = parts.flatMap(part => part.plannedDisk(disk.target)?.base ?? [])
    const [base] = bases.toSorted((a, b) => stepOf(a) - stepOf(b))
    return { ...disk, base }
  })
}

function checkpointOf(part: PullPart, places: RunPlaces): string {
  return `${checkpointPrefix(part.store.id)}${places.token}`
}

/** Disposes of what is being made, whether it is waited for before that or not. */
function disposedWhenReady(made: Promise<AsyncDisposable>): AsyncDisposable {
  // Who waits for it hears of a failure; who never gets there need not.
  const quiet = made.catch(() => undefined)
  return { [Symbol.asyncDispose]: async () => (await quiet)?.[Symbol.asyncDispose]() }
}

/** Node 20 has no AsyncDisposableStack. */
class Disposables implements AsyncDisposable {
  readonly #all: AsyncDisposable[] = []

  add<T extends AsyncDisposable>(one: T): T {
    this.#all.push(one)
    return one
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const results = await Promise.allSettled(this.#all.map(one => one[Symbol.asyncDispose]()))
    for (const result of results) if (result.status === 'rejected') throw result.reason
  }
}

function scratchOf(places: RunPlaces, disk: PlannedDisk): ScratchPlace {
  const place = places.scratch.get(disk.target)
  invariant(place !== undefined, 'every disk has a place for its scratch')
  return place
}

function scratchFilesOf(places: RunPlaces): readonly string[] {
  return [...places.scratch.values()].flatMap(place => (place.kind === 'file' ? place.path : []))
}

function describe(disks: readonly PlannedDisk[], parts: Parts): (readonly [string, string])[] {
  const incremental = disks.some(({ base }) => base !== undefined)
  const latest = parts.find(({ family }) => family !== undefined)?.latest
  const facts: [string, string][] = [['mode', incremental ? 'incremental' : 'full']]
  if (incremental && latest !== undefined) facts.push(['since', `@${latest.id.slice(0, 7)}`])
  facts.push(['disks', disks.map(({ target }) => target).join(',')])
  if (parts.length > 1) facts.push(['targets', parts.map(({ target }) => target.name).join(',')])
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
