import { BackupError } from '../base/errors.js'
import type { LoadedConfig } from '../config/load.js'
import type { StoreFacts } from '../daemon/metrics.js'
import type { PullTask, StoreTask, Task } from '../daemon/task.js'
import type { JobResult } from '../daemon/task-runner.js'
import type { Progress } from '../jobs/progress.js'
import type { RecoveryPoint } from '../model/recovery-point.js'
import type { Store } from '../store/store.js'
import { sumOf } from './point-view.js'
import { pullFor } from './pull-requests.js'
import type { RunContext, Session } from './session.js'
import { StoreShelf } from './store-shelf.js'
import { type TargetPlace, targetPlace } from './targets.js'
import { type Machine, makeGcJob, makePullJob, openPlace } from './wire.js'

/** The work behind the daemon's tasks, and behind `job run`. */
export class DaemonJobs {
  readonly #session: Session
  readonly #machine: () => Machine
  readonly #shelf = new StoreShelf()

  constructor(session: Session, machine: () => Machine) {
    this.#session = session
    this.#machine = machine
  }

  async run(
    { task, loaded, progress }: { readonly task: Task; readonly loaded: LoadedConfig; readonly progress: Progress },
    signal: AbortSignal,
  ): Promise<JobResult> {
    const context = this.#context(loaded, progress, signal)
    const place = targetPlace(task.target, loaded.config)
    return await this.#shelf.use(
      place.path,
      () => openPlace(context, place),
      store => (task.verb === 'pull' ? this.#pull(context, store, task) : this.#maintain(context, store, task)),
    )
  }

  /** What the configured targets hold; those that cannot be opened are left out. */
  async survey(loaded: LoadedConfig, signal: AbortSignal): Promise<readonly StoreFacts[]> {
    const context = this.#context(loaded, { report: () => undefined }, signal)
    const facts: StoreFacts[] = []
    for (const name of Object.keys(loaded.config.targets ?? {})) {
      try {
        const place = targetPlace(name, loaded.config)
        const points = await this.#points(context, place)
        facts.push({ target: name, points: perDomain(points) })
      } catch {
        // Its own runs say what is wrong with it.
      }
    }
    return facts
  }

  async #points(context: RunContext, place: TargetPlace): Promise<readonly RecoveryPoint[]> {
    return await this.#shelf.use(
      place.path,
      () => openPlace(context, place),
      store => store.points.list(),
    )
  }

  async #pull(context: RunContext, store: Store, task: PullTask): Promise<JobResult> {
    const { domain, job } = task
    const machine = this.#machine()
    const { settings } = job
    if (settings.disableIfPoweredOff && (await machine.hypervisor.lookup(domain.uuid)).id < 0) {
      context.progress.report({ kind: 'log', level: 'info', message: 'shut off, and disable_if_powered_off is set' })
      return { status: 'skipped', warnings: [], figures: {} }
    }
    const pull = pullFor(domain, settings, { mode: 'auto', scratchLimitBytes: undefined, comment: undefined })
    const pullJob = await makePullJob(context, { store, machine }, pull)
    const { point, warnings } = await pullJob.run(pull.request, context.signal)
    const isPartial = warnings.some(({ code }) => code === 'W_DISK_SKIPPED')
    context.progress.report({ kind: 'finished', subject: domain.name, status: 'success' })
    return { status: isPartial ? 'partial' : 'success', warnings, point: point.id, figures: figuresOf(point) }
  }

  async #maintain(context: RunContext, store: Store, task: StoreTask): Promise<JobResult> {
    switch (task.verb) {
      case 'gc': {
        const job = await makeGcJob(context, store)
        const { plan } = await job.run({}, context.signal)
        return {
          status: 'success',
          warnings: [],
          figures: { freed_bytes: plan.freedBytes, store_bytes: plan.storeBytes },
        }
      }
      case 'prune':
      case 'verify':
        throw new BackupError('E_UNSUPPORTED', `${task.verb} cannot be scheduled yet`)
    }
  }

  #context(loaded: LoadedConfig, progress: Progress, signal: AbortSignal): RunContext {
    const session = this.#session
    return {
      // Nobody is there to be asked for a passphrase.
      settings: { ...session.settings, json: true, target: undefined },
      clock: session.clock,
      signal,
      progress,
      config: () => Promise.resolve(loaded),
      warn: warning => progress.report({ kind: 'warning', subject: '', warning }),
      confirm: question =>
        Promise.reject(
          new BackupError('E_REFUSED', question, { hints: ['run it by hand, with --yes if that is right'] }),
        ),
    }
  }
}

function figuresOf(point: RecoveryPoint): JobResult['figures'] {
  const { frozenMs } = point.consistency
  return {
    read_bytes: sumOf(point, 'readBytes'),
    new_bytes: sumOf(point, 'newBytes'),
    stored_bytes: sumOf(point, 'storedBytes'),
    ...(frozenMs === undefined ? {} : { frozen_seconds: frozenMs / 1000 }),
  }
}

function perDomain(points: readonly RecoveryPoint[]): StoreFacts['points'] {
  const found = new Map<string, { domain: string; count: number; oldest: number }>()
  for (const { domain, time } of points) {
    const one = found.get(domain.uuid) ?? { domain: domain.name, count: 0, oldest: time }
    found.set(domain.uuid, { domain: domain.name, count: one.count + 1, oldest: Math.min(one.oldest, time) })
  }
  return [...found.values()]
}
