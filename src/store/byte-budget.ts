/** Back-pressure by bytes: takes wait until what is out leaves room. First come, first served. */
export class ByteBudget {
  readonly #limit: number
  readonly #waiting: { readonly bytes: number; readonly wake: () => void }[] = []
  #taken = 0

  constructor(limitBytes: number) {
    this.#limit = limitBytes
  }

  /** More than the limit is let through alone. Every take needs one give. */
  async take(bytes: number): Promise<void> {
    if (this.#waiting.length === 0 && this.#fits(bytes)) {
      this.#taken += bytes
      return
    }
    await new Promise<void>(wake => this.#waiting.push({ bytes, wake }))
  }

  give(bytes: number): void {
    this.#taken -= bytes
    for (let next = this.#waiting[0]; next !== undefined && this.#fits(next.bytes); next = this.#waiting[0]) {
      this.#waiting.shift()
      this.#taken += next.bytes
      next.wake()
    }
  }

  #fits(bytes: number): boolean {
    return this.#taken === 0 || bytes <= this.#limit - this.#taken
  }
}
