import { randomBytes } from 'node:crypto'
import { normalize } from 'node:path'

import { BackupError, errorCodeOf, type Warning } from '../base/errors.js'
import { classifyDisk } from '../model/disk-class.js'
import { describeSource, type DomainDescription, type DomainDisk } from '../model/domain.js'
import type { BaseHealth, SurveyedBacking, SurveyedDisk } from '../model/pull-plan.js'
import type { BackingImage, DiskSource, DomainRef, PointCheckpoint } from '../model/recovery-point.js'
import { backingOf, serveBelow, type ServedImages } from './backing-images.js'
import { endOwnJob, refuseLocked, resumeAfterJob, runningBackup } from './backup-job.js'
import { LiveBackupSession, undoDeadSession } from './backup-session.js'
import { parseQemuUser } from './capabilities-xml.js'
import { type CountedBase, countSince, deleteOtherCheckpoints, probeCheckpoint } from './checkpoints.js'
import type { DomainFile } from './domain-files.js'
import { parseDomainXml } from './domain-xml.js'
import { type Hypervisor, libvirtFailure } from './hypervisor.js'
import { LoneCheckpoint } from './lone-checkpoint.js'
import type { ProbedImage } from './image-probe.js'
import { countOffline, offlineHealth } from './offline-checkpoints.js'
import { isOff, localPath, whyUnreadable } from './offline-images.js'
import { OfflineBackupSession } from './offline-session.js'
import { filesOf, nameRunPlaces, offlineSocket, type PlacesPolicy, runMarkOf, type RunPlaces } from './run-places.js'
import { ScratchDevices } from './scratch-devices.js'
import type { BackupSessionPort, NewCheckpoint, SessionRequest } from './session-types.js'

/** Bytes of randomness in the names of a run. */
const TOKEN_BYTES = 8
/** virDomainState. */
const STATE_PAUSED = 3
const never = new AbortController().signal

export interface PullHostOptions extends PlacesPolicy {
  /** Back up read-only and shareable disks too. */
  readonly readOnly: boolean
  readonly shareable: boolean
  /** Where this libvirt keeps TPM state; `/var/lib/libvirt/swtpm` unless given. */
  readonly swtpmDir?: string | undefined
}

export interface DomainSurvey {
  readonly disks: readonly SurveyedDisk[]
  readonly files: readonly DomainFile[]
  readonly warnings: readonly Warning[]
}

/** What a dead run left on the hypervisor, as its journal tells. */
export interface RunTraces {
  readonly domainUuid: string
  readonly domainName: string
  readonly checkpoint: string
  readonly socket: string
  readonly scratch: readonly string[]
  readonly frozen: boolean
}

/** A hypervisor as a pull needs it: surveys a domain, begins a session, cleans up. */
export class PullHost {
  readonly uri: string
  readonly #hypervisor: Hypervisor
  readonly #options: PullHostOptions

  constructor(hypervisor: Hypervisor, options: PullHostOptions) {
    this.uri = hypervisor.uri
    this.#hypervisor = hypervisor
    this.#options = options
  }

  /**
   * Looks at the disks and reads the files that belong to the domain.
   * Rejects with E_NOT_FOUND, E_LIBVIRT_CONNECT.
   */
  async survey(domain: DomainRef, signal: AbortSignal): Promise<DomainSurvey> {
    const xml = await this.#hypervisor.domainXml(domain.uuid)
    const description = parseDomainXml(xml.live ?? xml.inactive)
    const disks: SurveyedDisk[] = []
    const isRunning = xml.live !== undefined
    for (const disk of description.disks) disks.push(await this.#surveyDisk(disk, isRunning, signal))
    const { swtpmDir, scratchDevices = new Map<string, string>() } = this.#options
    const { files, warnings } = await this.#hypervisor.files.domainFiles(description, { swtpmDir, isRunning })
    const xmlFile = (name: string, text: string): DomainFile => ({ name, bytes: Buffer.from(text), path: undefined })
    return {
      disks,
      files: [
        xmlFile('domain-inactive.xml', xml.inactive),
        ...(xml.live === undefined ? [] : [xmlFile('domain-live.xml', xml.live)]),
        ...files,
      ],
      warnings: [...warnings, ...unusedDevices(description, scratchDevices)],
    }
  }

  async #surveyDisk(disk: DomainDisk, isRunning: boolean, signal: AbortSignal): Promise<SurveyedDisk> {
    // A volume that libvirt cannot find is QEMU's to find; what it is stays unknown.
    const path = await localPath(this.#hypervisor, disk.source).catch(() => undefined)
    const probed =
      path === undefined ? undefined : await this.#hypervisor.files.probeImage(path, disk.format ?? 'raw', signal)
    const { ability, reason } = classifyDisk(disk, this.#options, probed)
    const source = sourceOf(disk, probed)
    const unreadable = isRunning || ability === 'skip' ? undefined : await whyUnreadable(this.#hypervisor, disk)
    if (unreadable !== undefined) return { target: disk.target, source, ability: 'skip', reason: unreadable }
    return { target: disk.target, source, ability, reason }
  }

  /** As backingOf() of backing-images.ts. */
  async backingOf(
    domain: DomainRef,
    targets: readonly string[],
    signal: AbortSignal,
  ): Promise<ReadonlyMap<string, SurveyedBacking>> {
    return await backingOf(this.#hypervisor, { domain, targets }, signal)
  }

  /** Read-only and locked. Rejects with E_DOMAIN_BUSY, E_SOURCE_GONE, E_UNSUPPORTED, E_TOOL_MISSING, E_IO. */
  async openBelow(
    images: ReadonlyMap<string, readonly BackingImage[]>,
    places: RunPlaces,
    signal: AbortSignal,
  ): Promise<ServedImages> {
    signal.throwIfAborted()
    return await serveBelow(images, places)
  }

  /** Rejects with E_REFUSED where its memory is saved, and with what a start meets. */
  async startPaused(domain: DomainRef): Promise<AsyncDisposable> {
    const before = await this.#hypervisor.lookup(domain.uuid)
    if (!(await isOff(this.#hypervisor, domain))) return { [Symbol.asyncDispose]: () => Promise.resolve() }
    if (before.hasManagedSave) {
      throw new BackupError('E_REFUSED', `${domain.name} is not started: its memory is saved, and would be lost`, {
        hints: ['pull it without --start-paused, from its images'],
      })
    }
    await this.#hypervisor.connection.createDomain(domain.uuid, { paused: true })
    return { [Symbol.asyncDispose]: () => this.#stopPaused(domain) }
  }

  /** One that somebody resumed is theirs now. */
  async #stopPaused(domain: DomainRef): Promise<void> {
    const { state } = await this.#hypervisor.lookup(domain.uuid)
    if (state !== STATE_PAUSED) return
    await this.#hypervisor.call(connection => connection.destroyDomain(domain.uuid, { graceful: true }))
  }

  /** Rejects with E_DOMAIN_BUSY where a job runs that this would have to wait for. */
  async baseHealth(domain: DomainRef, checkpoint: PointCheckpoint): Promise<BaseHealth> {
    if (await isOff(this.#hypervisor, domain)) return await offlineHealth(this.#hypervisor, domain, checkpoint, never)
    await refuseLocked(this.#hypervisor, domain)
    return await probeCheckpoint(this.#hypervisor, domain, checkpoint)
  }

  async takeCensus(domain: DomainRef, { name }: PointCheckpoint, signal: AbortSignal): Promise<CountedBase> {
    if (await isOff(this.#hypervisor, domain)) return await countOffline(this.#hypervisor, domain, name, signal)
    return await countSince(this.#hypervisor, domain, name)
  }

  async diskBytes(domain: DomainRef, target: string) {
    try {
      return await this.#hypervisor.call(connection => connection.blockInfo(domain.uuid, target))
    } catch (error) {
      if (libvirtFailure(error) === undefined) throw error
      return undefined
    }
  }

  /** Names that start with `prefix`, and end with `token` or 16 random hex digits. Throws E_CONFIG. */
  namePlaces(prefix: string, targets: readonly string[], token?: string): RunPlaces {
    return nameRunPlaces(this.#options, { prefix, token: token ?? randomBytes(TOKEN_BYTES).toString('hex') }, targets)
  }

  /**
   * Claims the block devices and makes the directories; disposing lets go of those, and removes these with what is left in
   * them. Rejects with E_CONFIG, and as ScratchDevices.claim().
   */
  async makePlaces(places: RunPlaces): Promise<AsyncDisposable> {
    const capabilities = await this.#hypervisor.call(connection => connection.capabilities())
    const { files } = this.#hypervisor
    const devices = await ScratchDevices.claim(this.#hypervisor, places.scratch.values())
    try {
      await files.makeRunPlaces(places, parseQemuUser(capabilities))
    } catch (error) {
      await devices[Symbol.asyncDispose]()
      throw error
    }
    return {
      [Symbol.asyncDispose]: async () => {
        try {
          await files.removeRunPlaces(filesOf(places))
        } catch (error) {
          // libvirt removes the files themselves; of a directory that stays empty on a machine that is out
          // of reach nothing follows for a recovery point that is made.
          if (errorCodeOf(error) !== 'E_UNREACHABLE') throw error
        } finally {
          await devices[Symbol.asyncDispose]()
        }
      },
    }
  }

  async beginBackup(request: SessionRequest, signal: AbortSignal): Promise<BackupSessionPort> {
    const Session = (await isOff(this.#hypervisor, request.domain)) ? OfflineBackupSession : LiveBackupSession
    return await Session.begin(this.#hypervisor, request, signal)
  }

  async makeCheckpoint(
    domain: DomainRef,
    what: { readonly name: string; readonly disks: readonly string[] },
  ): Promise<NewCheckpoint> {
    return await LoneCheckpoint.make(this.#hypervisor, domain, what)
  }

  async dropCheckpoints(domain: DomainRef, prefix: string, keep: ReadonlySet<string>): Promise<readonly Warning[]> {
    return (await deleteOtherCheckpoints(this.#hypervisor, domain, { prefix, keep })).warnings
  }

  /**
   * Thaws, ends the run's job, deletes its checkpoint unless `keepCheckpoint`,
   * removes its socket and scratch. What is gone is fine; a job of somebody
   * else is left alone. Rejects where something that is there stays there.
   */
  async cleanUpAfter(traces: RunTraces, options: { readonly keepCheckpoint: boolean }): Promise<void> {
    const failures = await undoDeadSession(this.#hypervisor, {
      domain: { uuid: traces.domainUuid, name: traces.domainName },
      frozen: traces.frozen,
      socket: traces.socket,
      scratchFiles: traces.scratch,
      checkpoint: options.keepCheckpoint ? undefined : traces.checkpoint,
    })
    await this.#hypervisor.files.removeRunPlaces([offlineSocket(traces.socket), ...traces.scratch])
    if (failures.length === 0) return
    throw new BackupError('E_LIBVIRT', `what a dead run left on ${traces.domainName} could not be cleaned up`, {
      why: failures.join('; '),
      hints: ['the next pull tries again'],
    })
  }

  /** Whether a job runs whose places were made by a virtvault, of whichever store. */
  async hasOurJob(domain: DomainRef): Promise<boolean> {
    return (await ourSocket(this.#hypervisor, domain)) !== undefined
  }

  /** Thaws, ends such a job, removes its socket. false where there is none. Rejects with E_TIMEOUT, E_LIBVIRT_STUCK. */
  async endOurJob(domain: DomainRef): Promise<boolean> {
    const socket = await ourSocket(this.#hypervisor, domain)
    if (socket === undefined) return false
    // No agent, or none that answers: then nothing is frozen that a thaw could reach.
    await this.#hypervisor.call(connection => connection.fsThaw(domain.uuid, [])).catch(() => undefined)
    await endOwnJob(this.#hypervisor, domain, socket)
    await resumeAfterJob(this.#hypervisor, domain)
    await this.#hypervisor.files.removeRunPlaces([socket])
    return true
  }
}

/** A misspelt disk would have its scratch elsewhere without a word. */
function unusedDevices({ name, disks }: DomainDescription, devices: ReadonlyMap<string, string>): readonly Warning[] {
  const unknown = [...devices].filter(([target]) => !disks.some(disk => disk.target === target))
  return unknown.map(([target, device]) => ({
    code: 'W_SCRATCH',
    message: `${name} has no disk ${target}: the scratch device ${device} is not used`,
  }))
}

/** By what a job is known whose places namePlaces() made up, here or for another store. */
async function ourSocket(hypervisor: Hypervisor, domain: DomainRef): Promise<string | undefined> {
  const job = await runningBackup(hypervisor, domain)
  return job === undefined ? undefined : runMarkOf(job)
}

function sourceOf(disk: DomainDisk, probed: ProbedImage | undefined): DiskSource {
  const layers = disk.backingChain.map(({ source }) => describeSource(source))
  const identities = probed?.backingIdentities
  const isWhole = layers.length === 0 || layers.length === identities?.length
  return {
    path: describeSource(disk.source),
    sourceType: disk.source.kind,
    format: disk.format ?? 'raw',
    identity: probed?.identity,
    clusterSize: probed?.clusterSize,
    compat: probed?.compat,
    extendedL2: probed?.extendedL2,
    lazyRefcounts: probed?.lazyRefcounts,
    compressionType: probed?.compressionType,
    dataFile: disk.dataFile ?? probed?.dataFile,
    encryption: disk.encryption?.format,
    // qemu-img leaves `..` in the names that a header gives relative to its image.
    backingFiles: (layers.length > 0 ? layers : probed?.backingFiles)?.map(file =>
      file.startsWith('/') ? normalize(file) : file,
    ),
    backingIdentities: isWhole ? identities : undefined,
  }
}
