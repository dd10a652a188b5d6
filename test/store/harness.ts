import { createHash, randomBytes } from 'node:crypto'

import type { DiskGeometry } from '../../src/model/disk-tree.js'
import { chunkCount, chunkLength } from '../../src/model/disk-tree.js'
import type { PointContents, RecoveryPoint, TreeRoot } from '../../src/model/recovery-point.js'
import type { PassphraseSource } from '../../src/store/encryption.js'
import type { PointDraft, StorePort, TreeSide } from '../../src/store/store-types.js'
import { pointContents } from '../harness/points.js'

export const CHUNK = 64 * 1024
export const UUID = '6f0c2a1e-8d53-4a97-b1c4-0d6f3e5a7b92'
export const never = new AbortController().signal

/** The least that a slot may have: tests derive many. */
export const CHEAP_SCRYPT = { cost: 2 ** 14, blockSize: 8, parallelism: 1 }

/** A source of one passphrase. */
export function given(passphrase: string): PassphraseSource {
  return { isExpected: true, ask: () => Promise.resolve(passphrase) }
}

/** Bytes that depend on `seed` alone and do not compress away entirely. */
export function chunkBytes(seed: number, length = CHUNK): Buffer {
  const block = createHash('sha256').update(`chunk ${seed}`).digest()
  return Buffer.alloc(length, Buffer.concat([block, Buffer.alloc(96, seed & 0xff)]))
}

export function incompressible(length: number): Buffer {
  return randomBytes(length)
}

/** What a disk holds: the seed of each chunk's bytes, 0 for zero, -1 for a hole. */
export type Disk = Map<number, number>

export interface PullResult {
  readonly point: RecoveryPoint
  readonly newChunks: number
  readonly newNodes: number
}

export function contentsOf(geometry: DiskGeometry, root: TreeRoot, parent?: RecoveryPoint): PointContents {
  const disks = [
    {
      target: 'vda',
      size: geometry.size,
      root,
      mode: 'full' as const,
      source: { path: '/images/a.qcow2', sourceType: 'file', format: 'qcow2' },
      statistics: { dirtyBytes: 0, readBytes: 0, newBytes: 0, storedBytes: 0, newChunks: 0, newNodes: 0 },
    },
  ]
  return pointContents({
    domain: { uuid: UUID, name: 'web01' },
    time: 1_700_000_000_000,
    disks,
    parent: parent?.id,
  })
}

export function sideOf(point: RecoveryPoint, chunkSize = CHUNK): TreeSide {
  const [disk] = point.disks
  return { root: disk!.root, geometry: { size: disk!.size, chunkSize } }
}

/** Puts chunks with the given seeds; 0 is zero, -1 a hole. Ascending. */
export async function putDisk(
  draft: PointDraft,
  geometry: DiskGeometry,
  changes: Iterable<readonly [number, number]>,
  parent?: TreeSide,
): Promise<{ root: TreeRoot; newNodes: number; newChunks: number }> {
  const tree = draft.tree(geometry, parent)
  let newChunks = 0
  let batch: (readonly [number, number])[] = []
  const flush = async () => {
    const lengths = batch.map(([index]) => chunkLength(geometry, index))
    const bytes = Buffer.concat(
      batch.map(([, seed], at) => (seed === 0 ? Buffer.alloc(lengths[at]!) : chunkBytes(seed, lengths[at]))),
    )
    const spans = new Uint32Array(batch.length * 2)
    let offset = 0
    lengths.forEach((length, at) => {
      spans.set([offset, length], 2 * at)
      offset += length
    })
    const stored = await draft.storeChunks(bytes, spans, never)
    newChunks += stored.newChunks
    await tree.putChunks(Float64Array.from(batch.map(([index]) => index)), stored)
    batch = []
  }
  for (const [index, seed] of [...changes].sort(([a], [b]) => a - b)) {
    if (seed === -1) {
      await flush()
      await tree.putRun(index, 1, 'hole')
      continue
    }
    batch.push([index, seed])
    if (batch.length === 64) await flush()
  }
  await flush()
  const { root, newNodes } = await tree.finish()
  return { root, newNodes, newChunks }
}

/** One whole pull: run, draft, tree, commit. */
export async function pull(
  store: StorePort,
  geometry: DiskGeometry,
  changes: Iterable<readonly [number, number]>,
  parent?: RecoveryPoint,
): Promise<PullResult> {
  await using run = await store.runs.begin('pull')
  await using draft = await store.draft(run)
  const { root, newNodes, newChunks } = await putDisk(
    draft,
    geometry,
    changes,
    parent === undefined ? undefined : sideOf(parent, geometry.chunkSize),
  )
  const point = await draft.commit(contentsOf(geometry, root, parent))
  await run.finish()
  return { point, newChunks, newNodes }
}

/** The whole disk as bytes, read through tree and packs. */
export async function readDisk(store: StorePort, side: TreeSide): Promise<Buffer> {
  const { geometry } = side
  const out = Buffer.alloc(geometry.size)
  let next = 0
  for await (const run of store.walkTree(side.root, geometry)) {
    if (run.first !== next) throw new Error(`run at ${run.first} where ${next} is next`)
    next = run.first + run.count
    if (run.kind !== 'data') continue
    const spans = new Uint32Array(run.count * 2)
    for (let at = 0; at < run.count; at++) {
      spans.set([(run.first + at) * geometry.chunkSize, chunkLength(geometry, run.first + at)], 2 * at)
    }
    await store.chunks.read(run.ids, out, spans, never)
  }
  if (next !== chunkCount(geometry)) throw new Error(`the tree ends at ${next}`)
  return out
}

/** The bytes that a model of a disk stands for. */
export function diskBytes(geometry: DiskGeometry, disk: Disk): Buffer {
  const out = Buffer.alloc(geometry.size)
  for (const [index, seed] of disk) {
    if (seed > 0) chunkBytes(seed, chunkLength(geometry, index)).copy(out, index * geometry.chunkSize)
  }
  return out
}
