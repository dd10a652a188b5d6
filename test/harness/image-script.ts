import { execFile } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'

import fc from 'fast-check'

import type { ImagePiece, ImageWriter } from '../../src/image/image-writer.js'
import { LocalImages } from '../../src/image/local-images.js'
import type { Qcow2Options } from '../../src/image/qcow2.js'

export const run = promisify(execFile)
const never = new AbortController().signal

/** What one restore writes: sorted disjoint pieces, in calls of a few pieces each. */
export interface Script {
  readonly size: number
  readonly pieces: readonly ImagePiece[]
  readonly perCall: number
}

export const KIB = 1024

export const scripts: fc.Arbitrary<Script> = fc
  .record({
    sectors: fc.integer({ min: 0, max: 8192 }),
    odd: fc.constantFrom(0, 0, 100),
    cuts: fc.uniqueArray(fc.integer({ min: 0, max: 8192 }), { minLength: 2, maxLength: 24 }),
    skip: fc.array(fc.boolean(), { minLength: 24, maxLength: 24 }),
    perCall: fc.integer({ min: 1, max: 6 }),
  })
  .map(({ sectors, odd, cuts, skip, perCall }) => {
    const size = sectors * 512 + odd
    const ends = [...new Set([0, ...cuts.map(cut => Math.min(cut * 512, size)), size])].sort((a, b) => a - b)
    const pieces = ends
      .slice(1)
      .map((end, i) => ({ offset: ends[i]!, length: end - ends[i]! }))
      .filter((_, i) => skip[i] !== true)
    return { size, pieces, perCall }
  })

/** Writes random scripts as images of random shapes, and has QEMU check and compare each. */
export async function playAll(
  some: fc.Arbitrary<Partial<Qcow2Options>>,
  numRuns: number,
  hasDataFile = false,
): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), 'virtvault-qcow2-'))
  let number = 0
  try {
    await fc.assert(
      fc.asyncProperty(scripts, some, async (script, shape) => {
        const path = join(folder, `${number++}.qcow2`)
        const dataFile = hasDataFile ? `${path}.data.raw` : undefined
        const expected = await play(script, { ...shape, path, size: script.size, dataFile })
        const padded = Buffer.concat([expected, Buffer.alloc(Math.ceil(script.size / 512) * 512 - script.size)])
        await writeFile(`${path}.raw`, padded)

        await checkSound(path)
        await run('qemu-img', ['compare', '-f', 'qcow2', '-F', 'raw', path, `${path}.raw`])
        if (dataFile !== undefined && !padded.equals(await readFile(dataFile))) {
          throw new Error('the data file is not the raw disk')
        }
        for (const file of [path, `${path}.raw`, ...(dataFile === undefined ? [] : [dataFile])]) await rm(file)
      }),
      { numRuns },
    )
  } finally {
    await rm(folder, { recursive: true })
  }
}

export async function play(script: Script, options: Qcow2Options): Promise<Buffer> {
  const disk = Buffer.alloc(script.size)
  await using image = await create(options)
  let at = 0
  for (let i = 0; i < script.pieces.length; i += script.perCall) {
    const pieces = script.pieces.slice(i, i + script.perCall)
    const first = pieces[0]!.offset
    if (first > at) await image.zero(at, first - at, never)
    const bytes = Buffer.concat(pieces.map(piece => pattern(piece)))
    let start = 0
    for (const { offset, length } of pieces) {
      bytes.copy(disk, offset, start, start + length)
      start += length
    }
    await image.write(pieces, bytes, never)
    at = pieces.at(-1)!.offset + pieces.at(-1)!.length
  }
  if (at < script.size) await image.zero(at, script.size - at, never)
  await image.commit(never)
  return disk
}

export async function create(options: Qcow2Options): Promise<ImageWriter> {
  const images = new LocalImages({
    output: process.stdout,
    openExport: () => Promise.reject(new Error('no exports here')),
  })
  return await images.create({ kind: 'qcow2', ...options }, never)
}

/** Of one value, of noise that nothing can shrink, or in between. */
function pattern(piece: ImagePiece): Buffer {
  const kind = (piece.offset / 512) % 3
  if (kind === 0) return Buffer.alloc(piece.length, 1 + (piece.offset % 255))
  if (kind === 1) return randomBytes(piece.length)
  const bytes = Buffer.alloc(piece.length)
  for (let i = 0; i < bytes.length; i++) bytes[i] = ((piece.offset + i) * 2654435761) >>> 11
  return bytes
}

export async function checkSound(path: string): Promise<void> {
  await run('qemu-img', ['check', '-q', '-f', 'qcow2', path])
}

export async function compressedClusters(path: string): Promise<unknown> {
  const { stdout } = await run('qemu-img', ['check', '--output=json', '-f', 'qcow2', path])
  return (JSON.parse(stdout) as Record<string, unknown>)['compressed-clusters']
}

export async function shapeOf(path: string): Promise<unknown> {
  const { stdout } = await run('qemu-img', ['info', '--output=json', path])
  const info = JSON.parse(stdout) as Record<string, unknown>
  return [info['virtual-size'], info['cluster-size'], info['format-specific'], info['dirty-flag']]
}
