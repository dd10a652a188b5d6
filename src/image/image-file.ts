import { randomBytes } from 'node:crypto'
import { constants } from 'node:fs'
import { type FileHandle, link, lstat, open, rename, unlink } from 'node:fs/promises'
import { basename, dirname, extname, join } from 'node:path'

import { throwIfAborted } from '../base/async.js'
import { BackupError, errorCodeOf, messageOf } from '../base/errors.js'
import { invariant } from '../base/invariant.js'
import { native } from '../native/binding.js'
import type { ImageFileOptions } from './image-writer.js'

/** Write-back and release of the page cache happen in steps of this many bytes. */
const WRITEBACK_STEP_BYTES = 64 << 20
/** How far behind the newest byte the page cache is released: what is still being written stays. */
const WRITEBACK_LAG_BYTES = 64 << 20
const ZERO_BYTES = new Uint8Array(4 << 20)

/**
 * A file being written under a temporary name beside its final one.
 *
 *     DIR/.NAME.virtvault-<random>  ──commit()──►  DIR/NAME
 *           └──────dispose, any failure──────►  gone
 *
 * The temporary is created O_EXCL and O_NOFOLLOW with mode 0600, so nobody can
 * slip a link or a file of theirs under it.
 */
export class ImageFile implements AsyncDisposable {
  /** The temporary was there before, left by an interrupted writer. */
  readonly isAdopted: boolean
  readonly #temporary: string
  readonly #options: ImageFileOptions
  #path: string
  #handle: FileHandle | undefined
  #end = 0
  /** Bytes from the start that were written back. */
  #writtenBack = 0
  #writingBack = false
  #writeBackDone: Promise<void> = Promise.resolve()
  #failure: BackupError | undefined
  #preparedBytes: number | undefined

  private constructor(
    options: ImageFileOptions,
    file: { readonly temporary: string; readonly handle: FileHandle; readonly isAdopted: boolean },
  ) {
    this.#path = options.path
    this.#options = options
    this.#temporary = file.temporary
    this.#handle = file.handle
    this.isAdopted = file.isAdopted
  }

  /**
   * Rejects with E_EXISTS where the final name is taken and `force` was not
   * given, E_REFUSED where it is no regular file, E_IO; with a partial name also
   * with E_LOCKED where somebody writes there.
   */
  static async create(options: ImageFileOptions): Promise<ImageFile> {
    if (options.partial !== undefined) {
      const { handle, isAdopted } = await openPartial(options.partial, options.path)
      try {
        await refuseTaken(options.path, options.force)
      } catch (error) {
        if (!isAdopted) await unlink(options.partial)
        await handle.close()
        throw error
      }
      return new ImageFile(options, { temporary: options.partial, handle, isAdopted })
    }
    await refuseTaken(options.path, options.force)
    const directory = dirname(options.path)
    const temporary = join(directory, `.${basename(options.path)}.virtvault-${randomBytes(8).toString('hex')}`)
    const flags = constants.O_RDWR | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW
    const handle = await naming(temporary, open(temporary, flags, 0o600))
    return new ImageFile(options, { temporary, handle, isAdopted: false })
  }

  /** Final path. */
  get path(): string {
    return this.#path
  }

  /** Gives the final name a mark: `vda.qcow2` becomes `vda.damaged.qcow2`. Rejects with E_EXISTS, E_REFUSED. */
  async markDamaged(): Promise<void> {
    const extension = extname(this.#path)
    const path = `${this.#path.slice(0, this.#path.length - extension.length)}.damaged${extension}`
    await refuseTaken(path, this.#options.force)
    this.#path = path
  }

  get #file(): FileHandle {
    invariant(this.#handle !== undefined, 'image file used after commit or dispose')
    return this.#handle
  }

  /** Writes all of `bytes` at `position`. A short write is continued, so a full disk shows as E_NO_SPACE. */
  async write(bytes: Uint8Array, position: number): Promise<void> {
    const file = this.#file
    let done = 0
    while (done < bytes.length) {
      const { bytesWritten } = await this.#naming(file.write(bytes, done, bytes.length - done, position + done))
      if (bytesWritten === 0) throw new BackupError('E_IO', `${this.path}: the file takes no more bytes`)
      done += bytesWritten
    }
    this.#end = Math.max(this.#end, position + done)
    if (this.#failure !== undefined) throw this.#failure
    this.#writeBack()
  }

  /** Fills `bytes` with what is at `position`; zeros behind the end. */
  async read(bytes: Uint8Array, position: number): Promise<void> {
    let done = 0
    while (done < bytes.length) {
      const { bytesRead } = await this.#naming(this.#file.read(bytes, done, bytes.length - done, position + done))
      if (bytesRead === 0) break
      done += bytesRead
    }
    bytes.fill(0, done)
  }

  /** Length of the file; growing leaves a hole. */
  async truncate(length: number): Promise<void> {
    await this.#naming(this.#file.truncate(length))
  }

  /** Allocates `[0, length)`: by the file system where it can, else by writing zeros. Only for a file without data yet. */
  async reserve(length: number, signal: AbortSignal): Promise<void> {
    if (length === 0) return
    try {
      await native().fallocate(this.#file.fd, 'reserve', 0, length)
    } catch (error) {
      if (errorCodeOf(error) !== 'E_UNSUPPORTED') throw this.#named(error)
      await this.fillZeros(0, length, signal)
    }
  }

  /** Writes zeros, so that the range takes its room on the file system. */
  async fillZeros(offset: number, length: number, signal: AbortSignal): Promise<void> {
    for (let done = 0; done < length; done += ZERO_BYTES.length) {
      throwIfAborted(signal)
      await this.write(ZERO_BYTES.subarray(0, Math.min(ZERO_BYTES.length, length - done)), offset + done)
    }
  }

  /** Makes a range of a file that held data read as zeros. */
  async punch(offset: number, length: number): Promise<void> {
    await this.#naming(native().fallocate(this.#file.fd, 'punch', offset, length))
  }

  /**
   * Writes back what lies well behind the newest byte and drops it from the
   * page cache: the host's cache stays as it was, and the sync at the end is
   * short. Runs beside the writes, one step at a time.
   */
  #writeBack(): void {
    if (this.#writingBack || this.#end - this.#writtenBack < WRITEBACK_STEP_BYTES + WRITEBACK_LAG_BYTES) return
    const from = this.#writtenBack
    this.#writtenBack = from + WRITEBACK_STEP_BYTES
    this.#writingBack = true
    this.#writeBackDone = native()
      .dropCache(this.#file.fd, from, WRITEBACK_STEP_BYTES)
      .then(
        () => {
          this.#writingBack = false
        },
        (error: unknown) => {
          // Linux reports a failed write-back once; whoever got it must not forget it.
          this.#failure ??= this.#named(error)
        },
      )
  }

  async #writeBackSettled(): Promise<void> {
    await this.#writeBackDone
    if (this.#failure !== undefined) throw this.#failure
  }

  async sync(): Promise<void> {
    await this.#writeBackSettled()
    await this.#naming(this.#file.datasync())
  }

  /** Owner, mode, fsync: all of commit() but the name. Resolves to the file's length. Rejects with E_IO, E_NO_SPACE. */
  async prepare(): Promise<number> {
    if (this.#preparedBytes !== undefined) return this.#preparedBytes
    const file = this.#file
    await this.#writeBackSettled()
    const { owner, mode } = this.#options
    if (owner !== undefined) await this.#naming(file.chown(owner.uid, owner.gid))
    if (mode !== undefined) await this.#naming(file.chmod(mode))
    await this.#naming(file.sync())
    const { size } = await file.stat()
    this.#preparedBytes = size
    return size
  }

  /** What is not prepared() yet, then final name, fsync of the directory. Rejects with E_EXISTS, E_IO, E_NO_SPACE. */
  async commit(): Promise<number> {
    const size = await this.prepare()
    const file = this.#file
    await this.#takeName()
    this.#handle = undefined
    await file.close()
    await syncDirectory(dirname(this.path))
    return size
  }

  /** Takes the final name back, where commit() did not replace anything under it. */
  async withdraw(): Promise<void> {
    if (this.#options.force !== true) await this.#naming(unlink(this.path))
  }

  /** Leaves the temporary where it is; after commit() nothing. */
  async keep(): Promise<void> {
    const file = this.#handle
    if (file === undefined) return
    this.#handle = undefined
    await this.#writeBackDone
    await file.close()
  }

  /** Removes the temporary; after commit() and keep() nothing. */
  async [Symbol.asyncDispose](): Promise<void> {
    const file = this.#handle
    if (file === undefined) return
    this.#handle = undefined
    await this.#writeBackDone
    await unlink(this.#temporary).catch((error: unknown) => {
      if (!isErrno(error, 'ENOENT')) throw error
    })
    await file.close()
  }

  async #takeName(): Promise<void> {
    if (this.#options.force === true) {
      await this.#naming(rename(this.#temporary, this.path))
      return
    }
    // link(2) refuses a name that is taken, atomically, on every file system
    // that has links; the others answer EPERM and get the small window.
    try {
      await link(this.#temporary, this.path)
      await unlink(this.#temporary)
    } catch (error) {
      if (isErrno(error, 'EEXIST')) throw taken(this.path)
      if (!isErrno(error, 'EPERM') && !isErrno(error, 'ENOTSUP') && !isErrno(error, 'ENOSYS')) throw this.#named(error)
      await refuseTaken(this.#path, this.#options.force)
      await this.#naming(rename(this.#temporary, this.path))
    }
  }

  async #naming<T>(work: Promise<T>): Promise<T> {
    return await naming(this.path, work)
  }

  #named(error: unknown): BackupError {
    return named(this.path, error)
  }
}

/**
 * Opens what an interrupted writer left, or a new file, and locks it: of two
 * that want to go on one gets E_LOCKED. What is read from it afterwards is what
 * the disk has, not what the page cache has of a write that failed.
 */
async function openPartial(path: string, final: string): Promise<{ handle: FileHandle; isAdopted: boolean }> {
  const { O_RDWR, O_CREAT, O_EXCL, O_NOFOLLOW } = constants
  const there = await open(path, O_RDWR | O_NOFOLLOW).catch((error: unknown) => {
    if (isErrno(error, 'ENOENT')) return undefined
    throw named(path, error)
  })
  const handle = there ?? (await naming(path, open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600)))
  try {
    if (!native().flock(handle.fd, 2)) throw inUse(path)
    if (there === undefined) return { handle, isAdopted: false }
    const found = await handle.stat()
    // Killed between the two steps of taking its name.
    const other = found.nlink === 2 ? await lstat(final).catch(() => undefined) : undefined
    if (other?.ino === found.ino && other.dev === found.dev) await unlink(final)
    const { ino, dev, nlink } = await lstat(path)
    if (!found.isFile() || ino !== found.ino || dev !== found.dev || nlink !== 1) {
      throw new BackupError('E_REFUSED', `${path} is not the file that an interrupted restore left`, {
        hints: ['Restore to another directory.'],
      })
    }
    await handle.datasync()
    // One that was killed right after it had made the file left nothing in it.
    if (found.size > 0) await native().dropCache(handle.fd, 0, found.size)
    return { handle, isAdopted: true }
  } catch (error) {
    await handle.close()
    throw named(path, error)
  }
}

function inUse(path: string): BackupError {
  return new BackupError('E_LOCKED', `${path} is being written by another restore`, {
    hints: ['Wait for it, or end it.'],
  })
}

/** Removes what an interrupted writer left. Rejects with E_LOCKED where one still writes there, E_IO. */
export async function removePartial(path: string): Promise<void> {
  const there = await open(path, constants.O_RDWR | constants.O_NOFOLLOW).catch(() => undefined)
  if (there === undefined) return
  try {
    if (!native().flock(there.fd, 2)) throw inUse(path)
    await naming(path, unlink(path))
  } finally {
    await there.close()
  }
}

export async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, constants.O_RDONLY | constants.O_DIRECTORY)
  try {
    await directory.sync()
  } finally {
    await directory.close()
  }
}

async function refuseTaken(path: string, force: boolean | undefined): Promise<void> {
  const found = await lstat(path).catch((error: unknown) => {
    if (isErrno(error, 'ENOENT')) return undefined
    throw named(path, error)
  })
  if (found === undefined) return
  if (force !== true) throw taken(path)
  if (!found.isFile()) {
    throw new BackupError('E_REFUSED', `${path} is not a regular file`, {
      hints: ['Remove it yourself, or restore to another directory.'],
    })
  }
}

function taken(path: string): BackupError {
  return new BackupError('E_EXISTS', `${path} exists`, {
    hints: ['Restore to another directory with --to, or replace it with --force.'],
  })
}

export function isErrno(error: unknown, code: string): boolean {
  return error instanceof Error && 'code' in error && error.code === code
}

async function naming<T>(path: string, work: Promise<T>): Promise<T> {
  try {
    return await work
  } catch (error) {
    throw named(path, error)
  }
}

/** An operating system's error as one of ours that names the file. */
export function named(path: string, error: unknown): BackupError {
  if (error instanceof BackupError) return error
  const code = errorCodeOf(error)
  const hints = code === 'E_NO_SPACE' ? ['Free space there, or restore to another directory with --to.'] : []
  return new BackupError(code === 'E_INTERNAL' ? 'E_IO' : code, `${path}: ${messageOf(error)}`, { cause: error, hints })
}
