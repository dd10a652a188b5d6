import { invariant } from '../base/invariant.js'

/**
 * A uniform random sample of at most `size` indexes out of runs of them whose
 * number is not known beforehand; time and memory grow with the sample, not
 * with the runs' lengths. (Reservoir sampling with skips: Li, "Reservoir-
 * Sampling Algorithms of Time Complexity O(n(1 + log(N/n)))", 1994, algorithm L.)
 *
 * `random` gives numbers in [0, 1).
 */
export class IndexSample {
  readonly #size: number
  readonly #random: () => number
  readonly #kept: number[] = []
  /** Indexes still to be passed over before the next one is taken. */
  #skip = 0
  #weight = 1

  constructor(size: number, random: () => number) {
    invariant(size >= 0, 'a sample has a size')
    this.#size = size
    this.#random = random
  }

  /** Offers the indexes `[first, first + count)`. */
  add(first: number, count: number): void {
    let index = first
    const end = first + count
    while (this.#kept.length < this.#size && index < end) {
      this.#kept.push(index++)
      if (this.#kept.length === this.#size) this.#drawSkip()
    }
    if (this.#size === 0) return
    while (index + this.#skip < end) {
      index += this.#skip
      this.#kept[Math.floor(this.#random() * this.#size)] = index++
      this.#drawSkip()
    }
    if (this.#kept.length === this.#size) this.#skip -= Math.max(0, end - index)
  }

  /** The sample, ascending. */
  indexes(): Float64Array {
    return Float64Array.from(this.#kept).sort()
  }

  #drawSkip(): void {
    // 1 - random is in (0, 1], so that its logarithm is finite.
    this.#weight *= Math.exp(Math.log(1 - this.#random()) / this.#size)
    const draw = Math.floor(Math.log(1 - this.#random()) / Math.log1p(-this.#weight))
    this.#skip = Number.isFinite(draw) ? draw : Number.MAX_SAFE_INTEGER
  }
}
