import type { DomainDisk } from './domain.js'

/** How a disk can be backed up: LIBVIRT.md §4. */
export type DiskClass =
  | { readonly ability: 'skip'; readonly reason: string }
  /** Its image keeps no dirty bitmap: every pull reads all of it. */
  | { readonly ability: 'full-only'; readonly reason: string }
  | { readonly ability: 'incremental'; readonly reason: undefined }

/** What only the image itself knows. */
export interface ImageFacts {
  /** Of a qcow2, e.g. `1.1`. */
  readonly compat: string | undefined
}

/** What is left out unless it is asked for. */
export interface DiskWishes {
  readonly readOnly: boolean
  readonly shareable: boolean
}

/**
 * Sorts a disk before a session begins: one disk in the checkpoint that cannot
 * be there makes the whole transaction fail. `facts` are undefined where the
 * image could not be asked; a qcow2 then counts as a current one (since 2014).
 */
export function classifyDisk(disk: DomainDisk, wishes: DiskWishes, facts: ImageFacts | undefined): DiskClass {
  const reason = whySkipped(disk, wishes)
  if (reason !== undefined) return { ability: 'skip', reason }
  const lack = whyFullOnly(disk, facts)
  return lack === undefined ? { ability: 'incremental', reason: undefined } : { ability: 'full-only', reason: lack }
}

function whySkipped(disk: DomainDisk, wishes: DiskWishes): string | undefined {
  if (!disk.hasMedium) return 'no medium'
  if (disk.device === 'cdrom' || disk.device === 'floppy') return `${disk.device} drive`
  if (disk.transient) return 'transient: its changes are discarded when the domain stops'
  if (disk.bus === 'sd') return 'libvirt cannot back up disks on an SD bus'
  if (disk.source.kind === 'other') return `libvirt cannot back up disks of type ${disk.source.type}`
  if (disk.readOnly && !wishes.readOnly) return 'read-only'
  // Writes of other domains are neither tracked nor copied before they happen.
  if (disk.shareable && !wishes.shareable) return 'shareable: other domains may write to it during the backup'
  return undefined
}

function whyFullOnly(disk: DomainDisk, facts: ImageFacts | undefined): string | undefined {
  if (disk.device === 'lun') return 'a passed-through LUN keeps no dirty bitmap'
  if (disk.format !== 'qcow2') return `format ${disk.format ?? 'raw'} keeps no dirty bitmap`
  if (facts?.compat === '0.10') return 'qcow2 version 2 keeps no dirty bitmap (qemu-img amend -o compat=1.1)'
  if (disk.readOnly) return 'a read-only disk keeps no dirty bitmap'
  if (disk.shareable) return 'a shareable disk is written to past its dirty bitmap'
  return undefined
}
