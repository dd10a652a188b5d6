import { BackupError } from '../base/errors.js'
import type { DomainDisk, ImageSource } from '../model/domain.js'
import type { DomainRef } from '../model/recovery-point.js'
import type { VirtDomainInfo } from '../native/virt.js'
import { parseDomainXml } from './domain-xml.js'
import { type Hypervisor, libvirtFailure } from './hypervisor.js'
import { type ChainImage, readChain } from './image-chain.js'
import type { ImageTools } from './image-tools.js'
import { networkAccess } from './network-images.js'

/** virDomainState and the reasons of VIR_DOMAIN_SHUTOFF. */
const STATE_SHUTOFF = 5
const STATE_CRASHED = 6
const OFF_BY_FORCE: ReadonlyMap<number, string> = new Map([
  [2, 'it was switched off, not shut down'],
  [3, 'its QEMU crashed'],
  [4, 'it was migrated away'],
  [5, 'it is saved: what its memory held is not on its disks'],
  [6, 'its last start failed'],
])

/** A domain that is off: what its disks are, and how it came to be off. */
export interface OffDomain {
  readonly disks: readonly DomainDisk[]
  /** Why its disks are only as after a power cut; undefined where it was shut down in order. */
  readonly untidy: string | undefined
}

/** Whether the domain is off now. Rejects with E_NOT_FOUND. */
export async function isOff(hypervisor: Hypervisor, domain: DomainRef): Promise<boolean> {
  return isStopped(await hypervisor.lookup(domain.uuid))
}

/** A domain whose guest has crashed and that is preserved (`on_crash`) still has its QEMU, and its images open. */
function isStopped({ state, id }: VirtDomainInfo): boolean {
  return state === STATE_SHUTOFF || (state === STATE_CRASHED && id < 0)
}

/** Rejects with E_DOMAIN_STATE where it is not off (any more). */
export async function describeOff(hypervisor: Hypervisor, domain: DomainRef): Promise<OffDomain> {
  const info = await hypervisor.lookup(domain.uuid)
  if (!isStopped(info)) throw startedMeanwhile(domain)
  const xml = await hypervisor.call(connection => connection.domainXml(domain.uuid, { inactive: true }))
  const untidy = info.hasManagedSave ? OFF_BY_FORCE.get(5) : OFF_BY_FORCE.get(info.reason)
  return { disks: parseDomainXml(xml).disks, untidy }
}

/** What opens the images where they are. Throws E_DOMAIN_STATE where there is only libvirt to talk to. */
export function imageToolsOf({ files }: Pick<Hypervisor, 'files'>, domain: DomainRef): ImageTools {
  if (files.images !== undefined) return files.images
  throw new BackupError(
    'E_DOMAIN_STATE',
    `${domain.name} is shut off, and nobody opens its images on the other machine`,
    {
      why: 'a domain that does not run is read from its images, which libvirt gives nobody',
      hints: [
        'connect through ssh:   -c qemu+ssh://root@HOST/system',
        'or let it be started, paused, for the pull:   --start-paused',
        'or run virtvault on that machine',
      ],
    },
  )
}

export function startedMeanwhile(domain: DomainRef): BackupError {
  return new BackupError('E_SOURCE_GONE', `${domain.name} was started while it was about to be read as shut off`, {
    why: 'its disks may have changed under the reading; nothing of it is kept',
    hints: ['pull it again: a running domain is backed up while it runs'],
  })
}

/** Where a disk lies on the machine of its hypervisor; undefined for what only QEMU can reach. Rejects with E_NOT_FOUND for a volume that is gone. */
export async function localPath(hypervisor: Hypervisor, source: ImageSource): Promise<string | undefined> {
  if (source.kind === 'file' || source.kind === 'block') return source.path
  if (source.kind !== 'volume') return undefined
  const path = await hypervisor.call(connection => connection.volumePath(source.pool, source.volume))
  // A volume of a network pool has a name, not a path.
  return path.startsWith('/') ? path : undefined
}

/** Why a disk cannot be read while its domain is off; undefined where it can. */
export async function whyUnreadable(hypervisor: Hypervisor, disk: DomainDisk): Promise<string | undefined> {
  const { source } = disk
  if (source.kind === 'network') {
    const { obstacle } = await networkAccess(hypervisor, source, disk)
    if (obstacle !== undefined) return obstacle
  }
  return (await keyOf(hypervisor, disk)).obstacle
}

type DiskKey =
  | { readonly key: Uint8Array | undefined; readonly obstacle: undefined }
  | { readonly key: undefined; readonly obstacle: string }

/** What opens an encrypted disk. libvirt gives away the secrets that are not private. */
async function keyOf(hypervisor: Hypervisor, { encryption }: DomainDisk): Promise<DiskKey> {
  if (encryption === undefined) return { key: undefined, obstacle: undefined }
  const { format, secret } = encryption
  if (format !== 'luks' || secret === undefined)
    return { key: undefined, obstacle: `encrypted (${format}), which only its running domain can open` }
  try {
    return { key: await hypervisor.call(connection => connection.secretValue(secret)), obstacle: undefined }
  } catch (error) {
    if (libvirtFailure(error) === undefined) throw error
    return {
      key: undefined,
      obstacle: `encrypted, and libvirt keeps its key to itself (secret ${secret} is private, or empty)`,
    }
  }
}

/**
 * The images of a disk, top first. Rejects with E_NO_DISK for one that cannot
 * be read while its domain is off, and as imageToolsOf() and readChain().
 */
export async function chainOf(
  hypervisor: Hypervisor,
  of: { readonly disk: DomainDisk; readonly tools: ImageTools },
  signal: AbortSignal,
): Promise<readonly ChainImage[]> {
  const { disk, tools } = of
  const reason = await whyUnreadable(hypervisor, disk)
  const { source } = disk
  if (source.kind === 'network') {
    const { image: network } = await networkAccess(hypervisor, source, disk)
    if (network !== undefined) return [{ path: source.uri, network, isBlockDevice: false, format: 'raw', bitmaps: [] }]
  }
  const path = await localPath(hypervisor, source)
  if (path === undefined || reason !== undefined) {
    const why = reason ?? 'it has no local image'
    throw new BackupError('E_NO_DISK', `disk ${disk.target} cannot be read while its domain is off`, { why })
  }
  const chain = await readChain(tools, { path, format: disk.format ?? 'raw' }, signal)
  const { key } = await keyOf(hypervisor, disk)
  return key === undefined ? chain : chain.map((image, at) => (at === 0 ? { ...image, key } : image))
}

/** The chains of all qcow2 disks that can be looked at, by target; of the others, and of all where nobody opens images, nothing is known. Rejects with E_UNREACHABLE. */
export async function bitmapChains(
  hypervisor: Hypervisor,
  disks: readonly DomainDisk[],
  signal: AbortSignal,
): Promise<ReadonlyMap<string, readonly ChainImage[]>> {
  const chains = new Map<string, readonly ChainImage[]>()
  const { images: tools } = hypervisor.files
  if (tools === undefined) return chains
  for (const disk of disks) {
    try {
      if (disk.format !== 'qcow2' || (await whyUnreadable(hypervisor, disk)) !== undefined) continue
      chains.set(disk.target, await chainOf(hypervisor, { disk, tools }, signal))
    } catch (error) {
      signal.throwIfAborted()
      // An image that is gone, a pool that is not active: then there is no bitmap to be found either.
      const isKnown =
        error instanceof BackupError ? error.code !== 'E_UNREACHABLE' : libvirtFailure(error) !== undefined
      if (!isKnown) throw error
    }
  }
  return chains
}

/**
 * I7: whether what was written since `name` is known: its bitmap is sound in
 * the top image and in the images below it without a gap. A bitmap further
 * down, or none at the top, leaves writes unrecorded.
 */
export function isChainSound(chain: readonly ChainImage[], name: string): boolean {
  return soundDepth(chain, name) > 0
}

/** How many images, from the top, hold the bitmap soundly; 0 where it cannot be used. */
export function soundDepth(chain: readonly ChainImage[], name: string): number {
  const has = chain.map(({ bitmaps }) => bitmaps.find(bitmap => bitmap.name === name))
  const first = has.indexOf(undefined)
  const depth = first < 0 ? has.length : first
  const isWhole = has.slice(depth).every(bitmap => bitmap === undefined)
  return isWhole && has.slice(0, depth).every(bitmap => bitmap?.isSound === true) ? depth : 0
}
