import type { ChunkRun, PlannedRun } from './chunk-plan.js'

/** Chunks that are clean and zero. */
export interface TailRun extends ChunkRun {
  /** The images that are left out hold data there. */
  readonly overData?: true
}

/** More runs than this become one, with what is dirty between them: then too much is compared, never too little. */
const MAX_RUNS = 65_536

/**
 * Of a planned disk, the chunks after which nothing is clean but zeros. That is
 * what an image looks like that was shrunk and grown again: QEMU cuts its dirty
 * bitmaps off and lengthens them with zeros, so that they call clean what is gone.
 *
 *     parent    data  data  data  data
 *     export    data  zero  data  zero
 *     bitmap    ----  ----  dirty ----
 *     tail            ====        ====     neither is data in the parent, or the image was cut
 */
export class CleanTail {
  #runs: TailRun[] = []
  #lastData: number | undefined

  /** Runs in disk order. */
  add({ kind, first, count, clean, isZero, overData }: PlannedRun): void {
    if (kind !== 'inherit' && clean !== true) return
    if ((kind === 'read' || kind === 'inherit') && isZero !== true) {
      this.#runs = []
      this.#lastData = first + count - 1
      return
    }
    if (this.#runs.length === MAX_RUNS) this.#runs = [spanOf(this.#runs)]
    this.#runs.push({ first, count, ...(overData === true ? { overData } : {}) })
  }

  get runs(): readonly TailRun[] {
    return this.#runs
  }

  /** The last clean chunk that is not all zeros: a cut may go through it. */
  get lastData(): number | undefined {
    return this.#lastData
  }
}

function spanOf(runs: readonly TailRun[]): TailRun {
  const first = runs[0]?.first ?? 0
  const last = runs.at(-1) ?? { first, count: 0 }
  const overData = runs.some(run => run.overData === true)
  return { first, count: last.first + last.count - first, ...(overData ? { overData } : {}) }
}
