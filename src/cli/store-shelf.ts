import type { Store } from '../store/store.js'

interface Shelved {
  readonly store: Promise<Store>
  users: number
}

/** Open stores, shared by all runs of one process that use them; closed when the last is done. */
export class StoreShelf {
  readonly #shelved = new Map<string, Shelved>()

  /** `open` is called where the store is not open yet. Rejects as it does. */
  async use<T>(name: string, open: () => Promise<Store>, work: (store: Store) => Promise<T>): Promise<T> {
    const one = this.#shelved.get(name) ?? { store: open(), users: 0 }
    this.#shelved.set(name, one)
    one.users++
    try {
      return await work(await one.store)
    } finally {
      one.users--
      if (one.users === 0) {
        this.#shelved.delete(name)
        await one.store.then(
          store => store[Symbol.asyncDispose](),
          () => undefined,
        )
      }
    }
  }
}
