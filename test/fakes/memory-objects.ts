import { BackupError } from '../../src/base/errors.js'
import type { ObjectStore, ObjectWriter } from '../../src/store/object-store.js'

/** An object store in a map. */
export class MemoryObjects implements ObjectStore {
  readonly location = 'memory'
  readonly #objects = new Map<string, Buffer>()

  async create(key: string): Promise<ObjectWriter> {
    await Promise.resolve()
    if (this.#objects.has(key)) throw new BackupError('E_EXISTS', `${key} exists`)
    const objects = this.#objects
    objects.set(key, Buffer.alloc(0))
    return {
      get size() {
        return objects.get(key)?.length ?? 0
      },
      append: async bytes => {
        await Promise.resolve()
        objects.set(key, Buffer.concat([objects.get(key) ?? Buffer.alloc(0), bytes]))
      },
      seal: () => Promise.resolve(),
      abandon: async () => {
        await Promise.resolve()
        objects.delete(key)
      },
    }
  }

  async putNew(key: string, bytes: Uint8Array): Promise<boolean> {
    await Promise.resolve()
    if (this.#objects.has(key)) return false
    this.#objects.set(key, Buffer.from(bytes))
    return true
  }

  async replace(key: string, bytes: Uint8Array): Promise<void> {
    await Promise.resolve()
    this.#objects.set(key, Buffer.from(bytes))
  }

  async get(key: string): Promise<Uint8Array | undefined> {
    await Promise.resolve()
    return this.#objects.get(key)
  }

  async size(key: string): Promise<number | undefined> {
    await Promise.resolve()
    return this.#objects.get(key)?.length
  }

  async read(key: string, into: Uint8Array, offset: number): Promise<number | undefined> {
    await Promise.resolve()
    const bytes = this.#objects.get(key)
    return bytes?.copy(into, 0, Math.min(offset, bytes.length))
  }

  async list(folder: string): Promise<string[]> {
    await Promise.resolve()
    return [...this.#objects.keys()].filter(key => key.startsWith(`${folder}/`)).sort()
  }

  async remove(key: string): Promise<boolean> {
    await Promise.resolve()
    return this.#objects.delete(key)
  }

  [Symbol.asyncDispose](): Promise<void> {
    return Promise.resolve()
  }
}
