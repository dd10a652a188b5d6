import { invariant } from '../base/invariant.js'

/** 32-bit words of an id. */
export const ID_WORDS = 8

/**
 * A set of ids that numbers its members from 0 in order of arrival: an open
 * hash table without an object per id. Ids are hashes, so one of their words
 * will do for a hash.
 */
export class IdTable {
  #words = new Uint32Array(0)
  #slots = new Int32Array(0)
  #mask = 0
  #count = 0

  /** Room for at most `capacity` ids. */
  constructor(capacity: number) {
    this.reset(capacity)
  }

  /** Forgets all ids and makes room for at most `capacity`; keeps its memory for them. */
  reset(capacity: number): void {
    let slots = 16
    while (slots < capacity * 2) slots *= 2
    if (capacity * ID_WORDS > this.#words.length) this.#words = new Uint32Array(capacity * ID_WORDS)
    if (slots > this.#slots.length) this.#slots = new Int32Array(slots)
    else this.#slots.fill(0, 0, slots)
    this.#mask = slots - 1
    this.#count = 0
  }

  get count(): number {
    return this.#count
  }

  /** The ids in order of their numbers, 32 bytes each. */
  get ids(): Uint8Array {
    return new Uint8Array(this.#words.buffer, 0, this.#count * ID_WORDS * 4)
  }

  /** The number of the id at word `at` of `source`; a new one where it was not there. */
  add(source: Uint32Array, at: number): number {
    const slot = this.#slotOf(source, at)
    const found = this.#slots[slot] ?? 0
    if (found > 0) return found - 1
    invariant((this.#count + 1) * ID_WORDS <= this.#words.length, 'an id table holds no more than it was made for')
    for (let word = 0; word < ID_WORDS; word++) {
      this.#words[this.#count * ID_WORDS + word] = source[at + word] ?? 0
    }
    this.#slots[slot] = ++this.#count
    return this.#count - 1
  }

  /** -1 where it is not there. */
  find(source: Uint32Array, at: number): number {
    return (this.#slots[this.#slotOf(source, at)] ?? 0) - 1
  }

  #slotOf(source: Uint32Array, at: number): number {
    // The first word has the byte that partitions share.
    let slot = (source[at + 1] ?? 0) & this.#mask
    for (let entry = this.#slots[slot] ?? 0; entry > 0; entry = this.#slots[slot] ?? 0) {
      if (this.#isAt(entry - 1, source, at)) break
      slot = (slot + 1) & this.#mask
    }
    return slot
  }

  #isAt(number: number, source: Uint32Array, at: number): boolean {
    for (let word = 0; word < ID_WORDS; word++) {
      if (this.#words[number * ID_WORDS + word] !== source[at + word]) return false
    }
    return true
  }
}
