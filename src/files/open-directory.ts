import { constants } from 'node:fs'
import { type FileHandle, lstat, open, opendir, readlink } from 'node:fs/promises'

import { BackupError } from '../base/errors.js'

/** Links on the way to one file; more are a circle. */
const MAX_LINKS = 40
const DIRECTORY = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW

export interface NamedStats {
  readonly mode: number
  readonly size: number
  readonly uid: number
  readonly gid: number
  readonly ino: number
  readonly mtimeMs: number
  isFile(): boolean
  isDirectory(): boolean
  isSymbolicLink(): boolean
}

/**
 * A directory held open, through which all below it is reached by single
 * names: no path is ever put together that a link could lead elsewhere. Names
 * are bytes, as the guest has them.
 */
export class OpenDirectory implements AsyncDisposable {
  readonly #handle: FileHandle

  private constructor(handle: FileHandle) {
    this.#handle = handle
  }

  /** The directory itself may be reached through links: the caller chose it. */
  static async at(path: string): Promise<OpenDirectory> {
    return new OpenDirectory(await open(path, constants.O_RDONLY | constants.O_DIRECTORY))
  }

  /** Where `name` is for calls that take paths; its last part is the name itself. */
  pathOf(name: Buffer): Buffer {
    if (!isPlainName(name)) throw new BackupError('E_REFUSED', 'the file system has a name that no file can have')
    return Buffer.concat([Buffer.from(`${this.#self()}/`), name])
  }

  /** Rejects with ELOOP or ENOTDIR for what is no directory, a link to one included. */
  async directory(name: Buffer): Promise<OpenDirectory> {
    return new OpenDirectory(await open(this.pathOf(name), DIRECTORY))
  }

  /** Opens a plain file and nothing else: no link is followed, no device or pipe is touched. */
  async file(name: Buffer): Promise<FileHandle> {
    const handle = await open(
      this.pathOf(name),
      constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK | constants.O_NOCTTY,
    )
    if ((await handle.stat()).isFile()) return handle
    await handle.close()
    throw new BackupError('E_REFUSED', 'it is no plain file')
  }

  async stat(name: Buffer): Promise<NamedStats> {
    return await lstat(this.pathOf(name))
  }

  /** undefined where there is nothing of this name. */
  async find(name: Buffer): Promise<NamedStats | undefined> {
    return await this.stat(name).catch((error: unknown) => {
      if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return undefined
      throw error
    })
  }

  async link(name: Buffer): Promise<Buffer> {
    return await readlink(this.pathOf(name), { encoding: 'buffer' })
  }

  /** All names, in no order. */
  async *names(): AsyncGenerator<Buffer> {
    // The types of Node know the option for readdir() only.
    const directory = await opendir(`${this.#self()}/`, { encoding: 'buffer' as BufferEncoding })
    for await (const entry of directory) yield Buffer.from(entry.name)
  }

  async stats(): Promise<NamedStats> {
    return await this.#handle.stat()
  }

  async setMode(mode: number): Promise<void> {
    await this.#handle.chmod(mode)
  }

  async setOwner(uid: number, gid: number): Promise<void> {
    await this.#handle.chown(uid, gid)
  }

  async setTime(mtimeMs: number): Promise<void> {
    await this.#handle.utimes(mtimeMs / 1000, mtimeMs / 1000)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#handle.close()
  }

  #self(): string {
    return `/proc/self/fd/${this.#handle.fd}`
  }
}

/** Something in a guest: its name in an open directory, or a directory itself (the root has no name). */
export interface Located extends AsyncDisposable {
  readonly parent: OpenDirectory
  readonly name: Buffer | undefined
}

/**
 * Finds a path in the guest's tree as the guest itself would: links on the way,
 * the last one included, lead from the guest's root, never from ours. Rejects
 * with E_NOT_FOUND.
 */
export async function locate(root: string, path: readonly string[]): Promise<Located> {
  const wanted = path.map(name => Buffer.from(name))
  let links = 0
  let stack = [await OpenDirectory.at(root)]
  const close = async () => {
    for (const directory of stack.splice(0)) await directory[Symbol.asyncDispose]()
  }
  try {
    for (;;) {
      const parent = stack.at(-1)
      const name = wanted.shift()
      if (parent === undefined) throw notFound(path)
      if (name === undefined) return { parent, name: undefined, [Symbol.asyncDispose]: close }
      if (name.equals(DOT_DOT)) {
        if (stack.length > 1) await stack.pop()?.[Symbol.asyncDispose]()
        continue
      }
      const stats = await parent.find(name)
      if (stats === undefined) throw notFound(path)
      if (stats.isSymbolicLink()) {
        if (++links > MAX_LINKS) throw new BackupError('E_NOT_FOUND', `links lead in a circle: ${shown(path)}`)
        const target = await parent.link(name)
        if (target[0] === SLASH) {
          const [first, ...rest] = stack
          for (const directory of rest) await directory[Symbol.asyncDispose]()
          stack = first === undefined ? [] : [first]
        }
        wanted.unshift(...split(target))
        continue
      }
      if (wanted.length === 0) return { parent, name, [Symbol.asyncDispose]: close }
      if (!stats.isDirectory()) throw notFound(path)
      stack.push(await parent.directory(name))
    }
  } catch (error) {
    await close()
    throw error
  }
}

const SLASH = 0x2f
const DOT_DOT = Buffer.from('..')

function split(path: Buffer): Buffer<ArrayBuffer>[] {
  const names: Buffer<ArrayBuffer>[] = []
  for (let from = 0; from <= path.length; ) {
    const slash = path.indexOf(SLASH, from)
    const end = slash < 0 ? path.length : slash
    const name = Buffer.from(path.subarray(from, end))
    if (name.length > 0 && !(name.length === 1 && name[0] === 0x2e)) names.push(name)
    from = end + 1
  }
  return names
}

function isPlainName(name: Buffer): boolean {
  const text = name.toString('latin1')
  return text !== '' && text !== '.' && text !== '..' && !/[/\0]/.test(text)
}

function notFound(path: readonly string[]): BackupError {
  return new BackupError('E_NOT_FOUND', `there is no ${shown(path)} in this file system`)
}

function shown(path: readonly string[]): string {
  return `/${path.join('/')}`
}
