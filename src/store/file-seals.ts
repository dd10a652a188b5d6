import { fromHex } from '../base/hex.js'
import type { RandomSource } from '../base/random.js'
import { SALT_BYTES } from '../format/pack.js'
import type { PointExpectation, PointSeal } from '../format/point.js'
import type { StoreKeys } from './keys.js'

export interface FileSealsOptions {
  readonly keys: StoreKeys
  /** 32 hex characters. */
  readonly storeId: string
  readonly random: RandomSource
}

/** How points, notes and journals are sealed and opened: each file under a key of its own, by a random salt. */
export class FileSeals {
  readonly #keys: StoreKeys
  readonly #storeId: Uint8Array
  readonly #random: RandomSource

  constructor(options: FileSealsOptions) {
    this.#keys = options.keys
    this.#storeId = fromHex(options.storeId)
    this.#random = options.random
  }

  get encrypted(): boolean {
    return this.#keys.idKey !== undefined
  }

  /** For one new file. */
  next(): PointSeal {
    const salt = this.encrypted ? this.#random(SALT_BYTES) : new Uint8Array(SALT_BYTES)
    return { storeId: this.#storeId, salt, key: this.#keys.pointKey(salt) }
  }

  /** For files that are there. */
  expectation(): PointExpectation {
    return { storeId: this.#storeId, key: salt => this.#keys.pointKey(salt) }
  }
}
