import { resolve } from 'node:path'

import { throwIfAborted } from '../base/async.js'
import type { Clock } from '../base/clock.js'
import { BackupError, errorCodeOf, messageOf } from '../base/errors.js'
import type { InstantState } from '../format/instant-state.js'
import type { RecoveryPoint } from '../model/recovery-point.js'
import type { NativeVirtConnection } from '../native/virt.js'
import type { Progress } from './progress.js'
import type { DomainRestore, DomainRestoreRequest } from './restore-domain.js'
import type { RestorePlan } from './restore-plan.js'
import type { ServeJob } from './serve-job.js'

const POLL_MS = 500
/** A pull that ends early so often without anybody's death will not work the next time either. */
const MAX_PULLS = 5
const VIR_DOMAIN_PAUSED = 3
const VIR_DOMAIN_PAUSED_IOERROR = 5
/** virDomainDiskErrorCode: the image's file system is full. */
const VIR_DOMAIN_DISK_ERROR_NO_SPACE = 2
/** NVRAM goes, which is a copy of what the store has. */
const VIR_DOMAIN_UNDEFINE_NVRAM = 4

export interface InstantPorts {
  readonly host: Pick<
    NativeVirtConnection,
    | 'lookupDomain'
    | 'createDomain'
    | 'defineDomain'
    | 'undefineDomain'
    | 'resumeDomain'
    | 'domainXml'
    | 'blockPull'
    | 'blockJobInfo'
    | 'diskErrors'
  >
  /** Of filling one disk in; what the guest itself reads is never held up. */
  readonly pullBytesPerSecond?: number | undefined
  readonly domains: DomainRestore
  readonly serve: (where: {
    readonly point: RecoveryPoint
    readonly disks: readonly string[]
    readonly socket: string
  }) => Promise<ServeJob>
  readonly createOverlay: (spec: {
    readonly path: string
    readonly size: number
    readonly backing: { readonly socket: string; readonly exportName: string }
  }) => Promise<void>
  /** `withDisksOf` of libvirt/. */
  readonly withDisksOf: (xml: string, other: string) => string
  /** Whether an image still reads from another one. */
  readonly isOverlay: (path: string) => Promise<boolean>
  /** Whether it is an overlay on an export at this socket; not so where it is not there. */
  readonly isOverlayOn: (path: string, socket: string) => Promise<boolean>
  readonly removeFile: (path: string) => Promise<void>
  /** Durable when it resolves. */
  readonly saveState: (state: InstantState) => Promise<void>
  readonly dropState: (id: string) => Promise<void>
  readonly clock: Clock
  readonly progress: Progress
}

export interface InstantRequest {
  readonly id: string
  readonly storeId: string
  /** Of another machine's libvirt. */
  readonly connect?: string | undefined
  /** Where QEMU finds the export. */
  readonly socket: string
  readonly plan: RestorePlan
  readonly domain: Omit<DomainRestoreRequest, 'plan' | 'backing'>
}

/** A domain that runs on overlays over an export. Disposing it ends the export; whoever still needs it waits, paused. */
export interface RunningRestore extends AsyncDisposable {
  readonly state: InstantState
  readonly job: ServeJob
  /** Since the beginning, until the domain ran. */
  readonly startedMs: number
  readonly notes: readonly string[]
}

/**
 * Runs a domain at once, on overlays that read from our export what the store
 * has, and fills them in behind the running guest. What the guest writes is in
 * its overlays from the first moment on. Where the export dies, the domain is
 * paused at its next read of it, and nothing is lost: resume() serves again.
 *
 * QEMU 7.2 notices a dead export by a read that fails, and then fails one or
 * more further ones while it connects again: a domain is paused several times
 * after its export has come back, at any time later. So hydrate() and stand()
 * let it go on again and again, not only resume() once.
 */
export class InstantRestore {
  readonly #ports: InstantPorts
  /** Ids of those that need their export and their state no more. */
  readonly #hydrated = new Set<string>()

  constructor(ports: InstantPorts) {
    this.#ports = ports
  }

  /** Rejects as DomainRestore and ServeJob do, and with E_EXISTS; then nothing is left. */
  async start(request: InstantRequest): Promise<RunningRestore> {
    const { clock, domains, host, progress } = this.#ports
    const { plan, socket } = request
    const { point } = plan
    const started = clock.monotonic()
    progress.report({ kind: 'started', subject: point.domain.name, verb: 'restore', facts: [['instant', request.id]] })
    const plain = await domains.prepare({ ...request.domain, plan })
    const job = await this.#ports.serve({ point, disks: plan.disks.map(({ disk }) => disk.target), socket })
    const undo: (() => Promise<unknown>)[] = [() => job[Symbol.asyncDispose]()]
    let isLeft = false
    let isTaken = false
    try {
      const backing = new Map(job.disks.map(({ target, exportName }) => [target, { socket, exportName }]))
      const prepared = await domains.prepare({ ...request.domain, plan, backing })
      const images = plan.disks.map(({ disk, spec }) => ({ disk, path: resolve('path' in spec ? spec.path : '') }))
      const state: InstantState = {
        id: request.id,
        storeId: request.storeId,
        pointId: point.id,
        domain: { uuid: prepared.uuid, name: prepared.name },
        connect: request.connect,
        socket,
        disks: images.map(({ disk, path }) => ({ target: disk.target, image: path })),
        files: prepared.files.map(({ path }) => path),
        hydratedXml: plain.xml,
        started: false,
      }
      // Before all that it names: whoever finds that can go on with it, or remove it.
      await this.#ports.saveState(state)
      undo.push(() => (isLeft ? Promise.resolve() : this.#ports.dropState(state.id)))
      for (const { disk, path } of images) {
        const behind = backing.get(disk.target)
        if (behind === undefined) throw new Error(`bug: ${disk.target} is not served`)
        await this.#ports.createOverlay({ path, size: disk.size, backing: behind })
        undo.push(() => this.#ports.removeFile(path).catch(() => (isLeft = true)))
      }
      // prepare() has refused files of others; what came to lie there since is E_EXISTS, and stays.
      undo.push(async () => {
        for (const file of isTaken ? [] : state.files) {
          await this.#ports.removeFile(file).catch(() => (isLeft = true))
        }
      })
      undo.push(() => host.undefineDomain(prepared.uuid, VIR_DOMAIN_UNDEFINE_NVRAM).catch(() => undefined))
      await domains.finish(prepared, 'start')
      // From now on the overlays may hold what a guest wrote.
      await this.#ports.saveState({ ...state, started: true })
      return this.#running(job, { state, notes: prepared.notes, startedMs: clock.monotonic() - started })
    } catch (error) {
      isTaken = errorCodeOf(error) === 'E_EXISTS'
      for (const step of undo.reverse()) await step()
      throw isLeft ? leftBehind(error, request.id) : error
    }
  }

  /**
   * Serves again for a domain whose export died, and lets it run on; starts it
   * where it is off. Rejects as ServeJob, with E_LIBVIRT, and with E_NOT_FOUND
   * where there is no such domain: of one that never ran nothing is left then.
   */
  async resume(state: InstantState, point: RecoveryPoint): Promise<RunningRestore> {
    const { clock, host } = this.#ports
    const started = clock.monotonic()
    const { uuid } = await host.lookupDomain(state.domain.uuid).catch((error: unknown) => this.#noDomain(state, error))
    const job = await this.#ports.serve({ point, disks: state.disks.map(({ target }) => target), socket: state.socket })
    try {
      const { id } = await host.lookupDomain(uuid)
      if (id < 0) await host.createDomain(uuid, {})
      else await this.#unpause(uuid, job)
      if (!state.started) await this.#ports.saveState({ ...state, started: true })
      return this.#running(job, { state, notes: [], startedMs: clock.monotonic() - started })
    } catch (error) {
      await job[Symbol.asyncDispose]()
      throw error
    }
  }

  /** What a start left that was killed before the domain was known to libvirt; its overlays are empty. */
  async #noDomain(state: InstantState, error: unknown): Promise<never> {
    if (errorCodeOf(error) !== 'E_NOT_FOUND') throw error
    const { name } = state.domain
    const overlays: string[] = []
    for (const { image } of state.disks) {
      if (await this.#ports.isOverlayOn(image, state.socket)) overlays.push(image)
    }
    if (state.started && overlays.length > 0) {
      throw new BackupError('E_NOT_FOUND', `${name}, which was restored, is gone from this host`, {
        why: `its overlays hold what it wrote, and need the export for the rest: ${overlays.join(', ')}`,
        hints: [
          `define it again and go on:   virtvault restore --resume ${state.id}`,
          'or remove the overlays, and restore anew',
        ],
        cause: error,
      })
    }
    for (const overlay of overlays) await this.#ports.removeFile(overlay)
    // They were not there before; a domain of that name that came since has its own in their places.
    if (!state.started && !(await this.#isKnown(name))) {
      for (const file of state.files) await this.#ports.removeFile(file)
    }
    await this.#ports.dropState(state.id)
    throw new BackupError(
      'E_NOT_FOUND',
      `${name} is not on this host: its restore was ended before it ran, or it was removed since`,
      {
        why: 'what there was of it is removed now',
        hints: ['run restore --instant again'],
        cause: error,
      },
    )
  }

  async #isKnown(name: string): Promise<boolean> {
    try {
      await this.#ports.host.lookupDomain(name)
      return true
    } catch (error) {
      if (errorCodeOf(error) !== 'E_NOT_FOUND') throw error
      return false
    }
  }

  /**
   * Keeps the domain running on its export until it is interrupted: then it
   * resolves. Outlives restarts of libvirt. Rejects with E_LIBVIRT, E_NOT_FOUND
   * where the domain was undefined meanwhile.
   */
  async stand({ state, job }: RunningRestore, signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      await this.#patiently(() => this.#unpause(state.domain.uuid, job))
      await this.#ports.clock.sleep(POLL_MS, signal).catch(() => undefined)
    }
  }

  /**
   * Fills the overlays until they need the export no more, beside the running
   * guest. Outlives restarts of libvirt. Rejects with E_DOMAIN_STATE where it
   * was shut off meanwhile, E_DAMAGED, E_LIBVIRT, E_INTERRUPTED; resume() and
   * this can be tried again.
   */
  async hydrate(running: RunningRestore, signal: AbortSignal): Promise<void> {
    const { host, progress } = this.#ports
    const { state } = running
    for (const disk of state.disks) await this.#hydrateDisk(running, disk, signal)
    // Also its own way with errors comes back, of which the guest knows nothing until its next start.
    const inactive = await host.domainXml(state.domain.uuid, { inactive: true, secure: true })
    await host.defineDomain(this.#ports.withDisksOf(inactive, state.hydratedXml), { validate: true })
    this.#hydrated.add(state.id)
    progress.report({ kind: 'finished', subject: state.domain.name, status: 'success', point: state.pointId })
  }

  async #hydrateDisk(
    { state, job }: RunningRestore,
    disk: { readonly target: string; readonly image: string },
    signal: AbortSignal,
  ): Promise<void> {
    const { host, clock, progress, isOverlay } = this.#ports
    const { uuid, name } = state.domain
    let pulls = 0
    for (;;) {
      throwIfAborted(signal)
      const info = await this.#patiently(async () => {
        await this.#unpause(uuid, job)
        return (await host.blockJobInfo(uuid, disk.target)) ?? 'none'
      }).catch((error: unknown) => this.#whyNot(state, error))
      if (info === undefined) {
        progress.report({ kind: 'phase', subject: name, phase: 'libvirt is away' })
      } else if (info !== 'none') {
        const { current, end } = info
        progress.report({
          kind: 'disk',
          subject: name,
          target: disk.target,
          totalBytes: end,
          doneBytes: current,
          newBytes: current,
        })
      } else {
        if (!(await isOverlay(disk.image))) return
        if (job.failedReads > 0) {
          throw new BackupError('E_DAMAGED', `${name}: the store cannot give back all of disk ${disk.target}`, {
            why: 'its overlay holds what the guest wrote, and still needs the export for the rest',
          })
        }
        if (pulls++ === MAX_PULLS) {
          throw new BackupError('E_LIBVIRT', `${name}: the pull of disk ${disk.target} ends early again and again`)
        }
        const rate = this.#ports.pullBytesPerSecond ?? 0
        await this.#patiently(() => host.blockPull(uuid, disk.target, rate)).catch((error: unknown) =>
          this.#whyNot(state, error),
        )
      }
      await clock.sleep(POLL_MS, signal)
    }
  }

  /** A domain that is off has nobody to pull. */
  async #whyNot(state: InstantState, error: unknown): Promise<never> {
    const { id } = await this.#ports.host.lookupDomain(state.domain.uuid)
    if (id >= 0) throw error
    throw new BackupError('E_DOMAIN_STATE', `${state.domain.name} was shut off before its disks were filled in`, {
      why: messageOf(error),
      hints: [`start it and go on:   virtvault restore --resume ${state.id}`],
      cause: error,
    })
  }

  /** Lets it go on where it was paused for want of the export; not where it would meet the same again. */
  async #unpause(uuid: string, job: ServeJob): Promise<void> {
    const { host } = this.#ports
    const { id, state, reason } = await host.lookupDomain(uuid)
    if (id < 0 || state !== VIR_DOMAIN_PAUSED || reason !== VIR_DOMAIN_PAUSED_IOERROR) return
    if (job.failedReads > 0) return
    const errors = await host.diskErrors(uuid)
    if (errors.some(({ error }) => error === VIR_DOMAIN_DISK_ERROR_NO_SPACE)) return
    await host.resumeDomain(uuid).catch((cause: unknown) => {
      // Somebody else was quicker, or it has ended: the next look tells.
      if (errorCodeOf(cause) === 'E_LIBVIRT_CONNECT') throw cause
    })
  }

  /** undefined where libvirt could not be reached: it may be restarted, and the domain needs its export all the while. */
  async #patiently<T>(call: () => Promise<T>): Promise<T | undefined> {
    try {
      return await call()
    } catch (error) {
      if (errorCodeOf(error) === 'E_LIBVIRT_CONNECT') return undefined
      throw error
    }
  }

  #running(job: ServeJob, parts: Omit<RunningRestore, 'job' | typeof Symbol.asyncDispose>): RunningRestore {
    const { id } = parts.state
    const end = async () => {
      await job[Symbol.asyncDispose]()
      // Last: whoever is killed before has a state to go on with, which cleans up.
      if (this.#hydrated.has(id)) await this.#ports.dropState(id)
    }
    return { ...parts, job, [Symbol.asyncDispose]: end }
  }
}

/** Where the machine with the overlays could not be reached any more. */
function leftBehind(error: unknown, id: string): BackupError {
  const hints = [`its overlays could not be removed; that is done by:   virtvault restore --resume ${id}`]
  const why = error instanceof BackupError ? error.why : undefined
  return new BackupError(errorCodeOf(error), messageOf(error), { why, hints, cause: error })
}

/** Adds how to go on to whatever ended an instant restore that runs. */
export function resumable(error: unknown, state: InstantState): BackupError {
  const known = error instanceof BackupError ? error : undefined
  return new BackupError(errorCodeOf(error), `${state.domain.name} still needs its export: ${messageOf(error)}`, {
    why: known?.why ?? 'it is paused at its next read of what was not filled in yet; what it wrote is safe',
    hints: [...(known?.hints ?? []), `go on:   virtvault restore --resume ${state.id}`],
    cause: error,
  })
}
