import { BackupError } from '../base/errors.js'
import type { ChainImage } from './image-chain.js'
import type { StorageDaemon } from './storage-daemon.js'

/** The formats whose images can lie on others; they must be told where the chain ends. */
const WITH_BACKING: readonly string[] = ['qcow2', 'qed', 'vmdk']
const MAX_CONNECTIONS = 100

/** A disk to be served, with what is known of its images. */
export interface OfflineDisk {
  readonly target: string
  readonly chain: readonly ChainImage[]
  /** The bitmap to be served, and in how many images from the top it lies. */
  readonly base: string | undefined
  readonly depth: number
}

export interface ServedDisk {
  readonly exportName: string
  /** Of the meta context; undefined where the base turned out broken once the images were locked. */
  readonly bitmap: string | undefined
  readonly size: number
}

/** Opens the images, which locks them, and serves each disk on one socket. Rejects with E_DOMAIN_BUSY, E_IO. */
export async function serveDisks(
  daemon: StorageDaemon,
  socket: string,
  disks: readonly OfflineDisk[],
): Promise<readonly ServedDisk[]> {
  const served: ServedDisk[] = []
  for (const [i, disk] of disks.entries()) await daemon.execute('blockdev-add', lockedNode(disk.chain, `d${i}`))
  const nodes = await nodesOf(daemon)
  await daemon.execute('nbd-server-start', {
    addr: { type: 'unix', data: { path: socket } },
    'max-connections': MAX_CONNECTIONS,
  })
  for (const [i, disk] of disks.entries()) {
    const bitmap = await unionBitmap(daemon, disk, { prefix: `d${i}`, nodes })
    await daemon.execute('block-export-add', {
      type: 'nbd',
      id: `export-${i}`,
      'node-name': `d${i}`,
      name: disk.target,
      writable: false,
      ...(bitmap === undefined ? {} : { bitmaps: [{ node: `d${i}-0`, name: bitmap }] }),
    })
    served.push({ exportName: disk.target, bitmap, size: nodes.get(`d${i}-0`)?.size ?? 0 })
  }
  return served
}

/**
 * The chain, explicitly, below a node that shares neither writing nor resizing:
 * a plain reader of a raw image would leave it open to a domain that starts
 * (seen with QEMU 7.2: it did start). blkdebug is what can ask for that lock.
 */
function lockedNode(chain: readonly ChainImage[], prefix: string): Readonly<Record<string, unknown>> {
  return {
    driver: 'blkdebug',
    'node-name': prefix,
    'read-only': true,
    'unshare-child-perms': ['write', 'resize'],
    image: imageNode(chain, prefix, 0),
  }
}

function imageNode(chain: readonly ChainImage[], prefix: string, at: number): Readonly<Record<string, unknown>> | null {
  const image = chain[at]
  if (image === undefined) return null
  return {
    driver: image.format,
    'node-name': `${prefix}-${at}`,
    'read-only': true,
    file: { driver: image.isBlockDevice ? 'host_device' : 'file', filename: image.path, 'read-only': true },
    ...(WITH_BACKING.includes(image.format) ? { backing: imageNode(chain, prefix, at + 1) } : {}),
  }
}

/**
 * Everything written since the base, whichever image of the chain recorded it,
 * as one bitmap in memory. What counts is what QEMU says of the bitmaps now
 * that nobody else can change them.
 */
async function unionBitmap(
  daemon: StorageDaemon,
  disk: OfflineDisk,
  where: { readonly prefix: string; readonly nodes: ReadonlyMap<string, OpenNode> },
): Promise<string | undefined> {
  const { base, depth } = disk
  if (base === undefined) return undefined
  const layers = Array.from({ length: depth }, (_, i) => `${where.prefix}-${i}`)
  if (!layers.every(node => where.nodes.get(node)?.soundBitmaps.has(base) === true)) return undefined
  const name = `backup-${disk.target}`
  const node = `${where.prefix}-0`
  await daemon.execute('block-dirty-bitmap-add', { node, name, persistent: false, disabled: true })
  await daemon.execute('block-dirty-bitmap-merge', {
    node,
    target: name,
    bitmaps: layers.map(layer => ({ node: layer, name: base })),
  })
  return name
}

interface OpenNode {
  readonly size: number
  readonly soundBitmaps: ReadonlySet<string>
}

async function nodesOf(daemon: StorageDaemon): Promise<ReadonlyMap<string, OpenNode>> {
  const answer = await daemon.execute('query-named-block-nodes', { flat: true })
  if (!Array.isArray(answer)) throw new BackupError('E_IO', 'qemu-storage-daemon does not say what it has open')
  const nodes = new Map<string, OpenNode>()
  for (const one of answer as readonly unknown[]) {
    const node = fieldsOf(one)
    const [name, size] = [node.get('node-name'), fieldsOf(node.get('image')).get('virtual-size')]
    if (typeof name !== 'string' || typeof size !== 'number') continue
    const listed: unknown = node.get('dirty-bitmaps')
    const bitmaps = (Array.isArray(listed) ? (listed as readonly unknown[]) : []).map(fieldsOf)
    const sound = bitmaps.filter(
      bitmap =>
        bitmap.get('persistent') === true && bitmap.get('recording') === true && bitmap.get('inconsistent') !== true,
    )
    nodes.set(name, { size, soundBitmaps: new Set(sound.flatMap(bitmap => textOf(bitmap.get('name')))) })
  }
  return nodes
}

function fieldsOf(value: unknown): ReadonlyMap<string, unknown> {
  return new Map(typeof value === 'object' && value !== null ? Object.entries(value) : [])
}

function textOf(value: unknown): string[] {
  return typeof value === 'string' ? [value] : []
}
