import { createHash } from 'node:crypto'
import { cpSync, mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import type { DiskExport } from '../../src/jobs/pull-disk.js'
import type { Store } from '../../src/store/store.js'
import { readDisk } from '../store/harness.js'

export const FIXTURES = fileURLToPath(new URL('../../../fixtures', import.meta.url))
/** Of the encrypted stores; each opens a slot of its own. */
export const GOLDEN_PASSPHRASES = ['correct horse battery staple', 'Grüße aus der Gruft'] as const
export const GOLDEN_STORES = ['store-v1-plain', 'store-v1-encrypted'] as const

/** Of points that leave out goldenBase(); plain. */
export const GOLDEN_BELOW = 'store-v1-below'

/** The image that those points lie on: shorter than their disks, and not all of it data. */
export function goldenBase(): Buffer {
  const base = Buffer.alloc(200 * 65536 + 512)
  for (const index of [0, 1, 2, 5, 127, 128, 199]) {
    base.fill(`base, chunk ${index}\n`, index * 65536, (index + 1) * 65536)
  }
  base.fill(0x5a, 200 * 65536)
  return base
}

/** A disk in memory, as a pull reads one; all of it data. */
export function memoryDisk(bytes: Buffer): DiskExport {
  return {
    size: bytes.length,
    extents: async function* () {
      await Promise.resolve()
      yield { offset: 0, length: bytes.length, dirty: true, zero: false, hole: false }
    },
    read: (pieces, buffer) => {
      for (let at = 0; at < pieces.length; at += 3) {
        const [offset = 0, length = 0, place = 0] = pieces.subarray(at, at + 3)
        bytes.copy(buffer, place, offset, offset + length)
      }
      return Promise.resolve()
    },
  }
}

/** A copy that may be written to, with the empty folders that git does not keep. */
export function copyGolden(name: string, folder: string): string {
  const copy = join(folder, name)
  cpSync(join(FIXTURES, name), copy, { recursive: true })
  for (const empty of ['jobs', 'locks']) mkdirSync(join(copy, empty), { recursive: true })
  return copy
}

/** One line per disk and blob of every point: `sha256  point/name`, sorted. */
export async function sumsOf(store: Store): Promise<string[]> {
  const lines: string[] = []
  for (const point of await store.points.list()) {
    for (const { target, size, root } of point.disks) {
      const bytes = await readDisk(store, { root, geometry: { size, chunkSize: store.chunkSize } })
      lines.push(`${sha256(bytes)}  ${point.id}/${target}`)
    }
    for (const blob of point.blobs) lines.push(`${sha256(await store.readBlob(blob))}  ${point.id}/${blob.name}`)
  }
  return lines.sort()
}

export function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex')
}
