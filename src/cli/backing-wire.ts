import { randomBytes } from 'node:crypto'
import { mkdir, rm, stat } from 'node:fs/promises'
import { join, resolve } from 'node:path'

import { disposeAll } from '../base/async.js'
import { BackupError } from '../base/errors.js'
import { contentIdOf, isSameContent } from '../jobs/content-id.js'
import { pointName } from '../jobs/restore-damage.js'
import type { ServedBelow } from '../jobs/serve-job.js'
import type { FoundBacking } from '../jobs/restore-plan.js'
import { describeImage, serveImages } from '../libvirt/backing-images.js'
import { readChain } from '../libvirt/image-chain.js'
import { LOCAL_IMAGES } from '../libvirt/image-tools.js'
import { isSameImage } from '../model/pull-plan.js'
import type { BackingImage, DiskBelow, PointDisk, RecoveryPoint } from '../model/recovery-point.js'
import { formatSize } from '../model/size.js'
import { ExportReader } from '../nbd/export-reader.js'
import type { BackingFile } from './backing-flag.js'
import { runtimeDir } from './places.js'
import type { RunContext } from './session.js'

/** Finds and opens the images that points leave out: a part of wire.ts. */

const NBD = { connections: 4, requestTimeoutMs: 300_000 }

/** What a restore is told about images that points leave out. */
export interface BackingWishes {
  readonly files: readonly BackingFile[]
  /** Images that hold everything, not overlays. */
  readonly flatten: boolean
  /** Take them though they hold something else; undefined where the user cannot say so. */
  readonly trust: boolean | undefined
  /** Do not read files that are what they were, by inode, size and time. */
  readonly isQuick?: boolean | undefined
}

/** Open images by target, until it is disposed. */
export interface OpenBacking extends AsyncDisposable {
  readonly found: ReadonlyMap<string, FoundBacking>
}

/**
 * Finds what the point leaves out of these disks: where `wishes` says, or where
 * it was. What is found must show the same content as then, by size and by a
 * read of all of it; `wishes.trust` leaves that to the user. Images are opened
 * read-only and locked against writers.
 *
 * Rejects with E_NOT_FOUND where there is no image, E_REFUSED where it is
 * another, E_USAGE, E_UNSUPPORTED, E_DOMAIN_BUSY where somebody writes to it,
 * E_TOOL_MISSING, E_IO.
 */
export async function openBacking(
  session: RunContext,
  wanted: { readonly point: RecoveryPoint; readonly disks: readonly PointDisk[]; readonly wishes: BackingWishes },
): Promise<OpenBacking> {
  const { point, disks, wishes } = wanted
  const deep = disks.flatMap(disk => (disk.below === undefined ? [] : [{ target: disk.target, below: disk.below }]))
  refuseIdle(point, deep, wishes)
  const undo: AsyncDisposable[] = []
  try {
    const found = new Map<string, FoundBacking>()
    for (const disk of deep) found.set(disk.target, await openOne(session, undo, { point, wishes, ...disk }))
    return { found, [Symbol.asyncDispose]: () => disposeAll(undo) }
  } catch (error) {
    await disposeAll(undo)
    throw error
  }
}

/**
 * The images that a point leaves out of the disks that are to be served;
 * undefined for none. As openBacking(), but files that are what they were, by
 * inode, size and time, are not read first.
 */
export async function servedBelow(
  session: RunContext,
  point: RecoveryPoint,
  wanted: { readonly disks: readonly string[] | undefined; readonly files: readonly BackingFile[] },
): Promise<ServedBelow | undefined> {
  const { files } = wanted
  const disks = point.disks.filter(({ target }) => wanted.disks?.includes(target) ?? true)
  if (files.length === 0 && disks.every(({ below }) => below === undefined)) return undefined
  const wishes = { files, flatten: false, trust: undefined, isQuick: true }
  const opened = await openBacking(session, { point, disks, wishes })
  const images = new Map([...opened.found].map(([target, found]) => [target, found.images]))
  return { images, [Symbol.asyncDispose]: () => opened[Symbol.asyncDispose]() }
}

interface DeepDisk {
  readonly point: RecoveryPoint
  readonly wishes: BackingWishes
  readonly target: string
  readonly below: DiskBelow
}

async function openOne(session: RunContext, undo: AsyncDisposable[], disk: DeepDisk): Promise<FoundBacking> {
  const { point, target, below, wishes } = disk
  const [recorded] = below.images
  if (recorded === undefined) throw new RangeError('bug: a point leaves out nothing')
  const said = wishes.files.find(file => file.target === target || file.target === undefined)?.path
  const path = resolve(said ?? recorded.path)
  if ((await stat(path).catch(() => undefined)) === undefined) throw notThere(disk, path, said !== undefined)
  const images: BackingImage[] = []
  for (const image of await readChain(LOCAL_IMAGES, { path, format: recorded.format }, session.signal))
    images.push(await describeImage(image))

  const folder = join(runtimeDir(), `backing-${randomBytes(6).toString('hex')}`)
  await mkdir(folder, { recursive: true, mode: 0o700 })
  undo.push({ [Symbol.asyncDispose]: () => rm(folder, { recursive: true, force: true }) })
  const served = await serveImages(new Map([[target, images]]), join(folder, 'nbd.sock'))
  undo.push(served)
  const reader = await ExportReader.open(served.address, { ...NBD, exportName: target }, session.signal)
  undo.push(reader)

  const notes = said === undefined ? [`The image below it was found where it was: ${path}.`] : []
  const isSame = images.length === below.images.length && images.every((one, i) => isSameImage(one, below.images[i]))
  const isProved = wishes.isQuick === true && isSame
  const why = isProved ? undefined : await differenceOf(session, { reader, recorded, disk })
  if (why !== undefined && wishes.trust !== true) {
    throw otherImage({ name: pointName(point), target, path, trust: wishes.trust }, why)
  }
  if (why !== undefined) notes.push(`${path} is not what the point leaves out, and was taken all the same: ${why}.`)
  return { path, format: recorded.format, images: reader, notes }
}

/** What makes it another image than the recorded one; undefined where it is that one. */
async function differenceOf(
  { signal, progress }: RunContext,
  what: { readonly reader: ExportReader; readonly recorded: BackingImage; readonly disk: DeepDisk },
): Promise<string | undefined> {
  const { reader, recorded, disk } = what
  if (reader.size !== recorded.virtualSize) {
    return `it shows ${formatSize(reader.size)} (${reader.size} bytes), not ${recorded.virtualSize} bytes`
  }
  progress.report({ kind: 'phase', subject: disk.point.domain.name, phase: 'compare the image below' })
  const contentId = await contentIdOf(reader, () => undefined, signal)
  return isSameContent(contentId, disk.below.contentId) ? undefined : 'it holds something else'
}

function refuseIdle(
  point: RecoveryPoint,
  deep: readonly { readonly target: string }[],
  { files }: BackingWishes,
): void {
  const idle = files.find(({ target }) => target !== undefined && !deep.some(disk => disk.target === target))
  if (idle !== undefined || (deep.length === 0 && files.length > 0)) {
    throw new BackupError('E_USAGE', `${pointName(point)} leaves out nothing of ${idle?.target ?? 'its disks'}`, {
      hints: [`see what it leaves out:   virtvault show ${pointName(point)}`],
    })
  }
  if (deep.length > 1 && files.some(({ target }) => target === undefined)) {
    const targets = deep.map(({ target }) => target)
    throw new BackupError('E_USAGE', `which of the disks ${targets.join(', ')} lies on it was not said`, {
      hints: [`write --backing ${targets[0] ?? 'vda'}=FILE`],
    })
  }
}

function notThere({ point, target, below }: DeepDisk, path: string, isSaid: boolean): BackupError {
  const images = below.images.map(image => `${image.path} (${image.format}, ${formatSize(image.virtualSize)})`)
  return new BackupError(
    'E_NOT_FOUND',
    isSaid ? `there is no ${path}` : `${pointName(point)} leaves out an image below disk ${target} that is not here`,
    {
      why: `it was ${images.join(', which lies on ')}`,
      hints: [
        `say where it is now:   --backing ${target}=FILE`,
        'or leave the disk out, naming the others with --disk',
      ],
    },
  )
}

function otherImage(
  disk: {
    readonly name: string
    readonly target: string
    readonly path: string
    readonly trust: boolean | undefined
  },
  why: string,
): BackupError {
  return new BackupError('E_REFUSED', `${disk.path} is not the image that ${disk.name} leaves out of ${disk.target}`, {
    why: `${why}; a disk on another image is damaged beyond what its guest would notice`,
    hints: [
      `name the right one:   --backing ${disk.target}=FILE`,
      disk.trust === undefined
        ? 'only restore takes another one, at the guest’s risk:   virtvault restore --trust-backing'
        : 'or take this one all the same, at the guest’s risk:   --trust-backing',
    ],
  })
}
