import { existsSync } from 'node:fs'
import { stat } from 'node:fs/promises'
import { join, resolve } from 'node:path'

import { BackupError } from '../base/errors.js'
import type { RestoreState } from '../format/restore-state.js'
import type { DomainRestore, PreparedDomain } from '../jobs/restore-domain.js'
import type { MeasuredDisk, RestoreJob, RestoreResult } from '../jobs/restore-job.js'
import type { RestoreDestination, RestorePlan } from '../jobs/restore-plan.js'
import type { LocalImages } from '../image/local-images.js'
import type { RemoteImages } from '../image/remote-images.js'
import type { FileOwner } from '../image/image-writer.js'
import type { PointDisk, RecoveryPoint } from '../model/recovery-point.js'
import type { StorePort } from '../store/store-types.js'
import type { OpenBacking } from './backing-wire.js'
import { connectForFiles, openRemote } from './restore-connect.js'
import { Paces } from './paces.js'
import { findPoint } from './points.js'
import type { RemotePlace } from './remote-restore-wire.js'
import {
  chooseDisks,
  fileNames,
  localPlace,
  makeDirectory,
  makeDomainRestore,
  makeImages,
  makePassableDirectory,
  makeRestoreJob,
  ownNamespaces,
  planRestore,
  remotePlace,
  resolveOwner,
} from './restore-wire.js'
import { beginResumable, dropRestoreState, withPartials } from './resume-wire.js'
import type { RestoreWishes, WantedDiskPlace, WantedDomain } from './restore-wishes.js'
import type { Session } from './session.js'
import { findTarget, leaseForReading, type Machine, openStore } from './wire.js'

/** How one point of a restore ended. */
export type RestoreOutcome =
  | {
      readonly kind: 'measured'
      readonly plan: RestorePlan
      readonly measured: readonly MeasuredDisk[]
      readonly domain: ShownDomain | undefined
    }
  | {
      readonly kind: 'restored'
      readonly plan: RestorePlan
      readonly result: RestoreResult
      readonly domain: ShownDomain | undefined
    }
  | { readonly kind: 'failed'; readonly point: RecoveryPoint; readonly error: unknown }

export interface ShownDomain {
  readonly name: string
  readonly uuid: string
  readonly notes: readonly string[]
  /** images: was not defined, because the disks are damaged. */
  readonly state: 'planned' | 'defined' | 'started' | 'images'
}

export interface RestoreRun {
  readonly outcomes: readonly RestoreOutcome[]
}

/** Whether a restore begins, with the flags that would begin it again, or goes on. */
export type Resuming =
  | { readonly kind: 'new'; readonly words: readonly string[] }
  | { readonly kind: 'old'; readonly state: RestoreState }

/** A point, and where it goes. */
interface Chosen {
  readonly point: RecoveryPoint
  readonly disks: readonly string[] | undefined
  /** Of several points each has a directory of its own. */
  readonly folder: string | undefined
}

/**
 * Restores what was asked for, one point after the other. A single point that
 * fails rejects; of several, each one's failure is in its outcome, but for an
 * interruption, which ends all. A clash with a domain that exists is found
 * before anything is copied.
 */
export async function runRestore(
  session: Session,
  wishes: RestoreWishes,
  resuming: Resuming = { kind: 'new', words: [] },
): Promise<RestoreRun> {
  await using store = await openStore(session)
  if (resuming.kind === 'old' && resuming.state.storeId !== store.id) throw otherStore(resuming.state)
  // Before the point is looked for: a gc then waits, also where the point is forgotten meanwhile.
  await using _lease = await leaseForReading(store)
  const chosen = await choosePoints(store, wishes)
  const needsLibvirt = wishes.domain !== undefined || wishes.destination.kind === 'pool'
  await using machine = needsLibvirt ? await connectForFiles(session, 'images and the firmware’s state') : undefined
  await using remote = machine === undefined ? undefined : await openRemote(session, machine)
  const work = await new RestoreWork(session, { store, machine, remote, wishes, resuming }).prepare()

  const outcomes: RestoreOutcome[] = []
  for (const one of chosen) {
    try {
      outcomes.push(await work.restore(one))
    } catch (error) {
      if (wishes.points !== 'all' && chosen.length === 1) throw error
      session.signal.throwIfAborted()
      outcomes.push({ kind: 'failed', point: one.point, error })
    }
  }
  return { outcomes }
}

async function choosePoints(store: StorePort, wishes: RestoreWishes): Promise<readonly Chosen[]> {
  if (wishes.points === 'all') return withFolders(await newestPoints(store))
  const found: { readonly point: RecoveryPoint; readonly disk: string | undefined }[] = []
  for (const text of wishes.points) {
    const { noted, ref } = await findPoint(store, text)
    if (ref.path !== undefined) {
      throw new BackupError('E_USAGE', 'restore gives back whole disks, not files within them', {
        hints: [`leave out ${ref.path}`],
      })
    }
    found.push({ point: noted.point, disk: ref.disk })
  }
  const [only, another] = found
  if (only !== undefined && another === undefined) {
    const disks = [...wishes.disks, ...(only.disk === undefined ? [] : [only.disk])]
    return [{ point: only.point, disks: disks.length === 0 ? undefined : disks, folder: undefined }]
  }
  return withFolders(found.map(({ point }) => point)).map((one, i) => {
    const disk = found[i]?.disk
    return { ...one, disks: disk === undefined ? undefined : [disk] }
  })
}

/** One per domain, by domain name. Rejects with E_NOT_FOUND where the store has no point, E_DAMAGED where some cannot be read. */
async function newestPoints(store: StorePort): Promise<readonly RecoveryPoint[]> {
  const unreadable = await store.points.unreadable()
  if (unreadable.length > 0) {
    throw new BackupError('E_DAMAGED', `${unreadable.length} recovery points of this store cannot be read`, {
      why: 'one of them may be the newest of its domain',
      hints: [
        'see what there is:   virtvault list',
        'restore domain by domain:   virtvault restore web01@latest --to DIR',
      ],
    })
  }
  const newest = new Map<string, RecoveryPoint>()
  // Newest last, within a domain.
  for (const point of await store.points.list()) newest.set(point.domain.uuid, point)
  if (newest.size === 0) throw new BackupError('E_NOT_FOUND', 'the store has no recovery point')
  return [...newest.values()].sort((a, b) => (a.domain.name < b.domain.name ? -1 : 1))
}

function withFolders(points: readonly RecoveryPoint[]): readonly Chosen[] {
  const folders = fileNames(
    points.map(({ domain }) => domain.name),
    'domain',
  )
  return points.map((point, i) => ({ point, disks: undefined, folder: folders[i] }))
}

/** What all points of a run share. */
class RestoreWork {
  readonly #session: Session
  readonly #store: StorePort
  readonly #machine: Machine | undefined
  readonly #remote: RemotePlace | undefined
  readonly #wishes: RestoreWishes
  readonly #resuming: Resuming
  #job: RestoreJob | undefined
  #images: LocalImages | RemoteImages | undefined
  #domains: DomainRestore | undefined
  #owner: FileOwner | undefined
  #poolPath: string | undefined

  constructor(
    session: Session,
    parts: {
      readonly store: StorePort
      readonly machine: Machine | undefined
      readonly remote: RemotePlace | undefined
      readonly wishes: RestoreWishes
      readonly resuming: Resuming
    },
  ) {
    this.#resuming = parts.resuming
    this.#session = session
    this.#store = parts.store
    this.#machine = parts.machine
    this.#remote = parts.remote
    this.#wishes = parts.wishes
  }

  async prepare(): Promise<this> {
    const { destination, images: wanted, domain } = this.#wishes
    const remote = this.#remote
    const local = await makeImages()
    const images = remote?.images ?? local
    this.#images = images
    const pace = new Paces(this.#session.clock).ofRestore(this.#wishes.bwlimit, await findTarget(this.#session))
    this.#job = makeRestoreJob(this.#session, { store: this.#store, images, pace })
    if (destination.kind === 'directory') remote?.requireAbsolute(destination.path)
    if (domain !== undefined && this.#machine !== undefined) {
      const place = remote === undefined ? localPlace(this.#machine, local) : remotePlace(remote)
      this.#domains = await makeDomainRestore(this.#store, this.#machine, place)
      // libvirt gives images to QEMU at start, unless told not to (dynamic_ownership), and never their data files.
      const { qemuUserOf } = await import('./trial-wire.js')
      this.#owner = remote === undefined ? await qemuUserOf(this.#machine) : remote.qemuUser
    }
    if (wanted.owner !== undefined) this.#owner = await (remote ?? { resolveOwner }).resolveOwner(wanted.owner)
    if (destination.kind === 'pool' && this.#machine !== undefined) {
      this.#poolPath = await directoryOfPool(this.#machine, destination.pool, remote)
    }
    return this
  }

  async restore(one: Chosen): Promise<RestoreOutcome> {
    const { signal } = this.#session
    const wanted = chooseDisks(one.point, one.disks)
    await using backing = await this.#openBacking(one.point, wanted)
    const plan = planRestore({
      point: one.point,
      disks: one.disks,
      destination: this.#destination(one),
      backing: backing?.found,
      flatten: this.#wishes.backing.flatten,
      chunkSize: this.#store.chunkSize,
      force: this.#wishes.force,
      onDamage: this.#wishes.onDamage,
    })
    if (this.#remote !== undefined) refuseOverlays(plan)
    for (const { spec } of plan.disks) this.#images?.check(spec)
    const prepared = await this.#prepareDomain(plan)
    if (this.#job === undefined) throw new Error('bug: restore() before prepare()')
    if (this.#wishes.dryRun) {
      const measured = await this.#job.measure(plan, signal)
      await this.#remote?.requireRoom(plan, measured)
      return { kind: 'measured', plan, measured, domain: shown(prepared, 'planned') }
    }
    const result = await this.#write(this.#job, one, plan)
    return { kind: 'restored', plan, result, domain: await this.#finishDomain(prepared, result) }
  }

  /** undefined where there is nothing to open, and nobody says that there is. */
  async #openBacking(point: RecoveryPoint, disks: readonly PointDisk[]): Promise<OpenBacking | undefined> {
    const wishes = this.#wishes.backing
    if (wishes.files.length === 0 && disks.every(({ below }) => below === undefined)) return undefined
    const { openBacking } = await import('./backing-wire.js')
    return await openBacking(this.#session, { point, disks, wishes })
  }

  async #write(job: RestoreJob, one: Chosen, plan: RestorePlan): Promise<RestoreResult> {
    const { signal } = this.#session
    const remote = this.#remote
    if (remote === undefined) {
      await this.#makeFolder(one)
      return await this.#runResumable(job, one, plan)
    }
    await remote.requireRoom(plan, await job.measure(plan, signal))
    return await remote.undoing(async () => {
      const { destination } = this.#wishes
      if (destination.kind === 'directory') await remote.directories.make(folderOf(destination.path, one))
      return await job.run(plan, signal)
    })
  }

  /** Its state is there while there is something to go on with. */
  async #runResumable(job: RestoreJob, one: Chosen, plan: RestorePlan): Promise<RestoreResult> {
    const { signal } = this.#session
    const resumable =
      this.#resuming.kind === 'old'
        ? { state: this.#resuming.state, plan: withPartials(plan, this.#resuming.state) }
        : await beginResumable(plan, this.#store, this.#wordsFor(one, this.#resuming.words))
    if (resumable === undefined) return await job.run(plan, signal)
    const { state } = resumable
    try {
      const result = await job.run(resumable.plan, signal)
      await dropRestoreState(state.id)
      return result
    } catch (error) {
      if (!state.images.some(({ partial }) => existsSync(partial))) await dropRestoreState(state.id)
      else this.#session.complain(`what was written stays; go on with: virtvault restore --resume ${state.id}`)
      throw error
    }
  }

  #wordsFor(one: Chosen, words: readonly string[]): readonly string[] {
    const { destination } = this.#wishes
    return [
      ...words,
      ...(destination.kind === 'directory' ? [`--to=${resolve(folderOf(destination.path, one))}`] : []),
      ...(one.disks ?? []).map(target => `--disk=${target}`),
    ]
  }

  #destination(one: Chosen): RestoreDestination {
    const { destination, images } = this.#wishes
    const files = { ...images, owner: this.#owner }
    switch (destination.kind) {
      case 'directory':
        return { kind: 'directory', ...files, path: folderOf(destination.path, one) }
      case 'pool':
        return { kind: 'directory', ...files, path: this.#poolPath ?? '', layout: 'shared' }
      case 'places':
        return { kind: 'places', places: placesOf(destination.places, one) }
      case 'stream':
        return { kind: 'stream' }
    }
  }

  async #makeFolder(one: Chosen): Promise<void> {
    const { destination, domain, images } = this.#wishes
    if (destination.kind !== 'directory') return
    const path = folderOf(destination.path, one)
    if (domain !== undefined || images.owner !== undefined) await makePassableDirectory(path)
    else await makeDirectory(path)
  }

  async #prepareDomain(plan: RestorePlan): Promise<PreparedDomain | undefined> {
    const wanted = this.#wishes.domain
    if (wanted === undefined || this.#domains === undefined) return undefined
    const uuid = uuidChoice(wanted, plan.point)
    return await this.#domains.prepare({
      plan,
      name: wanted.name,
      uuid,
      macs: uuid,
      network: wanted.network,
      ownNamespaces: await ownNamespaces(),
    })
  }

  async #finishDomain(prepared: PreparedDomain | undefined, result: RestoreResult): Promise<ShownDomain | undefined> {
    const wanted = this.#wishes.domain
    if (prepared === undefined || wanted === undefined || this.#domains === undefined) return undefined
    if (result.status === 'damaged') return shown(prepared, 'images')
    try {
      await this.#domains.finish(prepared, wanted.then)
    } catch (cause) {
      throw notFinished(prepared, result, cause)
    }
    return shown(prepared, wanted.then === 'start' ? 'started' : 'defined')
  }
}

/** The image that one lies on was found here, not there. */
function refuseOverlays({ disks }: RestorePlan): void {
  const overlay = disks.find(({ spec }) => spec.kind === 'qcow2' && spec.backing !== undefined)
  if (overlay === undefined) return
  throw new BackupError(
    'E_UNSUPPORTED',
    `disk ${overlay.disk.target} cannot be restored onto an image of another machine`,
    {
      why: 'what the point leaves out is compared on this machine',
      hints: ['restore all of it, with a copy of that image here:   --flatten --backing FILE'],
    },
  )
}

function otherStore(state: RestoreState): BackupError {
  return new BackupError('E_NOT_FOUND', `this store has not the recovery point of ${state.domain} to go on with`, {
    hints: [`name the store that it was started from with -t; its id is ${state.storeId}`],
  })
}

/** A copy beside the original must not have its UUID. */
function uuidChoice(wanted: WantedDomain, point: RecoveryPoint): 'keep' | 'new' {
  if (wanted.uuid !== undefined) return wanted.uuid
  return wanted.name === undefined || wanted.name === point.domain.name ? 'keep' : 'new'
}

function folderOf(path: string, { folder }: Chosen): string {
  return folder === undefined ? path : join(path, folder)
}

function placesOf(wanted: readonly WantedDiskPlace[], { point, disks }: Chosen) {
  const targets = disks ?? point.disks.map(({ target }) => target)
  const [only, another] = targets
  return new Map(
    wanted.map(({ target, place }) => {
      if (target !== undefined) {
        if (targets.includes(target)) return [target, place] as const
        throw new BackupError('E_NO_DISK', `disk ${target} is not among those to restore: ${targets.join(', ')}`)
      }
      if (only !== undefined && another === undefined) return [only, place] as const
      throw new BackupError('E_USAGE', `which of the disks ${targets.join(', ')} goes there was not said`, {
        hints: [`write ${only ?? 'vda'}=${place.kind === 'device' ? place.path : place.uri}`],
      })
    }),
  )
}

/** Rejects with E_NOT_FOUND, E_UNSUPPORTED where a pool is no directory. */
async function directoryOfPool(machine: Machine, pool: string, remote: RemotePlace | undefined): Promise<string> {
  const path = await machine.hypervisor.call(connection => connection.poolTargetPath(pool))
  const isDirectory =
    remote === undefined
      ? (await stat(path).catch(() => undefined))?.isDirectory() === true
      : await remote.directories.isDirectory(path)
  // A logical pool's target is a directory too, of links to its volumes.
  if (isDirectory && !/^\/dev\/(?!shm\/)/.test(path)) return path
  throw new BackupError('E_UNSUPPORTED', `the pool ${pool} is no directory of files`, {
    why: `its target is ${path}`,
    hints: ['make volumes in it by hand, and restore to them:   --to-device vda=/dev/VG/LV'],
  })
}

function notFinished(prepared: PreparedDomain, result: RestoreResult, cause: unknown): unknown {
  if (!(cause instanceof Error)) return cause
  const code = 'code' in cause && cause instanceof BackupError ? cause.code : 'E_LIBVIRT'
  return new BackupError(code, `${prepared.name} was restored, but is not running as asked: ${cause.message}`, {
    why: cause instanceof BackupError ? cause.why : undefined,
    hints: [
      ...(cause instanceof BackupError ? cause.hints : []),
      `its images are complete: ${result.disks.map(({ image }) => image).join(', ')}`,
    ],
    cause,
  })
}

function shown(prepared: PreparedDomain | undefined, state: ShownDomain['state']): ShownDomain | undefined {
  return prepared === undefined ? undefined : { name: prepared.name, uuid: prepared.uuid, notes: prepared.notes, state }
}
