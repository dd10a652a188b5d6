import type { Warning } from '../base/errors.js'
import type { NbdAddress, NbdTls } from '../native/nbd.js'
import type { Consistency, DomainRef, PointCheckpoint } from '../model/recovery-point.js'

/** Where QEMU keeps the old contents of what the guest overwrites during a session. */
export type ScratchPlace =
  /** A file that must not exist; libvirt creates and removes it. */
  | { readonly kind: 'file'; readonly path: string }
  /** A block device that is overwritten and left behind. */
  | { readonly kind: 'block'; readonly path: string }

/** Where QEMU serves on TCP, and how one connects to that from here. */
export interface TcpPlace {
  /** Address of the hypervisor to listen at. */
  readonly bind: string
  /** libvirt chooses none by itself: the first that is free is taken. */
  readonly ports: readonly number[]
  /** As the server's certificate has it. */
  readonly host: string
  /** undefined: in clear text, for whoever reaches the port. */
  readonly tls: NbdTls | undefined
}

export interface RequestedDisk {
  readonly target: string
  readonly scratch: ScratchPlace
  /** Whether the new checkpoint covers it; false for images that hold no bitmap (`model/disk-class.ts`). */
  readonly tracked: boolean
  /**
   * The checkpoint since which changes are wanted: the one named in the newest
   * recovery point of this store, never another. undefined reads everything.
   */
  readonly base: string | undefined
}

export interface FreezePolicy {
  /** auto: crash-consistent with a warning where freezing fails. required: E_AGENT instead. */
  readonly mode: 'off' | 'auto' | 'required'
  /** Empty freezes all. */
  readonly mountpoints: readonly string[]
  /** For each answer of the guest agent. */
  readonly timeoutSeconds: number
}

/** When a session is given up because the guest would be paused soon: LIBVIRT.md §1.7. */
export interface ScratchLimits {
  /** Free bytes of the scratch's file system that must remain. */
  readonly minFreeBytes: number
  /** Bytes that all scratch files may take; undefined: as much as there is room. */
  readonly maxUsedBytes: number | undefined
  readonly intervalMs: number
}

/** Every name in it is random and unique, and was written to the run's journal before. */
export interface SessionRequest {
  readonly domain: DomainRef
  /**
   * Absolute path that does not exist, in a directory that QEMU may write; at
   * most 107 bytes. With `tcp` no socket, but what its scratch files' names
   * start with (`run-places.ts`).
   */
  readonly socket: string
  /** Serve there instead. */
  readonly tcp?: TcpPlace | undefined
  /** Name of the checkpoint to create in the same instant; undefined where no disk is tracked or none is wanted. */
  readonly checkpoint: string | undefined
  readonly disks: readonly RequestedDisk[]
  readonly freeze: FreezePolicy
  readonly scratchLimits: ScratchLimits
  /** Called, and waited for, before freezing (true) and after thawing (false), so that somebody else can thaw if we die. */
  onFreeze(frozen: boolean): Promise<void>
}

/** One disk as it is served during a session, frozen at the instant of its begin. */
export interface ExportedDisk {
  readonly target: string
  readonly exportName: string
  /**
   * Name for the meta context `qemu:dirty-bitmap:NAME`; set exactly where
   * `incremental`. An export without that context is an error, not clean.
   */
  readonly bitmap: string | undefined
  /** I7: whether libvirt confirmed that the bitmap covers everything since `base`. */
  readonly incremental: boolean
  /** The checkpoint that `bitmap` starts from. */
  readonly base: string | undefined
  /** Virtual size in bytes as libvirt knew it at begin; compare it with the export's. */
  readonly size: number
}

/** Of the NBD server: a Unix socket on the hypervisor, or a TCP port. */
export type SessionAddress = Pick<NbdAddress, 'socket' | 'host' | 'port' | 'tls'>

/**
 * One running backup, from begin to its end. Leaving its scope undoes it: ends
 * the job and deletes the new checkpoint, so that the next run starts from the
 * old one again.
 */
export interface BackupSessionPort extends AsyncDisposable {
  readonly domain: DomainRef
  readonly address: SessionAddress
  readonly disks: readonly ExportedDisk[]
  /** The new checkpoint, with the XML that redefines it; undefined where none was asked for. */
  readonly checkpoint: PointCheckpoint | undefined
  readonly consistency: Consistency
  /** The instant that the disks show, in wall-clock milliseconds. */
  readonly time: number
  /** What was degraded so far: a broken chain, no freeze. Grows until the session has ended. */
  readonly warnings: readonly Warning[]
  /**
   * Aborted with a BackupError as its reason when reading on is pointless or
   * endangers the guest: scratch about to fill (E_NO_SPACE), domain gone
   * (E_SOURCE_GONE). React as to a cancellation: close every NBD connection,
   * then leave the scope.
   */
  readonly failure: AbortSignal
  /**
   * Ends the job: call it when the last byte is read and every NBD connection
   * is closed (an unread reply at that moment freezes the whole guest). Waits
   * until libvirt has removed scratch and socket, and resumes the domain if it
   * was paused for want of scratch during this session. Idempotent. A job that
   * is not ours is left alone: then ours is over, and the reads have said
   * whether it was so too early. Rejects with E_TIMEOUT where the job is still
   * there after two minutes.
   */
  end(): Promise<void>
  /** The commit: the new checkpoint stays when the scope is left. Call it when the recovery point is durable. */
  keepCheckpoint(): Promise<void>
}

/** A checkpoint of its own; disposing deletes it unless it is kept. What cannot be deleted goes with the store's next pull. */
export interface NewCheckpoint extends AsyncDisposable {
  readonly checkpoint: PointCheckpoint
  keepCheckpoint(): Promise<void>
}

/** What a pull needs of a hypervisor. */
export interface BackupStarter {
  /**
   * Begins a backup session of `request.domain`: live, or from its images where
   * it is off. Where libvirt (or the image) does not
   * confirm a disk's base, that disk is exported in full with a W_CHAIN
   * warning. Rejects with E_DOMAIN_BUSY at once where a job runs already,
   * E_DOMAIN_STATE where it is off and its images are on another machine, E_AGENT where a required
   * freeze failed, E_LIBVIRT_STUCK where libvirt lost track of a job. After a
   * rejection no job and no checkpoint of this request exist, and the domain is thawed.
   */
  beginBackup(request: SessionRequest, signal: AbortSignal): Promise<BackupSessionPort>
}
