import { randomBytes } from 'node:crypto'
import { constants } from 'node:fs'
import { type FileHandle, lchown, lutimes, mkdir, open, rename, rm, symlink } from 'node:fs/promises'

import { BackupError, type ErrorCode, errorCodeOf, messageOf } from '../base/errors.js'
import { kindOf } from './guest-entry.js'
import { type NamedStats, OpenDirectory } from './open-directory.js'

/** Deeper trees are a trap, or a circle that a damaged file system makes. */
const MAX_DEPTH = 256
const BUFFER_BYTES = 1024 * 1024
/** Stretches of zeros from this length on become holes. */
const HOLE_BYTES = 64 * 1024
const NEW_FILE = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW
const ZEROS = Buffer.alloc(HOLE_BYTES)

export interface CopyOptions {
  /** Permission bits as in the guest; for root also owner, group and set-id bits. Else all is for this user alone. */
  readonly preserve: boolean
  /** Replace files that are there. */
  readonly force: boolean
}

export interface CopyTally {
  files: number
  directories: number
  links: number
  /** Devices, pipes and sockets, which are never made. */
  skipped: number
  failed: number
  bytes: number
}

export type CopyReport =
  | { readonly kind: 'skipped'; readonly path: string }
  | { readonly kind: 'failed'; readonly path: string; readonly code: ErrorCode; readonly message: string }

/**
 * Copies what a guest has to a directory of this host. Nothing is written
 * outside of it, whatever the guest's file system holds: every name is reached
 * from a directory that is held open, links are made and never followed,
 * devices are not made, and no file appears before it is complete.
 */
export class TreeCopy {
  readonly tally: CopyTally = { files: 0, directories: 0, links: 0, skipped: 0, failed: 0, bytes: 0 }
  readonly #options: CopyOptions
  readonly #report: (report: CopyReport) => void
  readonly #signal: AbortSignal
  readonly #isRoot: boolean
  readonly #buffer = Buffer.allocUnsafeSlow(BUFFER_BYTES)

  constructor(options: CopyOptions, report: (report: CopyReport) => void, signal: AbortSignal) {
    this.#options = options
    this.#report = report
    this.#signal = signal
    this.#isRoot = process.getuid?.() === 0
  }

  /**
   * Copies `name` of `from` to `newName` of `to`. What cannot be copied is
   * reported and left out; rejects with E_NO_SPACE and E_INTERRUPTED only.
   */
  async copy(
    source: { readonly from: OpenDirectory; readonly name: Buffer },
    destination: { readonly to: OpenDirectory; readonly name: Buffer },
  ): Promise<void> {
    await this.#copy(source, destination, [destination.name], new Set())
  }

  /** Copies all that is in `from` into `to`. */
  async copyContents(from: OpenDirectory, to: OpenDirectory): Promise<void> {
    await this.#copyAll(from, to, [], new Set())
  }

  async #copy(
    source: { readonly from: OpenDirectory; readonly name: Buffer },
    destination: { readonly to: OpenDirectory; readonly name: Buffer },
    path: readonly Buffer[],
    above: ReadonlySet<number>,
  ): Promise<void> {
    try {
      this.#signal.throwIfAborted()
      const stats = await source.from.stat(source.name)
      switch (kindOf(stats)) {
        case 'file':
          return await this.#copyFile(source, destination)
        case 'directory':
          return await this.#copyDirectory(source, destination, path, above)
        case 'link':
          return await this.#copyLink(source, destination, stats)
        case 'special':
          this.tally.skipped++
          return this.#report({ kind: 'skipped', path: shown(path) })
      }
    } catch (error) {
      if (this.#signal.aborted) throw new BackupError('E_INTERRUPTED', 'interrupted', { cause: error })
      const code = errorCodeOf(error)
      if (code === 'E_NO_SPACE') throw error
      this.tally.failed++
      this.#report({ kind: 'failed', path: shown(path), code, message: messageOf(error) })
    }
  }

  async #copyFile(
    source: { readonly from: OpenDirectory; readonly name: Buffer },
    { to, name }: { readonly to: OpenDirectory; readonly name: Buffer },
  ): Promise<void> {
    await this.#makeRoom(to, name)
    const input = await source.from.file(source.name)
    try {
      await using fresh = await FreshName.in(to)
      const output = await open(fresh.path, NEW_FILE, 0o600)
      try {
        const stats = await input.stat()
        await this.#pour(input, output, stats.size)
        await this.#dress(output, stats)
      } finally {
        await output.close()
      }
      await fresh.become(name)
      this.tally.files++
    } finally {
      await input.close()
    }
  }

  async #pour(input: FileHandle, output: FileHandle, size: number): Promise<void> {
    let at = 0
    for (;;) {
      this.#signal.throwIfAborted()
      const { bytesRead } = await input.read(this.#buffer, 0, BUFFER_BYTES, at)
      if (bytesRead === 0) break
      await writeData(output, this.#buffer.subarray(0, bytesRead), at)
      at += bytesRead
      this.tally.bytes += bytesRead
    }
    if (at !== size) throw new BackupError('E_IO', `it gave ${at} of its ${size} bytes`)
    await output.truncate(size)
  }

  async #copyLink(
    source: { readonly from: OpenDirectory; readonly name: Buffer },
    { to, name }: { readonly to: OpenDirectory; readonly name: Buffer },
    stats: NamedStats,
  ): Promise<void> {
    await this.#makeRoom(to, name)
    await using fresh = await FreshName.in(to)
    await symlink(await source.from.link(source.name), fresh.path)
    if (this.#options.preserve && this.#isRoot) await lchown(fresh.path, stats.uid, stats.gid)
    await lutimes(fresh.path, stats.mtimeMs / 1000, stats.mtimeMs / 1000)
    await fresh.become(name)
    this.tally.links++
  }

  async #copyDirectory(
    source: { readonly from: OpenDirectory; readonly name: Buffer },
    { to, name }: { readonly to: OpenDirectory; readonly name: Buffer },
    path: readonly Buffer[],
    above: ReadonlySet<number>,
  ): Promise<void> {
    if (path.length > MAX_DEPTH) throw new BackupError('E_REFUSED', `more than ${MAX_DEPTH} directories deep`)
    await using from = await source.from.directory(source.name)
    const stats = await from.stats()
    if (above.has(stats.ino))
      throw new BackupError('E_REFUSED', 'a directory within itself: the file system is damaged')
    const existing = await to.find(name)
    if (existing === undefined) await mkdir(to.pathOf(name), { mode: 0o700 })
    else if (!this.#options.force || !existing.isDirectory()) throw exists()
    // Held from here on: what it is called now or later does not matter.
    await using made = await to.directory(name)
    await this.#copyAll(from, made, path, new Set([...above, stats.ino]))
    if (this.#options.preserve && this.#isRoot) await made.setOwner(stats.uid, stats.gid)
    await made.setMode(this.#modeOf(stats.mode))
    await made.setTime(stats.mtimeMs)
    this.tally.directories++
  }

  async #copyAll(
    from: OpenDirectory,
    to: OpenDirectory,
    path: readonly Buffer[],
    above: ReadonlySet<number>,
  ): Promise<void> {
    for await (const name of from.names()) {
      await this.#copy({ from, name }, { to, name }, [...path, name], above)
    }
  }

  async #makeRoom(to: OpenDirectory, name: Buffer): Promise<void> {
    const existing = await to.find(name)
    if (existing === undefined) return
    // A rename puts the new one in its place, whatever it is or points to.
    if (!this.#options.force || existing.isDirectory()) throw exists()
  }

  async #dress(output: FileHandle, stats: NamedStats): Promise<void> {
    // Owner first: a change of owner takes set-id bits away.
    if (this.#options.preserve && this.#isRoot) await output.chown(stats.uid, stats.gid)
    await output.chmod(this.#modeOf(stats.mode))
    await output.utimes(stats.mtimeMs / 1000, stats.mtimeMs / 1000)
  }

  #modeOf(mode: number): number {
    if (!this.#options.preserve) return (mode & 0o700) | 0o600
    return mode & (this.#isRoot ? 0o7777 : 0o777)
  }
}

/** A name that nobody has, until what bears it is complete. */
class FreshName implements AsyncDisposable {
  readonly path: Buffer
  readonly #directory: OpenDirectory
  #isUsed = false

  private constructor(directory: OpenDirectory, path: Buffer) {
    this.#directory = directory
    this.path = path
  }

  static in(directory: OpenDirectory): Promise<FreshName> {
    const name = Buffer.from(`.virtvault-${randomBytes(12).toString('hex')}`)
    return Promise.resolve(new FreshName(directory, directory.pathOf(name)))
  }

  async become(name: Buffer): Promise<void> {
    await rename(this.path, this.#directory.pathOf(name))
    this.#isUsed = true
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#isUsed) await rm(this.path, { force: true })
  }
}

/** Leaves out zeros: the file is new, so they are there already. */
async function writeData(output: FileHandle, bytes: Buffer, position: number): Promise<void> {
  for (let from = 0; from < bytes.length; ) {
    const isHole = isZero(bytes.subarray(from, from + HOLE_BYTES))
    let to = from + HOLE_BYTES
    while (to < bytes.length && isZero(bytes.subarray(to, to + HOLE_BYTES)) === isHole) to += HOLE_BYTES
    if (!isHole) await writeFully(output, bytes.subarray(from, to), position + from)
    from = to
  }
}

/** On a full disk Node tells of a short write by its count alone. */
async function writeFully(output: FileHandle, bytes: Buffer, position: number): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    const { bytesWritten } = await output.write(bytes, done, bytes.length - done, position + done)
    done += bytesWritten
  }
}

function isZero(bytes: Buffer): boolean {
  return bytes.equals(ZEROS.subarray(0, bytes.length))
}

function exists(): BackupError {
  return new BackupError('E_EXISTS', 'there is one of this name already')
}

function shown(path: readonly Buffer[]): string {
  return path.map(name => name.toString()).join('/')
}
