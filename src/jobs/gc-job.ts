import type { Clock } from '../base/clock.js'
import { throwIfAborted } from '../base/async.js'
import { BackupError } from '../base/errors.js'
import { DEFAULT_LIVE_SHARE, type GcPlan, narrowPlan, planGc, type StoreUse } from '../model/gc-plan.js'
import type { CollectorPort, GcSurvey, Swept } from '../store/store-types.js'
import type { Progress } from './progress.js'

/** How long a gc waits for backups that were under way when it published what is to go. */
export const DEFAULT_DRAIN_MS = 60 * 60 * 1000
const DRAIN_POLL_MS = 500

export interface GcPorts {
  readonly collector: CollectorPort
  readonly progress: Progress
  readonly clock: Clock
  /** Asked before more than half of the store goes; rejects with E_REFUSED where it may not. */
  readonly confirmMuch: (plan: GcPlan) => Promise<void>
}

export interface GcRequest {
  /** Share of a pack's bytes that must be needed for it to stay as it is, 0 to 1; 0 rewrites none. */
  readonly threshold?: number | undefined
  readonly drainMs?: number | undefined
}

export interface GcResult {
  readonly plan: GcPlan
  readonly swept: Swept
  readonly durationMs: number
}

/**
 * Frees what no recovery point and no lease reaches (I8), beside pulls,
 * restores and everything else: mark, condemn, drain, list again, sweep.
 *
 * It may be ended at any moment, by force too: what it has not yet deleted is
 * garbage for the next one. Leaving out the draft's look at what is condemned,
 * the drain or the second listing loses data; test/store/gc-race.test.ts does
 * each.
 */
export class GcJob {
  readonly #ports: GcPorts

  constructor(ports: GcPorts) {
    this.#ports = ports
  }

  /** What a gc would do now. Changes nothing, needs no lock. Rejects as run(). */
  async plan(request: GcRequest, signal: AbortSignal): Promise<GcPlan> {
    await using survey = await this.#ports.collector.survey(signal)
    return planGc(checked(survey.use), optionsOf(request))
  }

  /**
   * Rejects with E_LOCKED where another gc runs or a backup does not end in
   * time, E_REFUSED where there is no recovery point at all, E_DAMAGED where a
   * point or a tree cannot be read: then nothing was deleted.
   */
  async run(request: GcRequest, signal: AbortSignal): Promise<GcResult> {
    const { collector, progress, clock } = this.#ports
    const started = clock.monotonic()
    const phase = (phase: string, detail?: string) => progress.report({ kind: 'phase', subject: 'gc', phase, detail })
    progress.report({ kind: 'started', subject: 'gc', verb: 'gc' })

    await using _lock = await collector.lock()
    phase('tidy')
    await collector.tidy(signal)
    phase('mark')
    await using survey = await collector.survey(signal)
    const plan = planGc(checked(survey.use), optionsOf(request))
    const swept = await this.#execute(survey, plan, { request, phase }, signal)
    progress.report({ kind: 'finished', subject: 'gc', status: 'success' })
    return { plan, swept, durationMs: clock.monotonic() - started }
  }

  async #execute(
    survey: GcSurvey,
    plan: GcPlan,
    { request, phase }: { readonly request: GcRequest; readonly phase: (phase: string, detail?: string) => void },
    signal: AbortSignal,
  ): Promise<Swept> {
    const { collector, confirmMuch } = this.#ports
    const condemned = [...plan.dead, ...plan.rewritten].map(pack => pack.id)
    if (condemned.length === 0) return NOTHING_SWEPT
    // I12: so much at once is more often a mistake than a wish.
    if (plan.freedBytes * 2 > plan.storeBytes) await confirmMuch(plan)
    phase('condemn', `${condemned.length} packs`)
    await collector.condemn(condemned)
    try {
      phase('drain')
      await this.#drain(request.drainMs ?? DEFAULT_DRAIN_MS, signal)
      phase('mark', 'again')
      await survey.relist(signal)
      const final = narrowPlan(plan, planGc(checked(survey.use), optionsOf(request)))
      phase('sweep', `${final.dead.length + final.rewritten.length} packs`)
      return await survey.sweep(
        {
          dead: final.dead.map(pack => pack.id),
          rewritten: final.rewritten.map(pack => pack.id),
          onSwept: id => this.#ports.progress.report({ kind: 'log', level: 'debug', message: `pack ${id} is gone` }),
        },
        signal,
      )
    } finally {
      await collector.pardon()
    }
  }

  /** Waits for every run that may have looked before the publication. */
  async #drain(withinMs: number, signal: AbortSignal): Promise<void> {
    const { collector, clock } = this.#ports
    const waitFor = new Set(await collector.liveRuns())
    const deadline = clock.monotonic() + withinMs
    while (waitFor.size > 0) {
      throwIfAborted(signal)
      if (clock.monotonic() >= deadline) {
        throw new BackupError('E_LOCKED', 'a backup or restore that began before this gc has not ended', {
          why: 'What it relies on cannot be told apart from garbage before it has. Nothing was deleted.',
          hints: ['Run gc again when it is done, or let it wait longer: --wait 6h'],
        })
      }
      await clock.sleep(DRAIN_POLL_MS, signal)
      const live = new Set(await collector.liveRuns())
      for (const id of waitFor) if (!live.has(id)) waitFor.delete(id)
    }
  }
}

const NOTHING_SWEPT: Swept = { deletedPacks: 0, deletedBytes: 0, writtenBytes: 0, damagedPacks: [] }

/** I12: a store whose points are gone looks just like one that is all garbage. */
function checked(use: StoreUse): StoreUse {
  if (use.points > 0 || use.packs.length === 0) return use
  throw new BackupError('E_REFUSED', 'this store has packs and not a single recovery point', {
    why: 'Its points may be on a disk that is not mounted. Nothing was deleted.',
    hints: ['Look into points/ in the store.', 'If it really is to be empty, delete the store’s directory.'],
  })
}

function optionsOf(request: GcRequest): { readonly threshold: number } {
  return { threshold: request.threshold ?? DEFAULT_LIVE_SHARE }
}
