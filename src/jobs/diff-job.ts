import { BackupError } from '../base/errors.js'
import type { PointDisk, RecoveryPoint } from '../model/recovery-point.js'
import type { StorePort } from '../store/store-types.js'
import { isSameContent } from './content-id.js'

/** What differs on one disk. Bytes. */
export interface DiskDifference {
  readonly target: string
  /** In only one of the points, or in both. */
  readonly kind: 'added' | 'removed' | 'compared'
  readonly sizeA: number | undefined
  readonly sizeB: number | undefined
  readonly differentBytes: number
  /** Ascending, disjoint; whole chunks. At most MAX_EXTENTS. */
  readonly extents: readonly { readonly offset: number; readonly length: number }[]
  /** Extents there are, listed or not. */
  readonly extentCount: number
}

/** Listed per disk; all are counted. */
export const MAX_EXTENTS = 100_000

/** Names of the domain's XML among a point's files, the more telling first. */
const XML_FILES = ['domain-inactive.xml', 'domain-live.xml']

export interface DiffRequest {
  readonly a: RecoveryPoint
  readonly b: RecoveryPoint
  /** All disks of either where undefined. */
  readonly disk?: string | undefined
}

/**
 * Compares the disks of two points by walking only what differs in their
 * trees: time is that of the difference. Rejects with E_DAMAGED, E_INTERRUPTED,
 * E_UNSUPPORTED where the two leave out images of different content.
 */
export async function diffPoints(
  store: Pick<StorePort, 'diffTrees' | 'chunkSize'>,
  request: DiffRequest,
  signal: AbortSignal,
): Promise<readonly DiskDifference[]> {
  const { a, b, disk } = request
  const targets = new Set([...a.disks, ...b.disks].map(({ target }) => target))
  const found: DiskDifference[] = []
  for (const target of disk === undefined ? targets : [disk]) {
    const [inA, inB] = [a, b].map(point => point.disks.find(one => one.target === target))
    refuseOtherBelow(target, inA, inB)
    const size = Math.max(inA?.size ?? 0, inB?.size ?? 0)
    const sideOf = (one: typeof inA) => ({
      root: one?.root ?? ({ kind: 'hole' } as const),
      geometry: { size: one?.size ?? size, chunkSize: store.chunkSize },
    })
    const extents: { offset: number; length: number }[] = []
    let [differentBytes, extentCount] = [0, 0]
    for await (const { first, count } of store.diffTrees(sideOf(inA), sideOf(inB))) {
      signal.throwIfAborted()
      const offset = first * store.chunkSize
      const length = Math.min(size, (first + count) * store.chunkSize) - offset
      differentBytes += length
      extentCount++
      if (extents.length < MAX_EXTENTS) extents.push({ offset, length })
    }
    const kind = inA === undefined ? 'added' : inB === undefined ? 'removed' : 'compared'
    found.push({ target, kind, sizeA: inA?.size, sizeB: inB?.size, differentBytes, extents, extentCount })
  }
  return found
}

/** The trees alone do not tell what differs then. */
function refuseOtherBelow(target: string, a: PointDisk | undefined, b: PointDisk | undefined): void {
  if (a === undefined || b === undefined || isSameContent(a.below?.contentId, b.below?.contentId)) return
  throw new BackupError('E_UNSUPPORTED', `disk ${target} of the two points cannot be compared`, {
    why: 'they leave out different images, or only one of them does',
    hints: ['restore both, and compare the images:   qemu-img compare A B'],
  })
}

/** The domain's XML in a point; undefined where it has none. Rejects with E_DAMAGED. */
export async function xmlOf(store: Pick<StorePort, 'readBlob'>, point: RecoveryPoint): Promise<string | undefined> {
  const blob = XML_FILES.map(name => point.blobs.find(one => one.name === name)).find(one => one !== undefined)
  return blob === undefined ? undefined : Buffer.from(await store.readBlob(blob)).toString('utf8')
}
