import { type FileHandle, mkdir, open, readdir, readFile, rename, stat, unlink } from 'node:fs/promises'
import { join } from 'node:path'

import { BackupError } from './errors.js'
import { sameBytes } from './hex.js'

/** Files and directories are ours alone: a store holds whole machines. */
const FILE_MODE = 0o600
const DIRECTORY_MODE = 0o700

/** Write-back is started, and the page cache let go, after this much. */
const DROP_CACHE_BYTES = 8 * 1024 * 1024

/**
 * Every durable write of the program. What is not synced (`sync` for content,
 * `syncDirectory` for names) may be lost, torn or kept in any combination when
 * the power goes; test/fakes/simulated-fs.ts does exactly that.
 *
 * Failures of the system are BackupErrors: E_NO_SPACE, E_NOT_FOUND, E_REFUSED
 * (permissions, read-only), E_IO. A sync that fails condemns the file: it is
 * never tried again, because Linux forgets what it could not write.
 */
export interface DurableFs {
  /** One directory; its parent must exist and is not synced. false where it was there. */
  makeDirectory(path: string): Promise<boolean>
  /** Creates a file that must not exist (E_EXISTS) for appending. */
  createFile(path: string): Promise<AppendFile>
  /** E_NOT_FOUND where there is none. */
  openFile(path: string): Promise<ReadFile>
  /** A small whole file; undefined where there is none. */
  readWhole(path: string): Promise<Uint8Array | undefined>
  /** Bytes; undefined where there is none. */
  fileSize(path: string): Promise<number | undefined>
  /** Names in a directory, unordered. E_NOT_FOUND where there is none: an absent directory is not an empty one. */
  list(path: string): Promise<string[]>
  /** Atomically; false (and nothing done) where `to` exists. */
  renameNoReplace(from: string, to: string): Promise<boolean>
  /** Atomically; replaces `to`. */
  renameReplace(from: string, to: string): Promise<void>
  /** false where there was none. */
  remove(path: string): Promise<boolean>
  /** Makes the names in a directory durable. */
  syncDirectory(path: string): Promise<void>
  /**
   * flock on a file that is created where absent, without waiting; undefined
   * where another holder is in the way. Ends with the process.
   */
  lock(path: string, mode: 'shared' | 'exclusive'): Promise<FileLock | undefined>
}

export interface AppendFile {
  /** Bytes appended so far. */
  readonly size: number
  /** Writes all of `bytes`, whatever the system takes at once. One call at a time. */
  append(bytes: Uint8Array): Promise<void>
  /** Makes the content durable (not the name). */
  sync(): Promise<void>
  /** Idempotent. */
  close(): Promise<void>
}

export interface ReadFile {
  readonly size: number
  /** Fills `into` from `offset`; gives the bytes read, fewer only at the end of the file. */
  read(into: Uint8Array, offset: number): Promise<number>
  /** Idempotent. */
  close(): Promise<void>
}

export interface FileLock extends AsyncDisposable {
  /** Whether `path` names the file that is locked. */
  isNamed(path: string): Promise<boolean>
}

/** System calls that Node does not offer; the addon has them. */
export interface FileSystemCalls {
  /** flock without waiting; false where another holder is in the way. `mode` 1 shared, 2 exclusive. */
  flock(fd: number, mode: 0 | 1 | 2): boolean
  /** renameat2 with RENAME_NOREPLACE; false where `to` exists. */
  renameNoReplace(from: string, to: string): boolean
  /** Starts write-back of a part of a file and lets its pages go. */
  dropCache(fd: number, offset: number, length: number): Promise<void>
}

/** The real one. */
export const localFs = (system: FileSystemCalls): DurableFs => ({
  async makeDirectory(path) {
    try {
      await mkdir(path, { mode: DIRECTORY_MODE })
      return true
    } catch (error) {
      if (systemCode(error) === 'EEXIST') return false
      throw systemFailure(error, `cannot create the directory ${path}`)
    }
  },

  createFile: async path =>
    new LocalAppendFile(system, path, await attempt(() => open(path, 'wx', FILE_MODE), `cannot create ${path}`)),

  async openFile(path) {
    const handle = await attempt(() => open(path, 'r'), `cannot open ${path}`)
    try {
      return new LocalReadFile(path, handle, (await handle.stat()).size)
    } catch (error) {
      await handle.close()
      throw systemFailure(error, `cannot open ${path}`)
    }
  },

  readWhole: path => unlessAbsent(() => readFile(path), `cannot read ${path}`),
  fileSize: async path => (await unlessAbsent(() => stat(path), `cannot look at ${path}`))?.size,
  list: path => attempt(() => readdir(path), `cannot list ${path}`),
  renameNoReplace: (from, to) =>
    attempt(() => Promise.resolve(system.renameNoReplace(from, to)), `cannot rename ${from} to ${to}`),
  renameReplace: (from, to) => attempt(() => rename(from, to), `cannot rename ${from} to ${to}`),
  remove: async path => (await unlessAbsent(() => unlink(path).then(() => true), `cannot remove ${path}`)) ?? false,

  async syncDirectory(path) {
    const handle = await attempt(() => open(path, 'r'), `cannot open ${path}`)
    try {
      await attempt(() => handle.sync(), `cannot sync the directory ${path}`)
    } finally {
      await handle.close()
    }
  },

  async lock(path, mode) {
    const handle = await attempt(() => open(path, 'a+', FILE_MODE), `cannot open the lock ${path}`)
    let locked = false
    try {
      locked = system.flock(handle.fd, mode === 'shared' ? 1 : 2)
    } catch (error) {
      throw systemFailure(error, `cannot lock ${path}`)
    } finally {
      if (!locked) await handle.close()
    }
    return locked ? new LocalLock(handle) : undefined
  },
})

/** Creates `path` below an existing `root`, one durable level at a time. */
export async function makeDirectoryPath(fs: DurableFs, root: string, names: readonly string[]): Promise<void> {
  let path = root
  for (const name of names) {
    const parent = path
    path = join(path, name)
    // Synced also where it was there: whoever made it may not have come to that yet.
    await fs.makeDirectory(path)
    await fs.syncDirectory(parent)
  }
}

export interface WholeFile {
  readonly directory: string
  readonly name: string
  /** Name of the file while it is incomplete, in the same directory; must be unique. */
  readonly temporary: string
  readonly bytes: Uint8Array
  /** keep: an existing file wins, and the call gives false. */
  readonly existing: 'keep' | 'replace'
}

/**
 * Makes a whole file appear at once and durably: written aside, synced, read
 * back and compared, renamed, directory synced. On failure the name is as
 * before, or (where only the last sync failed) as after.
 */
export async function publishFile(fs: DurableFs, file: WholeFile): Promise<boolean> {
  const temporary = join(file.directory, file.temporary)
  const path = join(file.directory, file.name)
  const handle = await fs.createFile(temporary)
  let published = false
  try {
    try {
      await handle.append(file.bytes)
      await handle.sync()
    } finally {
      await handle.close()
    }
    const written = await fs.readWhole(temporary)
    if (written === undefined || !sameBytes(written, file.bytes)) {
      throw new BackupError('E_IO', `${temporary} does not read back as it was written`)
    }
    if (file.existing === 'replace') {
      await fs.renameReplace(temporary, path)
      published = true
    } else {
      published = await fs.renameNoReplace(temporary, path)
    }
    if (published) await fs.syncDirectory(file.directory)
  } finally {
    if (!published) await fs.remove(temporary).catch(() => false)
  }
  return published
}

class LocalAppendFile implements AppendFile {
  readonly #system: FileSystemCalls
  readonly #path: string
  readonly #handle: FileHandle
  #size = 0
  #dropped = 0
  #failed = false
  #open = true

  constructor(system: FileSystemCalls, path: string, handle: FileHandle) {
    this.#system = system
    this.#path = path
    this.#handle = handle
  }

  get size(): number {
    return this.#size
  }

  async append(bytes: Uint8Array): Promise<void> {
    this.#refuseFailed()
    let done = 0
    while (done < bytes.length) {
      // A full disk gives a short count first, and only then the error.
      const { bytesWritten } = await this.#step(() => this.#handle.write(bytes, done, bytes.length - done, this.#size))
      if (bytesWritten === 0) throw new BackupError('E_IO', `${this.#path} takes no more bytes`)
      done += bytesWritten
      this.#size += bytesWritten
    }
    if (this.#size - this.#dropped >= DROP_CACHE_BYTES) {
      await this.#letGo(this.#dropped)
    }
  }

  async sync(): Promise<void> {
    this.#refuseFailed()
    await this.#step(() => this.#handle.sync())
    const { size } = await this.#step(() => this.#handle.stat())
    if (size !== this.#size) {
      this.#failed = true
      throw new BackupError('E_IO', `${this.#path} has ${size} bytes where ${this.#size} were written`)
    }
    if (this.#size >= DROP_CACHE_BYTES) await this.#letGo(0)
  }

  async close(): Promise<void> {
    if (!this.#open) return
    this.#open = false
    await attempt(() => this.#handle.close(), `cannot close ${this.#path}`)
  }

  /** Keeps the host's page cache for its guests. A failed write-back shows here, and only here. */
  async #letGo(from: number): Promise<void> {
    this.#dropped = this.#size
    await this.#step(async () => {
      try {
        await this.#system.dropCache(this.#handle.fd, from, this.#size - from)
      } catch (error) {
        if (systemCode(error) !== 'E_UNSUPPORTED') throw error
      }
    })
  }

  async #step<T>(work: () => Promise<T>): Promise<T> {
    try {
      return await work()
    } catch (error) {
      this.#failed = true
      throw systemFailure(error, `cannot write ${this.#path}`)
    }
  }

  #refuseFailed(): void {
    if (this.#failed) throw new BackupError('E_IO', `${this.#path} failed before and is not written to again`)
  }
}

class LocalReadFile implements ReadFile {
  readonly size: number
  readonly #path: string
  readonly #handle: FileHandle
  #open = true

  constructor(path: string, handle: FileHandle, size: number) {
    this.#path = path
    this.#handle = handle
    this.size = size
  }

  async read(into: Uint8Array, offset: number): Promise<number> {
    let done = 0
    while (done < into.length) {
      const { bytesRead } = await attempt(
        () => this.#handle.read(into, done, into.length - done, offset + done),
        `cannot read ${this.#path} at ${offset + done}`,
      )
      if (bytesRead === 0) break
      done += bytesRead
    }
    return done
  }

  async close(): Promise<void> {
    if (!this.#open) return
    this.#open = false
    await this.#handle.close()
  }
}

class LocalLock implements FileLock {
  readonly #handle: FileHandle
  #open = true

  constructor(handle: FileHandle) {
    this.#handle = handle
  }

  async isNamed(path: string): Promise<boolean> {
    if (!this.#open) return false
    const named = await unlessAbsent(() => stat(path), `cannot look at ${path}`)
    if (named === undefined) return false
    const held = await this.#handle.stat()
    return held.ino === named.ino && held.dev === named.dev
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#open) return
    this.#open = false
    await this.#handle.close()
  }
}

async function attempt<T>(work: () => Promise<T>, what: string): Promise<T> {
  try {
    return await work()
  } catch (error) {
    throw systemFailure(error, what)
  }
}

async function unlessAbsent<T>(work: () => Promise<T>, what: string): Promise<T | undefined> {
  try {
    return await work()
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return undefined
    throw systemFailure(error, what)
  }
}

function systemCode(error: unknown): string | undefined {
  return error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : undefined
}

/** What a failed system call is to a user. */
function systemFailure(error: unknown, what: string): BackupError {
  if (error instanceof BackupError) return error
  const cause = error instanceof Error ? error : new Error(String(error))
  const why = cause.message
  switch (systemCode(error)) {
    case 'ENOSPC':
    case 'EDQUOT':
    case 'E_NO_SPACE':
      return new BackupError('E_NO_SPACE', `${what}: no space left`, { cause, why })
    case 'ENOENT':
      return new BackupError('E_NOT_FOUND', `${what}: there is none`, { cause, why })
    case 'EEXIST':
      return new BackupError('E_EXISTS', `${what}: it exists`, { cause, why })
    case 'EACCES':
    case 'EPERM':
    case 'EROFS':
      return new BackupError('E_REFUSED', `${what}: not allowed`, { cause, why })
    case undefined:
    default:
      return new BackupError('E_IO', what, { cause, why })
  }
}
