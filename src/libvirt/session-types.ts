import type { Warning } from '../base/errors.js'
import type { Consistency, DomainRef } from '../model/recovery-point.js'
import type { NbdAddress } from '../native/nbd.js'

/** One disk of a backup session as asked for. */
export interface DiskRequest {
  readonly target: string
  /** Checkpoint that the dirty bitmap is to start from; undefined reads everything. */
  readonly base: string | undefined
  /** Takes part in the new checkpoint. */
  readonly checkpointed: boolean
  readonly scratchFile: string
}

export interface FreezeRequest {
  /** auto: freeze where the agent can, go on without where it cannot. */
  readonly mode: 'off' | 'auto' | 'required'
  /** Empty for all. */
  readonly mountpoints: readonly string[]
  readonly timeoutSeconds: number
}

/** Every name in it is fresh and random; nothing here makes names. */
export interface SessionRequest {
  readonly domain: DomainRef
  readonly disks: readonly DiskRequest[]
  /** undefined where no disk can have one. */
  readonly checkpoint: string | undefined
  /** Unix socket that QEMU shall listen on. */
  readonly socket: string
  readonly freeze: FreezeRequest
  /** Called, and waited for, before freezing (true) and after thawing (false), so that somebody can thaw if we die. */
  onFreeze(frozen: boolean): Promise<void>
}

export interface ExportedDisk {
  readonly target: string
  readonly size: number
  readonly exportName: string
  /** Name in `qemu:dirty-bitmap:NAME`; present exactly where libvirt confirmed the base (I7). */
  readonly bitmap: string | undefined
}

/**
 * A libvirt pull-mode backup under way. Disposing it undoes: ends the job,
 * thaws, and deletes the new checkpoint unless keepCheckpoint() was called.
 */
export interface BackupSession extends AsyncDisposable {
  readonly disks: readonly ExportedDisk[]
  readonly address: NbdAddress
  readonly checkpoint: { readonly name: string; readonly xml: string; readonly disks: readonly string[] } | undefined
  readonly consistency: Consistency
  /** Wall-clock milliseconds of the frozen instant. */
  readonly time: number
  readonly warnings: readonly Warning[]
  /** Aborted, with a BackupError as its reason, when the session must be given up: scratch filling, domain gone. */
  readonly lost: AbortSignal

  /**
   * Ends the job and waits until it is gone; resumes the domain if the job had
   * paused it. Every NBD connection must be closed before. Idempotent.
   */
  end(): Promise<void>
  /** After the commit: disposing leaves the checkpoint alone from now on. */
  keepCheckpoint(): void
}
