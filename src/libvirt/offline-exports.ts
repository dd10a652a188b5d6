import { BackupError } from '../base/errors.js'
import type { ChainImage } from './image-chain.js'
import type { ImageTools } from './image-tools.js'
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
  for (const [i, { chain }] of disks.entries()) {
    await addKeys(daemon, chain, `d${i}`)
    await daemon.execute('blockdev-add', lockedNode(chain, `d${i}`))
  }
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

/** Bytes that the images have recorded since each disk's base, summed over its chain: some may count twice. */
export async function countDirty(
  tools: ImageTools,
  disks: readonly OfflineDisk[],
): Promise<ReadonlyMap<string, number>> {
  if (disks.length === 0) return new Map()
  await using daemon = await tools.startDaemon()
  for (const [i, { chain }] of disks.entries()) {
    await addKeys(daemon, chain, `d${i}`)
    await daemon.execute('blockdev-add', { ...imageNode(chain, `d${i}`, 0), 'force-share': true })
  }
  const nodes = await nodesOf(daemon)
  return new Map(
    disks.map(({ target, base, depth }, i) => {
      const layers = Array.from({ length: depth }, (_, at) => nodes.get(`d${i}-${at}`))
      return [target, layers.reduce((sum, node) => sum + (node?.dirtyBytes.get(base ?? '') ?? 0), 0)]
    }),
  )
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
  const key = keyName(prefix, at)
  // The raw format of libvirt's LUKS disks is QEMU's format luks.
  const isWhollyEncrypted = image.key !== undefined && image.format === 'raw'
  return {
    driver: isWhollyEncrypted ? 'luks' : image.format,
    'node-name': `${prefix}-${at}`,
    'read-only': true,
    file: { ...fileNode(image, credentialsName(prefix, at)), 'read-only': true },
    ...(isWhollyEncrypted ? { 'key-secret': key } : {}),
    ...(image.key !== undefined && !isWhollyEncrypted ? { encrypt: { format: 'luks', 'key-secret': key } } : {}),
    ...(WITH_BACKING.includes(image.format) ? { backing: imageNode(chain, prefix, at + 1) } : {}),
  }
}

function fileNode(
  { network, path, isBlockDevice }: ChainImage,
  credentials: string,
): Readonly<Record<string, unknown>> {
  if (network === undefined) return { driver: isBlockDevice ? 'host_device' : 'file', filename: path }
  return network.certificates === undefined ? network.node : { ...network.node, 'tls-creds': credentials }
}

/** Over the daemon's standard input, as everything: nobody else sees them. Of TLS it is told where the files are. */
async function addKeys(daemon: StorageDaemon, chain: readonly ChainImage[], prefix: string): Promise<void> {
  for (const [at, { key, network }] of chain.entries()) {
    if (network?.certificates !== undefined) {
      const side = { dir: network.certificates, endpoint: 'client', 'verify-peer': true }
      await daemon.execute('object-add', { 'qom-type': 'tls-creds-x509', id: credentialsName(prefix, at), ...side })
    }
    if (key === undefined) continue
    const data = Buffer.from(key).toString('base64')
    await daemon.execute('object-add', { 'qom-type': 'secret', id: keyName(prefix, at), data, format: 'base64' })
  }
}

function credentialsName(prefix: string, at: number): string {
  return `${prefix}-${at}-tls`
}

function keyName(prefix: string, at: number): string {
  return `${prefix}-${at}-key`
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
  readonly dirtyBytes: ReadonlyMap<string, number>
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
    const dirtyBytes = sound.flatMap(bitmap => {
      const [bitmapName, count] = [bitmap.get('name'), bitmap.get('count')]
      return typeof bitmapName === 'string' && typeof count === 'number' ? [[bitmapName, count] as const] : []
    })
    nodes.set(name, {
      size,
      soundBitmaps: new Set(sound.flatMap(bitmap => textOf(bitmap.get('name')))),
      dirtyBytes: new Map(dirtyBytes),
    })
  }
  return nodes
}

function fieldsOf(value: unknown): ReadonlyMap<string, unknown> {
  return new Map(typeof value === 'object' && value !== null ? Object.entries(value) : [])
}

function textOf(value: unknown): string[] {
  return typeof value === 'string' ? [value] : []
}
