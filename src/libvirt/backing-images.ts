import { realpath, stat } from 'node:fs/promises'
import { dirname, join } from 'node:path'

import { BackupError, messageOf } from '../base/errors.js'
import { describeSource, type DomainDisk } from '../model/domain.js'
import { isLocalUri } from '../model/libvirt-uri.js'
import { isSameImage, type SurveyedBacking } from '../model/pull-plan.js'
import type { BackingImage, DomainRef } from '../model/recovery-point.js'
import type { Hypervisor } from './hypervisor.js'
import { readChain } from './image-chain.js'
import { inUse, LOCAL_IMAGES } from './image-tools.js'
import { removeLeftovers } from './local-files.js'
import { serveDisks } from './offline-exports.js'
import { localPath } from './offline-images.js'
import type { RunPlaces } from './run-places.js'
import type { SessionAddress } from './session-types.js'

/** Beside the socket of the backup itself. */
export const BELOW_SOCKET = 'below.sock'

/** Images of backing chains, served read-only; disposing closes them. */
export interface ServedImages extends AsyncDisposable {
  readonly address: SessionAddress
  readonly exports: ReadonlyMap<string, { readonly exportName: string; readonly size: number }>
  /** Rejects with E_SOURCE_GONE where a file has changed since the survey. */
  check(): Promise<void>
}

/**
 * What each of these disks lies on, as the images themselves say it and, of a
 * domain that runs, libvirt as well: where the two do not agree nothing is
 * known. Rejects with E_NOT_FOUND, E_INTERRUPTED.
 */
export async function backingOf(
  hypervisor: Hypervisor,
  { domain, targets }: { readonly domain: DomainRef; readonly targets: readonly string[] },
  signal: AbortSignal,
): Promise<ReadonlyMap<string, SurveyedBacking>> {
  const { disks } = await hypervisor.describe(domain.uuid)
  const found = new Map<string, SurveyedBacking>()
  for (const disk of disks.filter(({ target }) => targets.includes(target))) {
    try {
      found.set(disk.target, await backingOfDisk(hypervisor, disk, signal))
    } catch (error) {
      signal.throwIfAborted()
      const why =
        error instanceof BackupError ? [error.message, error.why].filter(Boolean).join(': ') : messageOf(error)
      found.set(disk.target, { kind: 'unknown', why })
    }
  }
  return found
}

async function backingOfDisk(hypervisor: Hypervisor, disk: DomainDisk, signal: AbortSignal): Promise<SurveyedBacking> {
  if (!isLocalUri(hypervisor.uri)) return { kind: 'unknown', why: 'they are on another machine' }
  const path = await localPath(hypervisor, disk.source)
  if (path === undefined) return { kind: 'unknown', why: 'the disk has no local image' }
  const [, ...below] = await readChain(LOCAL_IMAGES, { path, format: disk.format ?? 'raw' }, signal)
  const images: BackingImage[] = []
  for (const image of below) images.push(await describeImage(image))
  const told = await Promise.all(disk.backingChain.map(({ source }) => resolved(describeSource(source))))
  const said = await Promise.all(images.map(image => resolved(image.path)))
  if (told.length > 0 && told.join('\n') !== said.join('\n')) {
    return { kind: 'unknown', why: `libvirt says that they are ${told.join(', ')}, the image ${said.join(', ')}` }
  }
  return { kind: 'images', images }
}

/** A file with what tells it from any other, and whether it was written to. */
export async function describeImage(image: {
  readonly path: string
  readonly format: string
  readonly size?: number | undefined
}): Promise<BackingImage> {
  const { path, format, size } = image
  if (size === undefined) throw new BackupError('E_IO', `nobody says how large ${path} is`)
  const file = await stat(path)
  const isFile = file.isFile()
  return {
    path,
    format,
    virtualSize: size,
    fileBytes: isFile ? file.size : undefined,
    modified: isFile ? Math.floor(file.mtimeMs) : undefined,
    identity: isFile ? `${file.dev}:${file.ino}` : undefined,
  }
}

async function resolved(path: string): Promise<string> {
  return await realpath(path).catch(() => path)
}

/** As PullHypervisor.openBelow(). */
export async function serveBelow(
  images: ReadonlyMap<string, readonly BackingImage[]>,
  places: RunPlaces,
): Promise<ServedImages> {
  if (places.tcp !== undefined) {
    throw new BackupError('E_UNSUPPORTED', 'images below those of another machine cannot be left out')
  }
  return await serveImages(images, join(dirname(places.socket), BELOW_SOCKET))
}

/** Serves chains, each under its target's name, on a socket that must not exist. Rejects as PullHypervisor.openBelow(). */
export async function serveImages(
  images: ReadonlyMap<string, readonly BackingImage[]>,
  socket: string,
): Promise<ServedImages> {
  const all = [...images.values()].flat()
  const chains = [...images].map(async ([target, chain]) => ({
    target,
    chain: await Promise.all(chain.map(chainImage)),
    base: undefined,
    depth: 0,
  }))
  const disks = await Promise.all(chains)
  const daemon = await LOCAL_IMAGES.startDaemon()
  const close = async () => {
    await daemon[Symbol.asyncDispose]()
    await removeLeftovers([socket])
  }
  try {
    const served = await serveDisks(daemon, socket, disks)
    // Locked now: what the survey saw is what is read.
    await checkUnchanged(all)
    const exports = new Map(served.map(({ exportName, size }) => [exportName, { exportName, size }]))
    return { address: { socket }, exports, check: () => checkUnchanged(all), [Symbol.asyncDispose]: close }
  } catch (error) {
    await close()
    const paths = [...new Set(all.map(({ path }) => path))].join(', ')
    throw inUse(paths, messageOf(error), error) ?? error
  }
}

async function chainImage({ path, format }: BackingImage) {
  const file = await stat(path).catch((error: unknown) => {
    throw new BackupError('E_IO', `${path} cannot be looked at: ${messageOf(error)}`, { cause: error })
  })
  return { path, format, isBlockDevice: file.isBlockDevice(), bitmaps: [] }
}

async function checkUnchanged(images: readonly BackingImage[]): Promise<void> {
  for (const image of images) {
    if (image.identity === undefined) continue
    const now = await describeImage({ ...image, size: image.virtualSize }).catch(() => undefined)
    if (isSameImage(image, now)) continue
    throw new BackupError('E_SOURCE_GONE', `${image.path} has changed while it was compared with the disk above it`, {
      why: 'an image that others lie on must not be written to; nothing of this pull is kept',
      hints: ['pull it again when nobody writes to it any more'],
    })
  }
}
