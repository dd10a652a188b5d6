import { BackupError, type Warning } from '../base/errors.js'
import type { BackingImage, DiskBelow, DiskSource, DomainRef, RecoveryPoint, SkippedDisk } from './recovery-point.js'

/** A disk of the domain as the pull finds it. */
export interface SurveyedDisk {
  readonly target: string
  readonly source: DiskSource
  /**
   * skip: cannot or should not be backed up. full-only: its format keeps no
   * bitmap, every pull reads all of it. incremental: qcow2 with bitmaps.
   */
  readonly ability: 'skip' | 'full-only' | 'incremental'
  /** Why it is not `incremental`. */
  readonly reason: string | undefined
  /** What it lies on, the nearest first, or why that is not known; undefined where nobody has looked. */
  readonly backing?: SurveyedBacking | undefined
}

export type SurveyedBacking =
  | { readonly kind: 'images'; readonly images: readonly BackingImage[] }
  | { readonly kind: 'unknown'; readonly why: string }

export interface PullWish {
  /** auto: what is possible. full: read everything, and check the dirty bitmap by it. incremental: refuse to read a whole disk that had a base. */
  readonly mode: 'auto' | 'full' | 'incremental'
  /** Targets to back up; empty for all. */
  readonly only: readonly string[]
  readonly except: readonly string[]
  /** Images of each backing chain that belong into the point: 0 all, N the topmost, -N all but the N lowest. */
  readonly depth?: number | undefined
}

/** Whether libvirt still has the checkpoint of the newest point, and for which disks its bitmap is sound. */
export interface BaseHealth {
  readonly known: boolean
  readonly soundDisks: ReadonlySet<string>
}

export interface PlannedDisk {
  readonly target: string
  readonly source: DiskSource
  /** Checkpoint to start from; undefined reads everything. */
  readonly base: string | undefined
  /** Reads everything although there is a base, to find out what its dirty bitmap has missed. */
  readonly isAudit: boolean
  /** Takes part in the new checkpoint. */
  readonly tracked: boolean
  /** Images that are left out, the topmost first. */
  readonly below?: readonly BackingImage[] | undefined
}

export interface PullPlan {
  readonly disks: readonly PlannedDisk[]
  readonly skipped: readonly SkippedDisk[]
  readonly warnings: readonly Warning[]
}

/**
 * Decides disk by disk what a pull reads (I7): from the checkpoint named in
 * the newest recovery point of this store where that is sound, everything
 * otherwise, with a warning that says why.
 *
 * Throws E_NO_DISK where nothing is left to back up, E_NOT_FOUND for a disk
 * that the domain does not have, E_CHAIN_BROKEN where `incremental` was asked
 * for and a base is gone.
 */
export function planPull(
  domain: DomainRef,
  surveyed: readonly SurveyedDisk[],
  wish: PullWish,
  latest: RecoveryPoint | undefined,
  health: BaseHealth,
): PullPlan {
  refuseUnknown(domain, surveyed, wish)
  const disks: PlannedDisk[] = []
  const skipped: SkippedDisk[] = []
  const warnings: Warning[] = []
  const broken: string[] = []

  for (const disk of surveyed) {
    const left = leftOut(disk, wish)
    if (left !== undefined) {
      skipped.push({ target: disk.target, reason: left.reason })
      if (left.surprising) warnings.push({ code: 'W_DISK_SKIPPED', message: `${disk.target}: ${left.reason}` })
      continue
    }
    const below = imagesLeftOut(domain, disk, wish.depth ?? 0)
    const { base, warning: reason } = chooseBase({ ...disk, below }, latest, health)
    // Whoever asks for everything need not be told why everything is read.
    const warning = wish.mode === 'full' ? undefined : reason
    if (warning !== undefined) warnings.push(warning)
    if (warning?.code === 'W_CHAIN' || warning?.code === 'W_DISK_CHANGED') broken.push(warning.message)
    const isAudit = base !== undefined && wish.mode === 'full'
    const tracked = disk.ability === 'incremental'
    const { target, source } = disk
    disks.push({ target, source, base, isAudit, tracked, ...(below === undefined ? {} : { below }) })
  }

  if (disks.length === 0) {
    throw new BackupError('E_NO_DISK', `${domain.name} has no disk that can be backed up`, {
      why: skipped.map(({ target, reason }) => `${target}: ${reason}`).join('; ') || 'it has no disks',
      hints: ['see its disks:   virsh domblklist --details ' + domain.name],
    })
  }
  if (wish.mode === 'incremental' && broken.length > 0) {
    throw new BackupError('E_CHAIN_BROKEN', `${domain.name} cannot be pulled incrementally`, {
      why: broken.join('; '),
      hints: ['read everything once, storing only what changed:   --mode auto'],
    })
  }
  return { disks, skipped, warnings }
}

function refuseUnknown(domain: DomainRef, surveyed: readonly SurveyedDisk[], wish: PullWish): void {
  const known = surveyed.map(disk => disk.target)
  const unknown = [...wish.only, ...wish.except].filter(target => !known.includes(target))
  if (unknown.length === 0) return
  throw new BackupError('E_NOT_FOUND', `${domain.name} has no disk ${unknown.join(', ')}`, {
    why: known.length === 0 ? 'it has no disks' : `its disks are ${known.join(', ')}`,
  })
}

/**
 * The images of the disk that the point leaves out; undefined for none. The
 * disk's own image, the topmost, is never left out.
 */
function imagesLeftOut(
  domain: DomainRef,
  { target, source, backing }: SurveyedDisk,
  depth: number,
): readonly BackingImage[] | undefined {
  if (depth === 0) return undefined
  const count = backing?.kind === 'images' ? backing.images.length : (source.backingFiles?.length ?? 0)
  const taken = depth > 0 ? depth : Math.max(1, 1 + count + depth)
  if (taken > count) return undefined
  if (backing?.kind === 'images') return backing.images.slice(taken - 1)
  throw new BackupError('E_UNSUPPORTED', `${domain.name} cannot be pulled with a depth of ${depth}`, {
    why: `the images below disk ${target} cannot be compared with it: ${backing?.why ?? 'they are not known'}`,
    hints: [
      'pull it with a depth of 0: what the images share is stored once, for all domains on them',
      `or leave the disk out:   --exclude-disk ${target}`,
    ],
  })
}

function leftOut(disk: SurveyedDisk, wish: PullWish): { reason: string; surprising: boolean } | undefined {
  if (wish.only.length > 0 && !wish.only.includes(disk.target)) return { reason: 'not asked for', surprising: false }
  if (wish.except.includes(disk.target)) return { reason: 'excluded', surprising: false }
  if (disk.ability !== 'skip') return undefined
  // Asked for by name, or a disk that people think of as one: a CD-ROM is not.
  const surprising = wish.only.includes(disk.target) || !/cdrom|floppy|medium/i.test(disk.reason ?? '')
  return { reason: disk.reason ?? 'cannot be backed up', surprising }
}

function chooseBase(
  disk: SurveyedDisk & { readonly below: readonly BackingImage[] | undefined },
  latest: RecoveryPoint | undefined,
  health: BaseHealth,
): { base: string | undefined; warning: Warning | undefined } {
  const full = (code: Warning['code'], why: string) => ({
    base: undefined,
    warning: { code, message: `${disk.target}: ${why}: reading everything, storing only what changed` },
  })

  if (latest === undefined) return { base: undefined, warning: undefined }
  if (disk.ability === 'full-only') {
    return { base: undefined, warning: { code: 'W_FULL_ONLY', message: `${disk.target}: ${disk.reason ?? ''}` } }
  }
  const before = latest.disks.find(({ target }) => target === disk.target)
  if (before === undefined) return full('W_NEW_DISK', 'new since the last recovery point')
  const checkpoint = latest.checkpoint
  // The last pull could not make a checkpoint (it was raw then, say): nothing was lost.
  if (checkpoint?.disks.includes(disk.target) !== true)
    return full('W_CHAIN', 'the last recovery point has no checkpoint for it')
  const change = sourceChange(before.source, disk.source)
  if (change !== undefined) return full('W_DISK_CHANGED', change)
  const below = belowChange(before.below, disk.below)
  if (below !== undefined) return full('W_DISK_CHANGED', below)
  if (!health.known) return full('W_CHAIN', 'its checkpoint is gone from libvirt')
  if (!health.soundDisks.has(disk.target)) return full('W_CHAIN', 'its dirty bitmap is missing or broken')
  return { base: checkpoint.name, warning: undefined }
}

/**
 * What tells that a target shows another image than before. A clone carries
 * the bitmaps of its original, so libvirt would not notice, and an image below
 * can be exchanged past every bitmap. A snapshot made or committed since is no
 * change: its bitmaps span the chain, whose lower images are the same.
 */
function sourceChange(before: DiskSource, now: DiskSource): string | undefined {
  if (before.format !== now.format) return `its format changed from ${before.format} to ${now.format}`
  if (before.dataFile !== undefined && now.dataFile !== undefined && before.dataFile !== now.dataFile)
    return `its data file is now ${now.dataFile}`
  const [was, is] = [layersOf(before), layersOf(now)]
  if (before.path === now.path) {
    const known = before.identity !== undefined && now.identity !== undefined
    if (known && before.identity !== now.identity) return 'its image was replaced'
    return isSameChain(was, is) ? undefined : BELOW_CHANGED
  }
  const snapshotOf = is.findIndex(({ path }) => path === before.path)
  if (snapshotOf > 0) return isSameChain(was, is.slice(snapshotOf)) ? undefined : BELOW_CHANGED
  const committedTo = was.findIndex(({ path }) => path === now.path)
  if (committedTo > 0) return isSameChain(was.slice(committedTo), is) ? undefined : BELOW_CHANGED
  return `its image is now ${now.path}`
}

const BELOW_CHANGED = 'the images below its own are not those of the last recovery point'

interface Layer {
  readonly path: string
  readonly identity: string | undefined
  /** Of the lowest that is known: whether there are others below it, nobody could tell. */
  readonly isUnsure?: true
}

/** Top first. */
function layersOf({ path, identity, backingFiles, backingIdentities }: DiskSource): readonly Layer[] {
  if (backingFiles === undefined) return [{ path, identity, isUnsure: true }]
  const below = backingFiles.map((file, i) => {
    const known = backingIdentities?.[i]
    return { path: file, identity: known === '' ? undefined : known }
  })
  return [{ path, identity }, ...below]
}

/** Whether it is the same images on top of one another, as far as they are known. */
function isSameChain(a: readonly Layer[], b: readonly Layer[]): boolean {
  if ([...a, ...b].some(({ isUnsure }) => isUnsure)) return true
  return a.length === b.length && a.every((layer, i) => isSameLayer(layer, b[i]))
}

function isSameLayer(a: Layer, b: Layer | undefined): boolean {
  if (b === undefined) return false
  if (a.identity !== undefined && b.identity !== undefined) return a.identity === b.identity
  // libvirt and qemu-img have names of their own for what is no file.
  return !a.path.startsWith('/') || !b.path.startsWith('/') || a.path === b.path
}

/** What tells that chunks that were as the images below may now be otherwise. */
function belowChange(before: DiskBelow | undefined, now: readonly BackingImage[] | undefined): string | undefined {
  const was = before?.images ?? []
  const is = now ?? []
  if (was.length !== is.length || was.some(({ path }, i) => path !== is[i]?.path)) {
    const named = (images: readonly BackingImage[]) => images.map(({ path }) => path).join(', ') || 'nothing'
    return `the last recovery point leaves out ${named(was)}, and this one ${named(is)}`
  }
  const other = is.find((image, i) => !isSameImage(image, was[i]))
  if (other === undefined) return undefined
  return other.identity === undefined
    ? `nothing tells whether ${other.path} below it has changed, since it is no file`
    : `${other.path} below it has changed since the last recovery point`
}

/** Whether an image is as it was, as far as its file tells. What is no file tells nothing. */
export function isSameImage(a: BackingImage, b: BackingImage | undefined): boolean {
  return (
    a.identity !== undefined &&
    a.identity === b?.identity &&
    a.path === b.path &&
    a.format === b.format &&
    a.virtualSize === b.virtualSize &&
    a.fileBytes === b.fileBytes &&
    a.modified === b.modified
  )
}
