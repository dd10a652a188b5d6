/** Readers that are told apart. nbdcopy has four, each with a part of the disk. */
const MAX_STREAMS = 16
/** Requests of one reader come in any order within this many bytes. */
const SLACK_BYTES = 4 * 1024 * 1024
/** Reads in a row that make a stream. */
const READS_OF_A_STREAM = 3

export interface ReadAheadOptions {
  readonly size: number
  /** All streams together. */
  readonly aheadBytes: number
  /** Unit and alignment of what is read ahead. */
  readonly batchBytes: number
}

interface Stream {
  /** Behind the furthest read. */
  position: number
  /** Where nothing was read ahead yet. */
  ahead: number
  reads: number
}

/**
 * Recognises readers that go on and on among many that read at once, and says
 * what they will want next. Pure: nothing is read here.
 *
 *     reads     |1.|2.|4.|3.|5.|
 *     stream                    |position      |ahead
 *     next                                     |batch |
 */
export class ReadAhead {
  readonly #options: ReadAheadOptions
  /** Least recently used first. */
  readonly #streams: Stream[] = []

  constructor(options: ReadAheadOptions) {
    this.#options = options
  }

  /** Notes a read of `[offset, offset + length)`; gives aligned ranges `[from, to)` to read now. */
  note(offset: number, length: number): (readonly [from: number, to: number])[] {
    const end = offset + length
    const stream = this.#take(offset) ?? { position: end, ahead: 0, reads: 0 }
    this.#streams.push(stream)
    if (this.#streams.length > MAX_STREAMS) this.#streams.shift()
    stream.position = Math.max(stream.position, end)
    stream.reads++
    return stream.reads < READS_OF_A_STREAM ? [] : this.#batches(stream)
  }

  #take(offset: number): Stream | undefined {
    const index = this.#streams.findLastIndex(({ position }) => Math.abs(position - offset) <= SLACK_BYTES)
    return index < 0 ? undefined : this.#streams.splice(index, 1)[0]
  }

  #batches(stream: Stream): (readonly [number, number])[] {
    const { size, aheadBytes, batchBytes } = this.#options
    const running = this.#streams.filter(({ reads }) => reads >= READS_OF_A_STREAM).length
    const reach = stream.position + Math.max(batchBytes, aheadBytes / running)
    const batches: (readonly [number, number])[] = []
    let from = Math.max(stream.ahead, Math.floor(stream.position / batchBytes) * batchBytes)
    for (; from < size && from + batchBytes <= reach; from += batchBytes) {
      batches.push([from, Math.min(size, from + batchBytes)])
    }
    stream.ahead = from
    return batches
  }
}
