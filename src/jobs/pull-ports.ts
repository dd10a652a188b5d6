import type { Warning } from '../base/errors.js'
import type { Clock } from '../base/clock.js'
import type { Pace } from '../base/pace.js'
import type {
  BackupStarter,
  ExportedDisk,
  FreezePolicy,
  NewCheckpoint,
  ScratchLimits,
  ScratchPlace,
  SessionAddress,
  TcpPlace,
} from '../libvirt/session-types.js'
import type { BaseHealth, PullWish, SurveyedBacking, SurveyedDisk } from '../model/pull-plan.js'
import type { BackingImage, DomainRef, PointCheckpoint } from '../model/recovery-point.js'
import type { NbdAddress } from '../native/nbd.js'
import type { PullJournal, StorePort } from '../store/store-types.js'
import type { GuardianPort } from './guardian-port.js'
import type { Progress } from './progress.js'
import type { DiskExport } from './pull-disk.js'

/** What a pull needs of the world; `cli/wire.ts` makes it. */
export interface PullPorts {
  /** Where a recovery point is to be made, all from one read where that can be; at least one. */
  readonly targets: readonly PullTarget[]
  readonly hypervisor: PullHypervisor
  /** Rejects with E_NBD, E_NBD_PROTOCOL, E_TIMEOUT. */
  openExport(address: NbdAddress, disk: ExportedDisk, signal: AbortSignal): Promise<DiskExport & AsyncDisposable>
  startGuardian(): Promise<GuardianPort>
  readonly clock: Clock
  /** In [0, 1). Chooses which clean chunks are read again. */
  readonly random: () => number
  readonly progress: Progress
  readonly toolVersion: string
}

/** A store, and what the user calls it. */
export interface PullTarget {
  readonly name: string
  readonly store: StorePort
  /** Of what is written to it; reading is paced by the export itself. */
  readonly pace?: Pace | undefined
}

/** A file beside the disks that belongs into the recovery point. */
export interface DomainFile {
  readonly name: string
  readonly bytes: Uint8Array
  readonly path?: string | undefined
}

export interface DomainSurvey {
  readonly disks: readonly SurveyedDisk[]
  readonly files: readonly DomainFile[]
  /** Files that could not be read. */
  readonly warnings: readonly Warning[]
}

/** Fresh, unique places for one run; made durable in the journal before they are used. */
export interface RunPlaces {
  readonly token: string
  readonly checkpoint: string
  /** The Unix socket of the job or, where it serves on TCP, what the names of its scratch files start with. */
  readonly socket: string
  /** By disk target. */
  readonly scratch: ReadonlyMap<string, ScratchPlace>
  /** Where it serves instead of on `socket`. */
  readonly tcp?: TcpPlace | undefined
}

export interface PullHypervisor extends BackupStarter {
  readonly uri: string
  /** Disks with what can be done with them, and the files to keep. Rejects with E_NOT_FOUND, E_DOMAIN_STATE. */
  survey(domain: DomainRef, signal: AbortSignal): Promise<DomainSurvey>
  /**
   * What each of these disks lies on, by target. Of a disk that lies on nothing
   * there is no image. Rejects with E_NOT_FOUND, E_INTERRUPTED.
   */
  backingOf(
    domain: DomainRef,
    targets: readonly string[],
    signal: AbortSignal,
  ): Promise<ReadonlyMap<string, SurveyedBacking>>
  /**
   * Opens images that are left out, by target, the topmost of each first:
   * read-only, and locked against everybody who would write to them. Disposing
   * closes them. Rejects with E_DOMAIN_BUSY where somebody writes to one,
   * E_SOURCE_GONE where one is not what it was at the survey, E_TOOL_MISSING, E_IO.
   */
  openBelow(
    images: ReadonlyMap<string, readonly BackingImage[]>,
    places: RunPlaces,
    signal: AbortSignal,
  ): Promise<BelowSession>
  /**
   * Starts the domain paused where it is off; disposing stops it again, unless
   * somebody has resumed it meanwhile. E_REFUSED where its memory is saved: a
   * start would use that up.
   */
  startPaused(domain: DomainRef): Promise<AsyncDisposable>
  /** Whether `checkpoint` can be built on; redefines it from its stored XML where only libvirt's record of it is lost. */
  baseHealth(domain: DomainRef, checkpoint: PointCheckpoint): Promise<BaseHealth>
  /** As baseHealth(), but changes nothing, and counts what was written since. */
  takeCensus(domain: DomainRef, checkpoint: PointCheckpoint, signal: AbortSignal): Promise<BaseCensus>
  /** Bytes of a disk and of what its image takes; undefined where libvirt cannot say. */
  diskBytes(
    domain: DomainRef,
    target: string,
  ): Promise<{ readonly capacity: number; readonly allocation: number } | undefined>
  /**
   * Fresh random names; `prefix` starts the checkpoint's, and `token` (16 hex
   * digits, random where undefined) ends all. Nothing is made yet: the journal comes first.
   */
  namePlaces(prefix: string, targets: readonly string[], token?: string): RunPlaces
  /** Makes the directories; disposing removes them. */
  makePlaces(places: RunPlaces): Promise<AsyncDisposable>
  /**
   * Makes a checkpoint without a backup, on these disks. Rejects with nothing
   * of it left, as far as libvirt lets us: the journal has its name.
   */
  makeCheckpoint(
    domain: DomainRef,
    what: { readonly name: string; readonly disks: readonly string[] },
  ): Promise<NewCheckpoint>
  /** Deletes checkpoints that start with `prefix` but those in `keep`. Says what could not be deleted. */
  dropCheckpoints(domain: DomainRef, prefix: string, keep: ReadonlySet<string>): Promise<readonly Warning[]>
  /**
   * Undoes what a dead run left: thaws, ends its job, deletes its checkpoint
   * unless `keepCheckpoint`, removes socket and scratch. What is already gone
   * is fine; a job of somebody else is left alone.
   */
  cleanUpAfter(journal: PullJournal, options: { readonly keepCheckpoint: boolean }): Promise<void>
}

/** Images that are left out, served for comparison. */
export interface BelowSession extends AsyncDisposable {
  readonly address: SessionAddress
  /** By target. */
  readonly exports: ReadonlyMap<string, { readonly exportName: string; readonly size: number }>
  /** Rejects with E_SOURCE_GONE where an image has changed since it was opened. */
  check(): Promise<void>
}

export interface BaseCensus extends BaseHealth {
  /** Written since the checkpoint, by disk, in whole granules of the bitmaps; never too few. Of sound disks alone. */
  readonly dirtyBytes: ReadonlyMap<string, number>
}

export interface PullRequest {
  readonly domain: DomainRef
  readonly wish: PullWish
  readonly freeze: FreezePolicy
  readonly scratchLimits: ScratchLimits
  readonly tags: readonly string[]
  readonly comment?: string | undefined
  /** Back up a domain that is off by starting it paused, not from its images. */
  readonly startPaused?: boolean | undefined
  /** Makes no point where it is known that less than this has changed since the newest one. */
  readonly minChangeBytes?: number | undefined
}
