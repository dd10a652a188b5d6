import type { Warning } from '../base/errors.js'

/**
 * Root of a disk tree. With the disk's size and the store's chunk size it
 * answers for every chunk of the disk.
 */
export type TreeRoot =
  | { readonly kind: 'hole' }
  | { readonly kind: 'zero' }
  /** All as the images that were left out: see PointDisk.below. */
  | { readonly kind: 'below' }
  /** 32 bytes, the id of the root node. */
  | { readonly kind: 'node'; readonly id: Uint8Array }

export interface DomainRef {
  readonly uuid: string
  readonly name: string
}

export type ReadMode = 'full' | 'incremental'

/** Facts about a disk's image that are needed to recreate it, and to notice that it was exchanged. */
export interface DiskSource {
  /** File, block device or URL as libvirt names it. */
  readonly path: string
  readonly sourceType: string
  readonly format: string
  /** `device:inode` of a local file at the time; a change makes the next pull full for this disk. */
  readonly identity?: string | undefined
  readonly clusterSize?: number | undefined
  readonly compat?: string | undefined
  readonly extendedL2?: boolean | undefined
  readonly lazyRefcounts?: boolean | undefined
  readonly compressionType?: string | undefined
  readonly dataFile?: string | undefined
  readonly encryption?: string | undefined
  readonly backingFiles?: readonly string[] | undefined
  /** As `identity`, of each of `backingFiles`; empty where it is not known. */
  readonly backingIdentities?: readonly string[] | undefined
}

/** An image below the disk's own, as it was when the point was made. */
export interface BackingImage {
  readonly path: string
  readonly format: string
  /** Bytes of the disk that it shows. */
  readonly virtualSize: number
  /** Of the file; undefined of a block device. */
  readonly fileBytes: number | undefined
  /** When the file was written last, in whole milliseconds; undefined of a block device. */
  readonly modified: number | undefined
  /** `device:inode`; undefined of a block device. */
  readonly identity: string | undefined
}

/** What a point leaves out of a disk, and needs to give it back. */
export interface DiskBelow {
  /** The images that are left out, the topmost first. */
  readonly images: readonly BackingImage[]
  /** 32 bytes, of what the topmost shows with all below it: docs/format.md, "Images left out". */
  readonly contentId: Uint8Array
}

/** Bytes unless said otherwise. */
export interface DiskStatistics {
  /** What the dirty bitmap (or a full read) said must be looked at, as data. */
  readonly dirtyBytes: number
  /** What was read over NBD. */
  readonly readBytes: number
  /** Plain bytes that the store did not have. */
  readonly newBytes: number
  /** What they take in packs, headers and tree nodes included. */
  readonly storedBytes: number
  readonly newChunks: number
  readonly newNodes: number
}

export interface PointDisk {
  /** As libvirt names it, e.g. `vda`. */
  readonly target: string
  readonly size: number
  readonly root: TreeRoot
  readonly mode: ReadMode
  readonly source: DiskSource
  readonly statistics: DiskStatistics
  /** Set where images were left out: the tree then says of some chunks that they are as those images. */
  readonly below?: DiskBelow | undefined
}

export interface SkippedDisk {
  readonly target: string
  readonly reason: string
}

export interface Consistency {
  /** filesystem: frozen by the guest agent. crash: as after a power cut. offline: the domain was shut off. */
  readonly kind: 'filesystem' | 'crash' | 'offline'
  readonly frozenMs?: number | undefined
  /** Why it is only crash-consistent although freezing was asked for. */
  readonly reason?: string | undefined
}

/** The libvirt checkpoint that the next incremental starts from. */
export interface PointCheckpoint {
  readonly name: string
  /** Of libvirt, without the domain; enough to redefine it on another host. */
  readonly xml: string
  /** Disks that it covers. */
  readonly disks: readonly string[]
}

/** A file beside the disks, stored as one blob. */
export interface PointBlob {
  /** `domain-inactive.xml`, `domain-live.xml`, `nvram`, `tpm`, `kernel`, `initrd`, `loader`. */
  readonly name: string
  readonly id: Uint8Array
  readonly length: number
  /** Path on the hypervisor, where it came from one. */
  readonly path?: string | undefined
}

/** What a pull hands to the store to be committed. */
export interface PointContents {
  readonly domain: DomainRef
  /** Wall-clock milliseconds of the instant that the disks show. */
  readonly time: number
  readonly mode: ReadMode
  readonly consistency: Consistency
  readonly disks: readonly PointDisk[]
  readonly skipped: readonly SkippedDisk[]
  readonly blobs: readonly PointBlob[]
  readonly checkpoint?: PointCheckpoint | undefined
  /** Id of the point that unchanged chunks were inherited from. */
  readonly parent?: string | undefined
  readonly warnings: readonly Warning[]
  readonly durationMs: number
  readonly tags: readonly string[]
  readonly comment?: string | undefined
  readonly toolVersion: string
}

/** One committed recovery point. Immutable. */
export interface RecoveryPoint extends PointContents {
  /** 32 lower-case hex characters, random; people see and type the first seven. */
  readonly id: string
  readonly storeId: string
  /** Grows by one per domain; orders points whatever the clock did. */
  readonly sequence: number
  /** Name of the run that made it; recovery tells by it whether a dead run had committed. */
  readonly runId: string
}

/** What may change about a point: kept in a file of its own beside it. */
export interface PointNotes {
  readonly tags: readonly string[]
  /** Never pruned while held; `until` in wall-clock milliseconds, undefined for ever. */
  readonly hold?: { readonly until?: number | undefined; readonly reason?: string | undefined } | undefined
  readonly verified?:
    | { readonly level: string; readonly time: number; readonly ok: boolean; readonly detail?: string | undefined }
    | undefined
}
