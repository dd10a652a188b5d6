import { open, rename } from 'node:fs/promises'

import { type Fill, fillBytes, KIB, MIB } from './fill.js'
import { imageInfo } from './images.js'
import { run } from './run-program.js'

/** A change of a disk's contents. Bytes of a `zero` or `discard` read as zero afterwards. */
export type Change =
  | { readonly kind: 'write'; readonly offset: number; readonly length: number; readonly fill: Fill }
  | { readonly kind: 'zero' | 'discard'; readonly offset: number; readonly length: number }

export interface LabDiskSpec {
  readonly target: string
  readonly size: number
  /** Default: qcow2. */
  readonly format?: 'qcow2' | 'raw'
  /** Made before `content`, over the whole disk. */
  readonly fileSystem?: 'ext4'
  /** What it holds before the first start; the rest is a hole. */
  readonly content?: readonly Change[]
  /** For `qemu-img create -o`, e.g. `cluster_size=2M`. */
  readonly imageOptions?: string
  readonly readOnly?: boolean
  /** The image lies in a loop device with room to spare: detach it with `losetup -d` at the end. */
  readonly block?: boolean
  /** `content` is in an image below, and the domain's own image is empty. */
  readonly backed?: boolean
  /** Socket of an NBD export without a name below the image: it must hold `content`, and the domain's own image is empty. */
  readonly over?: string
  /** Attributes of the `<driver>` element beside name, type and discard. */
  readonly driver?: string
}

/** A page and more: what every file system under a raw image discards exactly. */
const MIN_DISCARD_ALIGNMENT = 64 * KIB
/** qemu-io allocates each write as a whole, within QEMU. */
const MAX_WRITE_BYTES = 64 * MIB

/**
 * A disk of a lab domain, with a shadow: a sparse raw file that receives the
 * same changes from the lab itself. The shadow is what the disk must hold, by
 * another way than through QEMU, so it judges both QEMU's and our reading.
 */
export class LabDisk {
  readonly target: string
  /** Bytes; LabDomain.resize() changes it. */
  size: number
  readonly format: 'qcow2' | 'raw'
  readonly readOnly: boolean
  readonly block: boolean
  readonly driver: string
  readonly path: string
  readonly shadow: string
  /** QEMU ignores the parts of a discard that do not fill a cluster, so the lab allows only whole ones. */
  readonly discardAlignment: number

  private constructor(
    spec: LabDiskSpec,
    files: { readonly path: string; readonly shadow: string },
    clusterSize: number,
  ) {
    this.target = spec.target
    this.size = spec.size
    this.format = spec.format ?? 'qcow2'
    this.readOnly = spec.readOnly ?? false
    this.block = spec.block ?? false
    this.driver = spec.driver ?? ''
    this.path = files.path
    this.shadow = files.shadow
    this.discardAlignment = Math.max(MIN_DISCARD_ALIGNMENT, clusterSize)
  }

  /** Makes the image and its shadow with the spec's content. */
  static async create(spec: LabDiskSpec, asked: { readonly path: string; readonly shadow: string }): Promise<LabDisk> {
    const format = spec.format ?? 'qcow2'
    const options = spec.imageOptions === undefined ? [] : ['-o', spec.imageOptions]
    const files = spec.block === true ? { ...asked, path: await loopDevice(asked.path, spec.size, format) } : asked
    await run('qemu-img', ['create', '-q', '-f', format, ...options, files.path, String(spec.size)])
    const disk = new LabDisk(spec, files, (await imageInfo(files.path, format)).clusterSize)
    await using shadow = await open(files.shadow, 'w')
    await shadow.truncate(spec.size)
    if (spec.fileSystem !== undefined) {
      await run('mke2fs', ['-q', '-F', '-t', spec.fileSystem, '-E', 'nodiscard', files.shadow])
    }
    await disk.changeShadow(spec.content ?? [])
    const zero = spec.block === true && format === 'raw' ? [] : ['--target-is-zero']
    await run('qemu-img', ['convert', '-n', ...zero, '-f', 'raw', '-O', format, files.shadow, files.path])
    if (spec.backed === true) {
      await rename(files.path, `${files.shadow}.base`)
      const below = ['-b', `${files.shadow}.base`, '-F', format]
      await run('qemu-img', ['create', '-q', '-f', format, ...options, ...below, files.path])
    }
    if (spec.over !== undefined) {
      const node = { driver: 'raw', file: { driver: 'nbd', export: '', server: { type: 'unix', path: spec.over } } }
      const below = ['-u', '-F', 'raw', '-b', `json:${JSON.stringify(node)}`]
      await run('qemu-img', ['create', '-q', '-f', format, ...options, ...below, files.path, String(spec.size)])
    }
    return disk
  }

  /** Throws unless the change lies within the disk and is one that every image format executes exactly. */
  checkChange(change: Change): void {
    const { kind, offset, length } = change
    const isInside = offset >= 0 && length > 0 && offset <= this.size && length <= this.size - offset
    const isAligned = offset % this.discardAlignment === 0 && length % this.discardAlignment === 0
    if (!isInside) throw new Error(`${kind} of ${length} bytes at ${offset} does not fit into ${this.target}`)
    if (kind === 'discard' && !isAligned)
      throw new Error(`a discard on ${this.target} must be aligned to ${this.discardAlignment} bytes`)
  }

  async changeShadow(changes: readonly Change[]): Promise<void> {
    await using file = await open(this.shadow, 'r+')
    for (const change of changes) {
      this.checkChange(change)
      const { offset, length } = change
      if (change.kind === 'write') {
        const bytes = fillBytes(change.fill, length)
        const { bytesWritten } = await file.write(bytes, 0, length, offset)
        if (bytesWritten !== length) throw new Error(`no room for the shadow of ${this.target}`)
      } else {
        await run('fallocate', ['--punch-hole', '--offset', String(offset), '--length', String(length), this.shadow])
      }
    }
  }
}

/** A qcow2 needs more room than its disk; a raw image must fill its device. */
async function loopDevice(path: string, size: number, format: 'qcow2' | 'raw'): Promise<string> {
  const room = format === 'raw' ? size : size + 4 * MIB
  await run('truncate', ['--size', String(room), path])
  return (await run('losetup', ['--find', '--show', path])).stdout.trim()
}

/**
 * The qemu-io commands of one change. Bytes without pattern pass through the
 * file that `patternFile` writes, because qemu-io cannot take them otherwise.
 */
export function qemuIoCommands(change: Change, patternFile: (bytes: Buffer) => string): string[] {
  const { offset, length } = change
  if (change.kind !== 'write') return [`${change.kind === 'zero' ? 'write -z' : 'discard'} ${offset} ${length}`]
  const commands: string[] = []
  const { fill } = change
  const bytes = typeof fill === 'number' ? undefined : fillBytes(fill, length)
  for (let done = 0; done < length; done += MAX_WRITE_BYTES) {
    const part = Math.min(MAX_WRITE_BYTES, length - done)
    const source = bytes === undefined ? `-P ${Number(fill)}` : `-s ${patternFile(bytes.subarray(done, done + part))}`
    commands.push(`write ${source} ${offset + done} ${part}`)
  }
  return commands
}
