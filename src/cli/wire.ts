import { BackupError, errorCodeOf, type Warning } from '../base/errors.js'
import type { Pace } from '../base/pace.js'
import * as diff from '../jobs/diff-job.js'
import * as prune from '../jobs/prune-job.js'
import { pullDomains, statusOfPoint } from '../jobs/pull-domains.js'
import type { AbortOutcome } from '../jobs/abort-job.js'
import type { ForecastOutcome } from '../jobs/pull-forecast.js'
import type { PullRequest } from '../jobs/pull-ports.js'
import type { PullJob } from '../jobs/pull-job.js'
import type { PullTarget } from '../jobs/pull-ports.js'
import type { DoctorJob } from '../jobs/doctor-job.js'
import { isLocalUri } from '../model/libvirt-uri.js'
import type { DomainRef } from '../model/recovery-point.js'
import type { Hypervisor } from '../libvirt/hypervisor.js'
import type { PullHost } from '../libvirt/pull-host.js'
import type { PlacesPolicy } from '../libvirt/run-places.js'
import type { RemoteWish } from '../model/remote-way.js'
import type { KeyRing } from '../store/key-ring.js'
import type { IndexReport } from '../store/index-check.js'
import type { Store } from '../store/store.js'
import type { StorePort } from '../store/store-types.js'
import { shortId } from '../model/point-ref.js'
import { formatSize } from '../model/size.js'
import type { GcJob } from '../jobs/gc-job.js'
import type { VerifyJob } from '../jobs/verify-job.js'
import type { Pin } from './gc-view.js'
import type { SpareGuardian } from './guardian.js'
import { readPackageJson } from './package-json.js'
import { type PriorityWords, readPriority } from './priority.js'
import { defaultScratchDir, runtimeDir, firmwarePlaces } from './places.js'
import { localTimeZone } from './points.js'
import type { RetentionPolicy } from '../model/retention.js'
import type { HostWays } from './remote-wire.js'
import { secretEnvironment } from './secret-env.js'
import type { RunContext } from './session.js'
import { DEFAULT_CONNECT } from './settings.js'
import { isPlace, type TargetPlace, targetPlace } from './targets.js'

/**
 * The one place that makes the real things. Commands import it inside run(),
 * so that nothing of this is loaded for `--help`, and it imports what it makes
 * when it makes it: a list needs neither libvirt nor NBD.
 */

export { diff, prune, pullDomains, statusOfPoint }

/** QEMU answers within milliseconds; a disk below it that hangs takes longer. */
const NBD_REQUEST_TIMEOUT_MS = 120_000

/**
 * Where the store of this run is; reads the configuration only where it must.
 * `preferred` counts where neither flag nor variable names one. Rejects as targetPlace().
 */
export async function findTarget(session: RunContext, preferred?: string): Promise<TargetPlace> {
  const target = session.settings.target ?? preferred
  if (target !== undefined && isPlace(target)) return targetPlace(target, {})
  const { config } = await session.config()
  return targetPlace(target, config)
}

/** Opens the store that `-t` names. Rejects with E_USAGE where none is named, E_NO_STORE, E_STORE_FORMAT, E_KEY. */
export async function openStore(session: RunContext, preferred?: string): Promise<StorePort> {
  return await openPlace(session, await findTarget(session, preferred))
}

/** Opens the store at `place`. Rejects as openStore(). */
export async function openPlace(session: RunContext, place: TargetPlace): Promise<Store> {
  const { Store } = await import('../store/store.js')
  const { isPassphraseGiven, storePassphrase } = await import('./passphrases.js')
  const options = {
    indexDirectory: place.indexDirectory,
    onNotice: (warning: Warning) => session.warn(warning),
    passphrase: { isExpected: isPassphraseGiven(place), ask: () => storePassphrase(session, place) },
  }
  return await Store.open(place.path, options).catch((error: unknown) => {
    throw error instanceof BackupError && error.code === 'E_NO_STORE' ? noStore(error, place) : error
  })
}

/** The store knows its path only; the user's word for it, a name of the configuration, is what `init` takes. */
function noStore(error: BackupError, { name }: TargetPlace): BackupError {
  const hints = [`Make one with: virtvault init ${name}`, 'Check that its disk is mounted.']
  return new BackupError('E_NO_STORE', error.message, { why: error.why, hints, cause: error })
}

/** As openStore(), for those who maintain it. */
export async function openWholeStore(session: RunContext): Promise<Store> {
  return await openPlace(session, await findTarget(session))
}

/** How the index compares with the packs. */
export async function checkIndexOf(store: Store, signal: AbortSignal): Promise<IndexReport> {
  const { checkIndex } = await import('../store/index-check.js')
  return await checkIndex(store, signal)
}

export async function makeGcJob(session: RunContext, store: Store): Promise<GcJob> {
  const { GcJob } = await import('../jobs/gc-job.js')
  return new GcJob({
    collector: store.collector(),
    progress: session.progress,
    clock: session.clock,
    confirmMuch: plan =>
      session.confirm(
        `gc would free ${formatSize(plan.freedBytes)} of the ${formatSize(plan.storeBytes)} in this store.`,
      ),
  })
}

export async function makeVerifyJob(session: RunContext, store: Store): Promise<VerifyJob> {
  const { VerifyJob } = await import('../jobs/verify-job.js')
  const { progress, clock } = session
  return new VerifyJob({ points: store.points, verifier: store.verifier(), progress, clock })
}

/** What the configuration's groups list; empty, and nothing read, where no group was asked for. */
export async function storeGroups(
  session: RunContext,
  asked: readonly string[],
): Promise<ReadonlyMap<string, readonly string[]>> {
  if (asked.length === 0) return new Map()
  const { groupSelectors } = await import('../config/resolve.js')
  return groupSelectors((await session.config()).config)
}

/**
 * A lease for whoever reads a store for long: no gc takes away meanwhile what
 * a forgotten point had. Nothing where the store cannot be written to.
 */
export async function leaseForReading(store: StorePort): Promise<AsyncDisposable> {
  try {
    return await store.runs.begin('read')
  } catch (error) {
    if (!LEASELESS.has(errorCodeOf(error))) throw error
    return { [Symbol.asyncDispose]: () => Promise.resolve() }
  }
}

const LEASELESS: ReadonlySet<string> = new Set(['E_REFUSED', 'E_NO_SPACE', 'E_IO'])

export interface RetentionRules {
  readonly policyOf: (domain: DomainRef) => prune.DomainPolicy
  readonly groups: ReadonlyMap<string, readonly string[]>
  readonly timeZone: string
}

/** Flags where they say anything, else what the configuration says of each domain. Rejects with E_CONFIG. */
export async function retentionRules(session: RunContext, flags: RetentionPolicy | undefined): Promise<RetentionRules> {
  const { groupSelectors, resolveJob } = await import('../config/resolve.js')
  const { retentionOf } = await import('../config/settings.js')
  const loaded = await session.config()
  const timeZone = loaded.config.timezone ?? localTimeZone()
  const policyOf = (domain: DomainRef) => {
    const job = resolveJob(loaded, domain, { timeZone, env: process.env })
    return { group: job.group, policy: flags ?? retentionOf(job.settings) }
  }
  return { policyOf, groups: groupSelectors(loaded.config), timeZone }
}

/** What only these points hold; undefined where damage keeps it from being told. */
export async function freeableBytes(
  store: Store,
  pointIds: readonly string[],
  signal: AbortSignal,
): Promise<number | undefined> {
  if (pointIds.length === 0) return 0
  const going = new Set(pointIds)
  const roots = (await store.points.list()).map(point => ({ point, label: going.has(point.id) ? 1 : 0 }))
  try {
    return (await store.usage(roots, signal)).alone.get(1)?.storedBytes ?? 0
  } catch (error) {
    if (errorCodeOf(error) !== 'E_DAMAGED') throw error
    return undefined
  }
}

/** What each point holds alone, the largest first. */
export async function pinsOf(store: Store, signal: AbortSignal): Promise<Pin[]> {
  const points = await store.points.list()
  const usage = await store.usage(
    points.map((point, label) => ({ point, label })),
    signal,
  )
  return points
    .map((point, label) => ({
      point: point.id,
      name: `${point.domain.name}@${shortId(point.id)}`,
      bytes: usage.alone.get(label)?.storedBytes ?? 0,
    }))
    .sort((a, b) => b.bytes - a.bytes)
}

export interface NewStore {
  readonly chunkSize: number | undefined
  readonly level: number | undefined
  /** undefined: encrypted where a passphrase is given. */
  readonly encryption: 'aes-256-gcm' | 'none' | undefined
}

/** Creates the store that `-t` names. Rejects with E_EXISTS, E_REFUSED, E_USAGE, E_CONFIG, E_NO_SPACE, E_IO. */
export async function createStore(session: RunContext, options: NewStore): Promise<StorePort> {
  const place = await findTarget(session)
  if (options.encryption === 'none' && place.encryption.kind === 'passphrase') {
    throw new BackupError('E_USAGE', `the configuration has a passphrase for ${place.name}, --encryption says none`, {
      hints: ['leave --encryption out, or write `encryption: none` in the configuration'],
    })
  }
  const { Store } = await import('../store/store.js')
  const { firstPassphrase, isPassphraseGiven } = await import('./passphrases.js')
  const isEncrypted = (options.encryption ?? (isPassphraseGiven(place) ? 'aes-256-gcm' : 'none')) !== 'none'
  const passphrase = isEncrypted ? await firstPassphrase(session, place) : undefined
  const encryption = passphrase === undefined ? undefined : { passphrase, label: 'init' }
  await Store.init(place.path, { chunkSize: options.chunkSize, level: options.level, encryption })
  return await Store.open(place.path, {
    passphrase: { isExpected: isEncrypted, ask: () => Promise.resolve(passphrase) },
  })
}

/** The keys of the store that `-t` names, locked. Rejects with E_USAGE, E_NO_STORE, E_UNSUPPORTED (not encrypted). */
export async function openKeyRing(
  session: RunContext,
): Promise<{ readonly ring: KeyRing; readonly place: TargetPlace }> {
  const place = await findTarget(session)
  const { KeyRing } = await import('../store/key-ring.js')
  return { ring: await KeyRing.of(place.path), place }
}

/** Lowers the priority of all threads of this process, and of those to come. Throws E_USAGE; E_IO where it may not. */
export async function lowerPriority(words: PriorityWords): Promise<void> {
  const priority = readPriority(words)
  if (priority === undefined) return
  const { native } = await import('../native/binding.js')
  native().setPriority(priority.nice, priority.ioClass, priority.ioLevel)
}

/** A connection to libvirt, and what a guardian needs to make one like it. */
export interface Machine extends AsyncDisposable {
  readonly hypervisor: Hypervisor
  readonly ways: HostWays
  readonly access: {
    readonly uri: string
    readonly username?: string | undefined
    readonly passphrase?: string | undefined
  }
}

/**
 * Connects to the libvirt that flags, variables or the configuration name, or to `known`.
 * Rejects with E_LIBVIRT_CONNECT, E_LIBVIRT_DENIED, E_UNSUPPORTED, E_CONFIG.
 */
export async function connectMachine(session: RunContext, known?: string): Promise<Machine> {
  const { resolveSecret, secretSourceOf } = await import('../config/secrets.js')
  const { Hypervisor } = await import('../libvirt/hypervisor.js')
  const { config } = await session.config()
  const secret = await resolveSecret(
    {
      name: 'passphrase for libvirt',
      source: secretSourceOf(config, 'passphrase'),
      variable: 'VIRTVAULT_LIBVIRT_PASSPHRASE',
      env: secretEnvironment(),
    },
    session.signal,
  )
  for (const warning of secret?.warnings ?? []) session.warn(warning)
  const uri = known ?? session.settings.connect ?? config.uri ?? DEFAULT_CONNECT
  const { openWays } = await import('./remote-wire.js')
  const { USERNAME_VARIABLE, withCredentials } = await import('./libvirt-login.js')
  const ways = await openWays(uri)
  const credentials = { username: process.env[USERNAME_VARIABLE] ?? config.username, passphrase: secret?.secret }
  const { access, result: hypervisor } = await withCredentials(session, { uri, ...credentials }, access =>
    Hypervisor.open(uri, { ...access, files: ways.files }, session.signal),
  )
  return {
    hypervisor,
    ways,
    access,
    [Symbol.asyncDispose]: async () => {
      await hypervisor[Symbol.asyncDispose]()
      await ways[Symbol.asyncDispose]()
    },
  }
}

export interface PullOptions {
  /** Per disk. */
  readonly connections: number
  /** Of reading from the domain. */
  readonly pace?: Pace | undefined
  readonly scratchDir: string | undefined
  readonly scratchDevices: ReadonlyMap<string, string>
  /** Taken by the first pull that needs one. */
  readonly guardian?: SpareGuardian | undefined
  /** What flags say of a libvirt on another machine. */
  readonly remote?: RemoteWish | undefined
}

/** Rejects with E_REFUSED, E_CONFIG, E_UNREACHABLE where another machine's disks cannot be read as asked. */
export async function makePullJob(
  session: RunContext,
  parts: { readonly targets: readonly PullTarget[]; readonly machine: Machine },
  { connections, scratchDir, scratchDevices, pace, guardian, remote }: PullOptions,
): Promise<PullJob> {
  const { PullJob } = await import('../jobs/pull-job.js')
  const { ExportReader } = await import('../nbd/export-reader.js')
  const { PacedExport } = await import('../nbd/paced-export.js')
  const { startGuardian } = await import('./guardian.js')
  const { explainNetwork, placesOn, remoteWish } = await import('./remote-wire.js')
  const { access, ways } = parts.machine
  const wish = { ...remoteWish(await session.config(), remote), scratchDir }
  return new PullJob({
    targets: parts.targets,
    hypervisor: await makePullHost(parts.machine, { ...(await placesOn(access.uri, ways, wish)), scratchDevices }),
    openExport: async (address, { exportName, bitmap }, signal) => {
      const isThere = address.socket !== undefined && ways.ssh !== undefined
      const reached = isThere ? await ways.ssh.reach(address.socket) : address
      const how = { exportName, dirtyBitmap: bitmap, connections, requestTimeoutMs: NBD_REQUEST_TIMEOUT_MS }
      const reader = await ExportReader.open(reached, how, signal).catch((error: unknown) => {
        throw explainNetwork(address, error)
      })
      return pace === undefined ? reader : new PacedExport(reader, pace)
    },
    startGuardian: () => startGuardian(access, guardian),
    clock: session.clock,
    random: Math.random,
    progress: session.progress,
    toolVersion: readPackageJson().version,
  })
}

/** What a pull would read for each of its targets. Never rejects for a target's sake. */
export async function forecastDomain(
  session: RunContext,
  { targets, machine }: { readonly targets: readonly PullTarget[]; readonly machine: Machine },
  request: PullRequest,
): Promise<readonly ForecastOutcome[]> {
  const { forecastPull } = await import('../jobs/pull-forecast.js')
  return await forecastPull({ targets, hypervisor: await makePullHost(machine, NO_PLACES) }, request, session.signal)
}

/** Deletes every checkpoint that this store keeps on a domain. Says what could not be deleted. */
export async function resetCheckpoints(
  store: StorePort,
  machine: Machine,
  domain: DomainRef,
): Promise<readonly Warning[]> {
  const { checkpointPrefix } = await import('../model/checkpoint-name.js')
  const host = await makePullHost(machine, NO_PLACES)
  return await host.dropCheckpoints(domain, checkpointPrefix(store.id), new Set())
}

/** Ends what dead runs left on a domain; `force` also a job of ours that this store does not know. */
export async function abortBackup(
  parts: { readonly store: StorePort; readonly machine: Machine },
  domain: DomainRef,
  options: { readonly force: boolean },
): Promise<AbortOutcome> {
  const { abortLeftovers } = await import('../jobs/abort-job.js')
  const hypervisor = await makePullHost(parts.machine, NO_PLACES)
  return await abortLeftovers({ store: parts.store, hypervisor }, domain, options)
}

/** Looks at everything a backup depends on; connects and opens by itself, since both may be what is broken. */
export async function makeDoctorJob(session: RunContext): Promise<DoctorJob> {
  const { DoctorJob } = await import('../jobs/doctor-job.js')
  const { DoctorHost, isAllowedByAppArmor, lookAtDirectory, lookAtTools } = await import('../libvirt/doctor-host.js')
  const { statfs } = await import('node:fs/promises')
  return new DoctorJob({
    tools: lookAtTools,
    connect: async () => {
      const machine = await connectMachine(session)
      const pullHost = await makePullHost(machine, NO_PLACES)
      return {
        host: new DoctorHost(machine.hypervisor),
        isLocal: isLocalUri(machine.access.uri),
        remote: async () => {
          const { lookAtRemote, remoteWish } = await import('./remote-wire.js')
          const wish = { ...remoteWish(await session.config(), undefined), scratchDir: scratchDirWish() }
          return await lookAtRemote(machine.access.uri, machine.ways, wish)
        },
        survey: (domain, signal) => pullHost.survey(domain, signal),
        [Symbol.asyncDispose]: () => machine[Symbol.asyncDispose](),
      }
    },
    openStore: async () => {
      const store = await openStore(session)
      const { bavail, bsize } = await statfs(store.location)
      return { store, free: bavail * bsize }
    },
    lookAtDirectory: (purpose, qemuUser) =>
      lookAtDirectory(purpose === 'runtime' ? runtimeDir() : defaultScratchDir(), purpose, qemuUser),
    isAllowedByAppArmor,
  })
}

/** Of the environment; what groups say is theirs. */
function scratchDirWish(): string | undefined {
  const { VIRTVAULT_SCRATCH_DIR: asked } = process.env
  return asked === '' ? undefined : asked
}

/** For who begins no backup. */
const NO_PLACES: PlacesPolicy = { runtimeDir: '/nonexistent', scratchDir: '/nonexistent' }

async function makePullHost({ hypervisor, access }: Machine, places: PlacesPolicy): Promise<PullHost> {
  const { PullHost } = await import('../libvirt/pull-host.js')
  const { swtpm: swtpmDir } = firmwarePlaces(access.uri)
  return new PullHost(hypervisor, { ...places, swtpmDir, readOnly: false, shareable: false })
}
