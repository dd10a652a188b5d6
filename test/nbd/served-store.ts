import { createCipheriv, createHash } from 'node:crypto'
import { open } from 'node:fs/promises'

import { chunkLength } from '../../src/model/disk-tree.js'
import type { RecoveryPoint } from '../../src/model/recovery-point.js'
import { Store } from '../../src/store/store.js'
import { contentsOf, never } from '../store/harness.js'

/** What a chunk of the disk holds. */
export type Fill = 'data' | 'zero' | 'hole'

export interface MadeDisk {
  readonly size: number
  readonly chunkSize: number
  fill(chunk: number): Fill
  /** Bytes of a data chunk. */
  bytes(chunk: number): Buffer
}

const TEXT = Buffer.from(Array.from({ length: 256 }, (_, line) => `line ${line} of many, `).join('')).subarray(0, 4096)

/** Pages of noise and of text in turns: what a file system full of things looks like to a compressor. */
export function mixedBytes(seed: number, length: number): Buffer {
  const key = createHash('sha256').update(`mixed ${seed}`).digest()
  const out = createCipheriv('aes-128-ctr', key.subarray(0, 16), key.subarray(16)).update(Buffer.alloc(length))
  for (let at = 4096; at < length; at += 8192) TEXT.copy(out, at, seed % 64)
  return out
}

/** Stores a disk as a point of a new store. */
export async function storeDisk(location: string, disk: MadeDisk): Promise<RecoveryPoint> {
  await Store.init(location, { chunkSize: disk.chunkSize })
  return await addPoint(location, disk)
}

/** Stores a disk as another point of the same domain. */
export async function addPoint(location: string, disk: MadeDisk): Promise<RecoveryPoint> {
  await using store = await Store.open(location)
  await using run = await store.runs.begin('pull')
  await using draft = await store.draft(run)
  const geometry = { size: disk.size, chunkSize: disk.chunkSize }
  const tree = draft.tree(geometry, undefined)
  const chunks = Math.ceil(disk.size / disk.chunkSize)
  for (let chunk = 0; chunk < chunks; ) {
    const kind = disk.fill(chunk)
    let count = 1
    while (chunk + count < chunks && count < 64 && disk.fill(chunk + count) === kind) count++
    if (kind === 'data') {
      const spans = new Uint32Array(count * 2)
      const pieces: Buffer[] = []
      let end = 0
      for (let i = 0; i < count; i++) {
        const length = chunkLength(geometry, chunk + i)
        spans.set([end, length], 2 * i)
        pieces.push(disk.bytes(chunk + i))
        end += length
      }
      const stored = await draft.storeChunks(Buffer.concat(pieces), spans, never)
      await tree.putChunks(
        Float64Array.from({ length: count }, (_, i) => chunk + i),
        stored,
      )
    } else {
      await tree.putRun(chunk, count, kind)
    }
    chunk += count
  }
  const { root } = await tree.finish()
  const parent = (await store.points.list()).at(-1)
  const point = await draft.commit(contentsOf(geometry, root, parent))
  await run.finish()
  return point
}

/** The same disk as a sparse raw file. */
export async function writeTruth(path: string, disk: MadeDisk): Promise<void> {
  const file = await open(path, 'w')
  for (let chunk = 0; chunk * disk.chunkSize < disk.size; chunk++) {
    if (disk.fill(chunk) !== 'data') continue
    const bytes = disk.bytes(chunk)
    await file.write(bytes, 0, bytes.length, chunk * disk.chunkSize)
  }
  await file.truncate(disk.size)
  await file.close()
}

/** Data, zeros and holes in stretches, with an odd end. */
export function patchyDisk(chunks: number, chunkSize = 64 * 1024): MadeDisk {
  const size = chunks * chunkSize - chunkSize + 512
  const geometry = { size, chunkSize }
  return {
    size,
    chunkSize,
    fill: chunk => {
      if (chunk === chunks - 1) return 'data'
      const stretch = Math.floor(chunk / 37) % 5
      return stretch === 1 ? 'zero' : stretch === 3 || (stretch === 4 && chunk % 2 === 0) ? 'hole' : 'data'
    },
    bytes: chunk => mixedBytes(chunk + 1, chunkLength(geometry, chunk)),
  }
}
