import { BackupError } from '../base/errors.js'
import { formatSize } from './size.js'

/** A file system, or what else is known to be in a partition. Types and labels are the guest's words. */
export interface FoundFileSystem {
  readonly place: FileSystemPlace
  /** As libblkid names it (`ext4`, `LVM2_member`); undefined where nothing was recognised. */
  readonly type: string | undefined
  readonly label: string | undefined
  /** undefined for a volume: nobody asked. */
  readonly size: number | undefined
}

export type FileSystemPlace =
  /** The whole disk, without a partition table. */
  | { readonly kind: 'disk' }
  | { readonly kind: 'partition'; readonly number: number; readonly offset: number; readonly length: number }
  /** A logical volume or a RAID, `vg/lv` or `md0`, on one disk or several. */
  | { readonly kind: 'volume'; readonly name: string }

export interface FileSystemWish {
  readonly partition?: number | undefined
  readonly volume?: string | undefined
}

/** What has a type and still holds no files itself. */
const NOT_A_FILE_SYSTEM: ReadonlyMap<string, string> = new Map([
  ['LVM2_member', 'it belongs to LVM: name a volume with --volume VG/LV'],
  ['linux_raid_member', 'it belongs to a RAID: name that with --volume md0'],
  ['crypto_LUKS', 'it is encrypted by the guest: export it and open it with cryptsetup'],
  ['BitLocker', 'it is encrypted by the guest'],
  ['swap', 'it is swap space'],
])

/** Whether volumes may be behind it. */
export function holdsVolumes(type: string | undefined): boolean {
  return type === 'LVM2_member' || type === 'linux_raid_member'
}

export function isFileSystem(found: FoundFileSystem): boolean {
  return found.type !== undefined && !NOT_A_FILE_SYSTEM.has(found.type)
}

/**
 * The one file system that is meant: the one asked for, or the only one there
 * is. Throws E_USAGE where several could be meant, E_NOT_FOUND, E_UNSUPPORTED
 * for one that holds no files.
 */
export function chooseFileSystem(found: readonly FoundFileSystem[], wish: FileSystemWish): FoundFileSystem {
  const asked = isAskedFor(wish)
  const candidates = found.filter(asked ?? isFileSystem)
  const [only] = candidates
  if (only === undefined) {
    throw new BackupError(
      'E_NOT_FOUND',
      asked === undefined ? 'no file system was found' : `there is no ${named(wish)}`,
      {
        hints: choices(found),
      },
    )
  }
  if (candidates.length > 1) {
    throw new BackupError('E_USAGE', `there are ${candidates.length} file systems`, { hints: choices(candidates) })
  }
  if (isFileSystem(only)) return only
  throw new BackupError('E_UNSUPPORTED', `${placeName(only.place)} holds no files`, {
    why: only.type === undefined ? 'nothing known was recognised in it' : NOT_A_FILE_SYSTEM.get(only.type),
    hints: choices(found.filter(isFileSystem)),
  })
}

/** `partition 2`, `volume vg/root`, `the whole disk`. */
export function placeName(place: FileSystemPlace): string {
  switch (place.kind) {
    case 'disk':
      return 'the whole disk'
    case 'partition':
      return `partition ${place.number}`
    case 'volume':
      return `volume ${place.name}`
  }
}

function isAskedFor({ partition, volume }: FileSystemWish): ((found: FoundFileSystem) => boolean) | undefined {
  if (partition !== undefined) return ({ place }) => place.kind === 'partition' && place.number === partition
  if (volume !== undefined) return ({ place }) => place.kind === 'volume' && place.name === volume
  return undefined
}

function named({ partition, volume }: FileSystemWish): string {
  return partition === undefined ? `volume ${volume ?? ''}` : `partition ${partition}`
}

function choices(found: readonly FoundFileSystem[]): string[] {
  return found.map(({ place, type, size, label }) => {
    const facts = [
      type ?? 'unknown',
      ...(size === undefined ? [] : [formatSize(size)]),
      ...(label === undefined ? [] : [label]),
    ]
    const flag =
      place.kind === 'partition'
        ? `--partition ${place.number}`
        : place.kind === 'volume'
          ? `--volume ${place.name}`
          : 'the whole disk'
    return `${flag}  (${facts.join(', ')})`
  })
}
