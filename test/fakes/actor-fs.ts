import type { AppendFile, DurableFs, FileLock, ReadFile } from '../../src/base/durable-fs.js'

/** What a process that was killed gets for everything it still tries. */
export class Killed extends Error {
  constructor() {
    super('this process is gone')
    this.name = 'Killed'
  }
}

export interface ActorHooks {
  /** Awaited before every change; may kill the actor. */
  readonly before?: ((kind: string, path: string) => Promise<void>) | undefined
  /** What a mutant sees instead of a file. */
  readonly readWhole?: ((path: string) => Uint8Array | 'as it is' | undefined) | undefined
  /** Whether a lock is given without asking. */
  readonly freeLock?: ((path: string, mode: 'shared' | 'exclusive') => boolean) | undefined
}

/** One process's view of a disk that several use: it can be killed, and its locks go with it. */
export class ActorFs implements DurableFs {
  readonly #disk: DurableFs
  readonly #hooks: ActorHooks
  readonly #locks = new Set<FileLock>()
  #isDead = false

  constructor(disk: DurableFs, hooks: ActorHooks = {}) {
    this.#disk = disk
    this.#hooks = hooks
  }

  async kill(): Promise<void> {
    this.#isDead = true
    for (const lock of this.#locks) await lock[Symbol.asyncDispose]()
  }

  async makeDirectory(path: string): Promise<boolean> {
    await this.#change('mkdir', path)
    return this.#disk.makeDirectory(path)
  }

  async createFile(path: string): Promise<AppendFile> {
    await this.#change('create', path)
    const file = await this.#disk.createFile(path)
    const change = (kind: string) => this.#change(kind, path)
    return {
      get size() {
        return file.size
      },
      append: async bytes => {
        await change('append')
        await file.append(bytes)
      },
      sync: async () => {
        await change('sync')
        await file.sync()
      },
      close: () => file.close(),
    }
  }

  openFile(path: string): Promise<ReadFile> {
    this.#refuseDead()
    return this.#disk.openFile(path)
  }

  async readWhole(path: string): Promise<Uint8Array | undefined> {
    this.#refuseDead()
    const seen = this.#hooks.readWhole === undefined ? 'as it is' : this.#hooks.readWhole(path)
    return seen === 'as it is' ? this.#disk.readWhole(path) : seen
  }

  async fileSize(path: string): Promise<number | undefined> {
    this.#refuseDead()
    return this.#disk.fileSize(path)
  }

  async list(path: string): Promise<string[]> {
    this.#refuseDead()
    return this.#disk.list(path)
  }

  async renameNoReplace(from: string, to: string): Promise<boolean> {
    await this.#change('rename', to)
    return this.#disk.renameNoReplace(from, to)
  }

  async renameReplace(from: string, to: string): Promise<void> {
    await this.#change('rename', to)
    return this.#disk.renameReplace(from, to)
  }

  async remove(path: string): Promise<boolean> {
    await this.#change('remove', path)
    return this.#disk.remove(path)
  }

  async syncDirectory(path: string): Promise<void> {
    await this.#change('syncdir', path)
    return this.#disk.syncDirectory(path)
  }

  async lock(path: string, mode: 'shared' | 'exclusive'): Promise<FileLock | undefined> {
    this.#refuseDead()
    if (this.#hooks.freeLock?.(path, mode) === true) {
      return { isNamed: () => Promise.resolve(true), [Symbol.asyncDispose]: () => Promise.resolve() }
    }
    const lock = await this.#disk.lock(path, mode)
    if (lock !== undefined) this.#locks.add(lock)
    return lock
  }

  async #change(kind: string, path: string): Promise<void> {
    this.#refuseDead()
    await this.#hooks.before?.(kind, path)
    this.#refuseDead()
  }

  #refuseDead(): void {
    if (this.#isDead) throw new Killed()
  }
}
