import { promisify } from 'node:util'
import { constants, deflateRaw } from 'node:zlib'

import { forEachLimited, throwIfAborted } from '../base/async.js'
import { invariant } from '../base/invariant.js'
import { native } from '../native/binding.js'
import type { ImagePiece } from './image-writer.js'

/** One guest cluster, whole: padded with zeros where the disk ends within it. */
export interface GuestCluster {
  readonly index: number
  readonly bytes: Uint8Array
}

/** Cuts ascending pieces into whole clusters. One that a piece fills in part waits for what follows. */
export class ClusterGatherer {
  readonly #clusterSize: number
  #open: { readonly index: number; readonly bytes: Uint8Array } | undefined

  constructor(clusterSize: number) {
    this.#clusterSize = clusterSize
  }

  /** Whole clusters, ascending. Their bytes are the caller's, but for those that came in parts. */
  gather(pieces: readonly ImagePiece[], bytes: Uint8Array): GuestCluster[] {
    const size = this.#clusterSize
    const clusters: GuestCluster[] = []
    let start = 0
    for (const { offset, length } of pieces) {
      for (let done = 0; done < length; ) {
        const index = Math.floor((offset + done) / size)
        const within = offset + done - index * size
        const taken = Math.min(length - done, size - within)
        const part = bytes.subarray(start + done, start + done + taken)
        if (this.#open !== undefined && this.#open.index !== index) clusters.push(...this.rest())
        if (taken === size) clusters.push({ index, bytes: part })
        else this.#fill(index, part, within)
        done += taken
      }
      start += length
    }
    return clusters
  }

  /** The cluster that waits, if there is one. */
  rest(): GuestCluster[] {
    const open = this.#open
    this.#open = undefined
    return open === undefined ? [] : [open]
  }

  #fill(index: number, part: Uint8Array, within: number): void {
    this.#open ??= { index, bytes: new Uint8Array(this.#clusterSize) }
    this.#open.bytes.set(part, within)
  }
}

/** Compressed in one go: enough to make a call worth its while, small enough to keep all threads busy. */
const GROUP_BYTES = 512 << 10
/** Groups at once: as many as libuv has threads by default. */
const GROUPS_AT_ONCE = 4
/** Of zstd(1) and QEMU. */
const ZSTD_LEVEL = 3
/** Section "Compressed clusters": QEMU inflates with a window of 4 KiB. */
const DEFLATE = { windowBits: 12, memLevel: 9, level: constants.Z_DEFAULT_COMPRESSION } as const

/**
 * Compresses clusters as QEMU reads them: a raw deflate stream or a zstd frame
 * each. undefined for those that do not shrink. In the order of `clusters`.
 */
export async function compressClusters(
  clusters: readonly GuestCluster[],
  method: 'zlib' | 'zstd',
  signal: AbortSignal,
): Promise<readonly (Uint8Array | undefined)[]> {
  const packed: (Uint8Array | undefined)[] = new Array<Uint8Array | undefined>(clusters.length).fill(undefined)
  const size = clusters[0]?.bytes.length ?? 1
  const perGroup = Math.max(1, Math.floor(GROUP_BYTES / size))
  const groups = Array.from({ length: Math.ceil(clusters.length / perGroup) }, (_, i) => i * perGroup)
  await forEachLimited(groups, GROUPS_AT_ONCE, async first => {
    throwIfAborted(signal)
    const group = clusters.slice(first, first + perGroup)
    const results = method === 'zstd' ? await zstdGroup(group) : await deflateGroup(group)
    for (const [i, result] of results.entries()) packed[first + i] = result
  })
  return packed
}

async function zstdGroup(group: readonly GuestCluster[]): Promise<(Uint8Array | undefined)[]> {
  const plain = Buffer.concat(group.map(({ bytes }) => bytes))
  const size = plain.length / group.length
  const spans = Uint32Array.from(group.flatMap((_, i) => [i * size, size]))
  const out = new Uint8Array(plain.length)
  const lengths = await native().zstdPieces(plain, spans, { level: ZSTD_LEVEL, out })
  return Array.from(lengths, (length, i) => (length === 0 ? undefined : out.subarray(i * size, i * size + length)))
}

async function deflateGroup(group: readonly GuestCluster[]): Promise<(Uint8Array | undefined)[]> {
  const packed: (Uint8Array | undefined)[] = []
  for (const { bytes } of group) {
    const stream: Uint8Array = await promisify<Uint8Array, typeof DEFLATE, Uint8Array>(deflateRaw)(bytes, DEFLATE)
    invariant(stream.length > 0, 'a deflate stream is never empty')
    packed.push(stream.length < bytes.length ? stream : undefined)
  }
  return packed
}
