import { randomBytes } from 'node:crypto'
import { mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'

import { BackupError } from '../base/errors.js'
import { decodeInstantState, encodeInstantState, type InstantState, isInstantId } from '../format/instant-state.js'
import { InstantRestore, resumable, type RunningRestore } from '../jobs/instant-restore.js'
import { planRestore } from '../jobs/restore-plan.js'
import type { Hypervisor } from '../libvirt/hypervisor.js'
import { withDisksOf } from '../libvirt/restore-xml.js'
import type { StorePort } from '../store/store-types.js'
import type { Envelope } from './base-command.js'
import { EXIT } from './exit-codes.js'
import { type InstantPlace, localInstantPlace, remoteInstantPlace } from './instant-place.js'
import { inSeconds } from './output.js'
import { stateDir } from './places.js'
import { findPoint } from './points.js'
import { printable } from './printable.js'
import { connectAgain, connectForFiles, openRemote } from './restore-connect.js'
import { makeDomainRestore, ownNamespaces } from './restore-wire.js'
import type { RestoreWishes } from './restore-wishes.js'
import type { Session } from './session.js'
import { type Machine, openStore } from './wire.js'

/** Makes and runs an instant restore: a part of wire.ts. */

/** `restore --instant` of one point, or `restore --resume ID`. */
export type InstantWish =
  | { readonly kind: 'start'; readonly wishes: RestoreWishes; readonly hydrate: boolean; readonly bwlimit: number }
  | { readonly kind: 'resume'; readonly id: string; readonly hydrate: boolean; readonly bwlimit: number }

/** Runs the domain, and serves it until its disks are filled in, or until it is interrupted. */
export async function runInstant(session: Session, wish: InstantWish): Promise<Envelope> {
  // A wrong id needs neither store nor libvirt to be told.
  const begun = wish.kind === 'resume' ? await loadState(wish.id) : undefined
  await using store = await openStore(session)
  const what = 'the overlays'
  await using machine =
    begun === undefined ? await connectForFiles(session, what) : await connectAgain(session, begun.connect, what)
  await using remote = await openRemote(session, machine)
  const place =
    remote === undefined ? await localInstantPlace(session, store, machine) : remoteInstantPlace(session, store, remote)
  const restore = await makeInstantRestore(session, { store, machine, place, pullBytesPerSecond: wish.bwlimit })
  await using running =
    wish.kind === 'start'
      ? await startInstant(session, { store, restore, place, wishes: wish.wishes })
      : await resumeInstant(store, restore, wish.id)
  const { state } = running
  const signal = place.lost === undefined ? session.signal : AbortSignal.any([session.signal, place.lost])
  for (const note of running.notes) session.note(`! ${note}`)
  session.print([
    printable(`${state.domain.name} runs, after ${inSeconds(running.startedMs)} s, on overlays over the store.`),
    ...state.disks.map(({ target, image }) => printable(`  ${target}  ${image}`)),
    wish.hydrate
      ? `Its disks are being filled in. If this ends early: virtvault restore --resume ${state.id}`
      : `Its disks are not filled in: it needs this to go on. Later: virtvault restore --resume ${state.id}`,
  ])
  if (!wish.hydrate) {
    try {
      await restore.stand(running, signal)
      place.lost?.throwIfAborted()
    } catch (error) {
      throw resumable(error, state)
    }
    return documentOf(running, { isHydrated: false })
  }
  const started = session.clock.monotonic()
  try {
    await restore.hydrate(running, signal)
  } catch (error) {
    session.complain(`go on with: virtvault restore --resume ${state.id}`)
    throw resumable(error, state)
  }
  await session.endProgress()
  const hydratedMs = session.clock.monotonic() - started
  session.print([printable(`${state.domain.name} needs the store no more, after ${inSeconds(hydratedMs)} s.`)])
  return documentOf(running, { isHydrated: true, hydratedMs })
}

function documentOf(
  { state, startedMs, notes }: RunningRestore,
  outcome: { readonly isHydrated: boolean; readonly hydratedMs?: number },
): Envelope {
  return {
    schema: 'virtvault/restore_instant/1',
    ok: true,
    status: 'success',
    exit: EXIT.ok,
    id: state.id,
    point: state.pointId,
    domain: state.domain.name,
    uuid: state.domain.uuid,
    start_seconds: inSeconds(startedMs),
    hydrated: outcome.isHydrated,
    hydrate_seconds: outcome.hydratedMs === undefined ? undefined : inSeconds(outcome.hydratedMs),
    disks: state.disks,
    notes,
  }
}

async function startInstant(
  session: Session,
  parts: {
    readonly store: StorePort
    readonly restore: InstantRestore
    readonly place: InstantPlace
    readonly wishes: RestoreWishes
  },
): Promise<RunningRestore> {
  const { store, restore, place, wishes } = parts
  const { destination, domain, points } = wishes
  const [text, another] = points === 'all' ? [] : points
  if (text === undefined || another !== undefined || destination.kind !== 'directory' || domain === undefined) {
    throw new BackupError('E_USAGE', '--instant runs one recovery point, on overlays in a directory', {
      hints: ['virtvault restore web01@latest --instant --to DIR'],
    })
  }
  const { point } = (await findPoint(store, text)).noted
  const id = randomBytes(4).toString('hex')
  const isCopy = domain.name !== undefined && domain.name !== point.domain.name
  const uuid = domain.uuid ?? (isCopy ? 'new' : 'keep')
  await refuseSecond(domain.name ?? point.domain.name, place)
  await place.makeFolder(destination.path)
  session.signal.throwIfAborted()
  return await restore.start({
    id,
    storeId: store.id,
    connect: place.connect,
    socket: await place.socketFor(id),
    plan: planRestore({
      point,
      disks: wishes.disks.length === 0 ? undefined : wishes.disks,
      destination: { kind: 'directory', path: destination.path, format: 'qcow2' },
      onDamage: 'stop',
    }),
    domain: { name: domain.name, uuid, macs: uuid, network: domain.network, ownNamespaces: await ownNamespaces() },
  })
}

async function resumeInstant(store: StorePort, restore: InstantRestore, id: string): Promise<RunningRestore> {
  const state = await loadState(id)
  const point = await store.points.get(state.pointId)
  if (state.storeId !== store.id || point === undefined) {
    throw new BackupError('E_NOT_FOUND', `this store has not the recovery point of ${state.domain.name}`, {
      hints: [`name the store that it was started from with -t; its id is ${state.storeId}`],
    })
  }
  return await restore.resume(state, point)
}

async function makeInstantRestore(
  session: Session,
  { store, machine, place, pullBytesPerSecond }: InstantParts,
): Promise<InstantRestore> {
  return new InstantRestore({
    host: patientHost(machine.hypervisor),
    pullBytesPerSecond,
    domains: await makeDomainRestore(store, machine, place.domain),
    serve: where => place.serve(where),
    createOverlay: spec => place.createOverlay(spec),
    isOverlay: path => place.isOverlay(path),
    isOverlayOn: (path, socket) => place.isOverlayOn(path, socket),
    withDisksOf,
    removeFile: path => place.removeFile(path),
    saveState,
    dropState: id => rm(statePath(id), { force: true }),
    clock: session.clock,
    progress: session.progress,
  })
}

interface InstantParts {
  readonly store: StorePort
  readonly machine: Machine
  readonly place: InstantPlace
  readonly pullBytesPerSecond: number
}

/** Connects again after a restart of libvirt, for what may be asked twice. */
function patientHost(hypervisor: Hypervisor): ConstructorParameters<typeof InstantRestore>[0]['host'] {
  return {
    lookupDomain: key => hypervisor.call(connection => connection.lookupDomain(key)),
    createDomain: (uuid, options) => hypervisor.connection.createDomain(uuid, options),
    defineDomain: (xml, options) => hypervisor.call(connection => connection.defineDomain(xml, options)),
    undefineDomain: (uuid, flags) => hypervisor.connection.undefineDomain(uuid, flags),
    resumeDomain: uuid => hypervisor.call(connection => connection.resumeDomain(uuid)),
    domainXml: (uuid, options) => hypervisor.call(connection => connection.domainXml(uuid, options)),
    blockPull: (uuid, disk, bandwidth) => hypervisor.connection.blockPull(uuid, disk, bandwidth),
    blockJobInfo: (uuid, disk) => hypervisor.call(connection => connection.blockJobInfo(uuid, disk)),
    diskErrors: uuid => hypervisor.call(connection => connection.diskErrors(uuid)),
  }
}

function statePath(id: string): string {
  return join(stateDir(), 'instant', `${id}.json`)
}

async function saveState(state: InstantState): Promise<void> {
  const path = statePath(state.id)
  await mkdir(join(stateDir(), 'instant'), { recursive: true })
  // It holds the domain's definition, secrets included.
  await writeFile(`${path}.tmp`, encodeInstantState(state), { mode: 0o600, flush: true })
  await rename(`${path}.tmp`, path)
}

/** Rejects with E_EXISTS where a domain of this name is being restored so, or was when its restore was killed. */
async function refuseSecond(name: string, place: InstantPlace): Promise<void> {
  const files = await readdir(join(stateDir(), 'instant')).catch(() => [])
  for (const file of files) {
    const id = file.replace(/\.json$/, '')
    const state = await loadState(id).catch(() => undefined)
    if (state?.domain.name !== name || state.connect !== place.connect) continue
    const images = await Promise.all(state.disks.map(({ image }) => place.exists(image)))
    // Where they were removed, nobody wants to go on.
    if (!images.includes(true)) continue
    throw new BackupError('E_EXISTS', `an instant restore of ${name} was begun already`, {
      why: `its overlays: ${state.disks.map(({ image }) => image).join(', ')}`,
      hints: [`go on with it:   virtvault restore --resume ${id}`],
    })
  }
}

/** Rejects with E_NOT_FOUND, E_DAMAGED. */
async function loadState(id: string): Promise<InstantState> {
  const bytes = isInstantId(id) ? await readFile(statePath(id)).catch(() => undefined) : undefined
  if (bytes === undefined) {
    throw new BackupError('E_NOT_FOUND', `there is no restore ${id} to go on with`, {
      why: 'it was finished, or started on another host or by another user',
    })
  }
  return decodeInstantState(bytes)
}
