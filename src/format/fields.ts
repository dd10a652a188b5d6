import { expectIntact } from './damage.js'

/** One decoded map whose fields are taken out one by one, each checked. Unknown keys are ignored. */
export class Fields {
  readonly #map: Record<string, unknown>
  readonly #what: string

  /** Throws E_DAMAGED where `value` is no map. */
  constructor(value: unknown, what: string) {
    expectIntact(
      typeof value === 'object' && value !== null && !Array.isArray(value) && !ArrayBuffer.isView(value),
      what,
      'not a map',
    )
    this.#map = value as Record<string, unknown>
    this.#what = what
  }

  has(key: string): boolean {
    return this.#get(key) !== undefined
  }

  /** The value as it came, nothing checked. */
  raw(key: string): unknown {
    return this.#get(key)
  }

  text(key: string): string {
    const value = this.#get(key)
    expectIntact(typeof value === 'string', this.#what, `${key} is no text`)
    return value
  }

  optionalText(key: string): string | undefined {
    return this.#get(key) === undefined ? undefined : this.text(key)
  }

  oneOf<T extends string>(key: string, choices: readonly T[]): T {
    const value = this.#get(key)
    const found = choices.find(choice => choice === value)
    expectIntact(found !== undefined, this.#what, `${key} is none of ${choices.join(', ')}`)
    return found
  }

  /** A whole number from 0 that JavaScript holds exactly. */
  count(key: string): number {
    const value = this.#get(key)
    const number = typeof value === 'bigint' ? Number(value) : value
    expectIntact(
      typeof number === 'number' && Number.isSafeInteger(number) && number >= 0,
      this.#what,
      `${key} is no count`,
    )
    return number
  }

  optionalCount(key: string): number | undefined {
    return this.#get(key) === undefined ? undefined : this.count(key)
  }

  flag(key: string): boolean {
    const value = this.#get(key)
    expectIntact(typeof value === 'boolean', this.#what, `${key} is no flag`)
    return value
  }

  optionalFlag(key: string): boolean | undefined {
    return this.#get(key) === undefined ? undefined : this.flag(key)
  }

  /** Exactly `length` bytes, copied. */
  bytes(key: string, length: number): Uint8Array {
    const value = this.#get(key)
    expectIntact(value instanceof Uint8Array && value.length === length, this.#what, `${key} is not ${length} bytes`)
    return Uint8Array.from(value)
  }

  texts(key: string): string[] {
    return this.#array(key).map(value => {
      expectIntact(typeof value === 'string', this.#what, `${key} holds something that is no text`)
      return value
    })
  }

  optionalTexts(key: string): string[] | undefined {
    return this.#get(key) === undefined ? undefined : this.texts(key)
  }

  map<T>(key: string, decode: (fields: Fields) => T): T {
    return decode(new Fields(this.#get(key), `${this.#what}, ${key}`))
  }

  optionalMap<T>(key: string, decode: (fields: Fields) => T): T | undefined {
    return this.#get(key) === undefined ? undefined : this.map(key, decode)
  }

  maps<T>(key: string, decode: (fields: Fields) => T): T[] {
    return this.#array(key).map(value => decode(new Fields(value, `${this.#what}, ${key}`)))
  }

  #array(key: string): unknown[] {
    const value = this.#get(key)
    expectIntact(Array.isArray(value), this.#what, `${key} is no list`)
    return value as unknown[]
  }

  #get(key: string): unknown {
    const value = Object.hasOwn(this.#map, key) ? this.#map[key] : undefined
    return value === null ? undefined : value
  }
}
