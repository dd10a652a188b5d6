import { dirname, join } from 'node:path'

import { type AppendFile, type DurableFs, type ReadFile, makeDirectoryPath, publishFile } from '../base/durable-fs.js'
import { BackupError, errorCodeOf } from '../base/errors.js'
import { isHex, toHex } from '../base/hex.js'
import type { RandomSource } from '../base/random.js'
import type { ObjectStore, ObjectWriter } from './object-store.js'

/** Open files kept for reading. */
const MAX_OPEN_FILES = 64
const TEMPORARY_PREFIX = '.tmp-'

/** Whether a file is what an interrupted write left; it means nothing and may be removed once its writer is dead. */
export function isLeftover(name: string): boolean {
  return name.startsWith(TEMPORARY_PREFIX) && isHex(name.slice(TEMPORARY_PREFIX.length), 32)
}

export interface LocalObjectsOptions {
  readonly fs: DurableFs
  readonly root: string
  readonly random: RandomSource
}

/** Objects as files below a directory. */
export class LocalObjects implements ObjectStore {
  readonly location: string
  readonly #fs: DurableFs
  readonly #random: RandomSource
  /** Directories that were made durable by this process. */
  readonly #directories = new Set<string>()
  /** Least recently used first. */
  readonly #open = new Map<string, OpenFile>()

  constructor(options: LocalObjectsOptions) {
    this.location = options.root
    this.#fs = options.fs
    this.#random = options.random
  }

  async create(key: string): Promise<ObjectWriter> {
    await this.#makeFolder(dirname(key))
    return new LocalWriter(this.#fs, this.#path(key), await this.#fs.createFile(this.#path(key)))
  }

  putNew(key: string, bytes: Uint8Array): Promise<boolean> {
    return this.#publish(key, bytes, 'keep')
  }

  async replace(key: string, bytes: Uint8Array): Promise<void> {
    await this.#publish(key, bytes, 'replace')
    await this.#forget(key)
  }

  get(key: string): Promise<Uint8Array | undefined> {
    return this.#fs.readWhole(this.#path(key))
  }

  size(key: string): Promise<number | undefined> {
    return this.#fs.fileSize(this.#path(key))
  }

  async read(key: string, into: Uint8Array, offset: number): Promise<number | undefined> {
    const entry = this.#acquire(key)
    try {
      const file = await entry.file
      return await file.read(into, offset)
    } catch (error) {
      this.#open.delete(key)
      entry.stale = true
      if (errorCodeOf(error) === 'E_NOT_FOUND') return undefined
      throw error
    } finally {
      entry.users--
      await closeIfUnused(entry)
    }
  }

  async list(folder: string): Promise<string[]> {
    const keys: string[] = []
    const pending = [folder]
    for (let next = pending.pop(); next !== undefined; next = pending.pop()) {
      for (const name of await this.#names(next, next !== folder)) {
        if (name.startsWith(TEMPORARY_PREFIX)) continue
        // Every object's name has a dot, no folder's has.
        if (name.includes('.')) keys.push(`${next}/${name}`)
        else pending.push(`${next}/${name}`)
      }
    }
    return keys.sort()
  }

  async remove(key: string): Promise<boolean> {
    const removed = await this.#fs.remove(this.#path(key))
    if (removed) await this.#fs.syncDirectory(dirname(this.#path(key)))
    await this.#forget(key)
    return removed
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const key of [...this.#open.keys()]) await this.#forget(key)
  }

  async #publish(key: string, bytes: Uint8Array, existing: 'keep' | 'replace'): Promise<boolean> {
    const folder = dirname(key)
    await this.#makeFolder(folder)
    return publishFile(this.#fs, {
      directory: join(this.location, folder),
      name: key.slice(key.lastIndexOf('/') + 1),
      temporary: `${TEMPORARY_PREFIX}${toHex(this.#random(16))}`,
      bytes,
      existing,
    })
  }

  async #makeFolder(folder: string): Promise<void> {
    if (folder === '.' || this.#directories.has(folder)) return
    await makeDirectoryPath(this.#fs, this.location, folder.split('/'))
    this.#directories.add(folder)
  }

  async #names(folder: string, mayBeGone: boolean): Promise<string[]> {
    try {
      return await this.#fs.list(join(this.location, folder))
    } catch (error) {
      if (errorCodeOf(error) !== 'E_NOT_FOUND') throw error
      // A folder seen a moment ago can only have been removed on purpose.
      if (mayBeGone || folder.includes('/')) return []
      throw new BackupError('E_DAMAGED', `${join(this.location, folder)} is missing`, {
        cause: error,
        why: 'A store always has this directory. Something removed it, or something else is mounted here.',
      })
    }
  }

  #acquire(key: string): OpenFile {
    let entry = this.#open.get(key)
    if (entry === undefined) {
      entry = { file: this.#fs.openFile(this.#path(key)), users: 0, stale: false }
      // Whoever reads awaits it; nobody reading must not be an unhandled rejection.
      entry.file.catch(() => undefined)
    }
    entry.users++
    this.#open.delete(key)
    this.#open.set(key, entry)
    for (const [oldest, old] of this.#open) {
      if (this.#open.size <= MAX_OPEN_FILES) break
      this.#open.delete(oldest)
      old.stale = true
      void closeIfUnused(old)
    }
    return entry
  }

  async #forget(key: string): Promise<void> {
    const entry = this.#open.get(key)
    if (entry === undefined) return
    this.#open.delete(key)
    entry.stale = true
    await closeIfUnused(entry)
  }

  #path(key: string): string {
    return join(this.location, key)
  }
}

interface OpenFile {
  readonly file: Promise<ReadFile>
  users: number
  /** No longer in the table: the last user closes it. */
  stale: boolean
}

async function closeIfUnused(entry: OpenFile): Promise<void> {
  if (!entry.stale || entry.users > 0) return
  await entry.file.then(
    file => file.close(),
    () => undefined,
  )
}

class LocalWriter implements ObjectWriter {
  readonly #fs: DurableFs
  readonly #path: string
  readonly #file: AppendFile

  constructor(fs: DurableFs, path: string, file: AppendFile) {
    this.#fs = fs
    this.#path = path
    this.#file = file
  }

  get size(): number {
    return this.#file.size
  }

  append(bytes: Uint8Array): Promise<void> {
    return this.#file.append(bytes)
  }

  async seal(): Promise<void> {
    try {
      await this.#file.sync()
    } finally {
      await this.#file.close()
    }
    await this.#fs.syncDirectory(dirname(this.#path))
  }

  async abandon(): Promise<void> {
    try {
      await this.#file.close()
      await this.#fs.remove(this.#path)
    } catch {
      // What stays is an unsealed pack, which gc removes.
    }
  }
}
