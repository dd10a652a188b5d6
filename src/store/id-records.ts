import { invariant } from '../base/invariant.js'
import { forEachLimited } from '../base/async.js'
import { ID_BYTES } from '../format/record.js'
import { ID_WORDS } from './id-table.js'
import { SpillFile } from './spill-file.js'

/** By the first 12 bits of the id. */
export const PARTITIONS = 4096
/** Of one bag in memory; as much again while it is sorted. What is more goes to a temporary file. */
const MEMORY_BYTES = 8 * 1024 * 1024
const FIRST_BYTES = 4096
/** Room for what is added while the file is being written. */
const SLACK_BYTES = 1024 * 1024
/** Looked at together, of all bags: some 16 MiB with what is made of them. */
const MAX_RECORDS_AT_ONCE = 128 * 1024
const READS_AT_ONCE = 4

/** Partitions `[from, to)`. */
export interface PartitionRange {
  readonly from: number
  readonly to: number
}

/** A part of the file: records sorted by partition, those of partition p from number `starts[p]` on. */
interface Segment {
  readonly offset: number
  readonly starts: Uint32Array
}

/**
 * A bag of fixed-size records that begin with an id, read back by parts of the
 * id space: such a part fits in memory where the whole does not. Holds 16 MiB
 * at most; the rest is in one temporary file, which goes when this is disposed.
 *
 * Filled first, read afterwards: nothing can be added once something was read.
 */
export class IdRecords implements AsyncDisposable {
  readonly words: number
  readonly #limitBytes: number
  /** In the order of arrival; the first `#used` words count. */
  #filling = new Uint32Array(0)
  #used = 0
  /** Of `#filling`, by partition. */
  readonly #fillCounts = new Uint32Array(PARTITIONS)
  readonly #counts = new Float64Array(PARTITIONS)
  #count = 0
  #sorted = new Uint32Array(0)
  readonly #segments: Segment[] = []
  /** Where nothing was ever spilled: the partitions in `#sorted`. */
  #starts: Uint32Array | undefined
  #file: SpillFile | undefined
  #writing: Promise<void> | undefined
  #isRead = false
  /** What read() lends. */
  #lent = new Uint32Array(0)

  /** `words`: 32-bit words of a record, the 8 of its id included. */
  constructor(words: number, limitBytes = MEMORY_BYTES) {
    invariant(words >= ID_WORDS, 'a record begins with an id')
    this.words = words
    this.#limitBytes = limitBytes
  }

  /** Records that were added. */
  get count(): number {
    return this.#count
  }

  /** Whether spill() is due. */
  get isFull(): boolean {
    return this.#used * 4 > this.#limitBytes
  }

  /** The id is that at byte `at` of `ids`; the other words follow it in the record. */
  add(ids: Uint8Array, at: number, ...rest: readonly number[]): void {
    invariant(!this.#isRead, 'nothing is added to records that are being read')
    const used = this.#used
    if (used + this.words > this.#filling.length) this.#grow(used + this.words)
    const records = this.#filling
    new Uint8Array(records.buffer, used * 4, ID_BYTES).set(ids.subarray(at, at + ID_BYTES))
    for (let word = ID_WORDS; word < this.words; word++) records[used + word] = rest[word - ID_WORDS] ?? 0
    const partition = partitionOf(ids, at)
    this.#fillCounts[partition] = (this.#fillCounts[partition] ?? 0) + 1
    this.#counts[partition] = (this.#counts[partition] ?? 0) + 1
    this.#used = used + this.words
    this.#count++
  }

  /** Records in some partitions. */
  countIn({ from, to }: PartitionRange): number {
    let sum = 0
    for (let partition = from; partition < to; partition++) sum += this.#counts[partition] ?? 0
    return sum
  }

  /** Moves what is too much for memory to the file; others may go on adding. Rejects with what the system says. */
  async spill(): Promise<void> {
    while (this.#writing !== undefined) await this.#writing
    // Somebody else has waited too, and was first.
    if (this.isFull) await this.#write()
  }

  /** All records of some partitions. Lent until the next call. */
  async read(range: PartitionRange): Promise<Uint32Array> {
    if (!this.#isRead) await this.#finishFilling()
    if (this.#starts !== undefined) {
      const { from, to } = range
      return this.#sorted.subarray((this.#starts[from] ?? 0) * this.words, (this.#starts[to] ?? 0) * this.words)
    }
    const words = this.countIn(range) * this.words
    if (words > this.#lent.length) this.#lent = new Uint32Array(words)
    const bytes = new Uint8Array(this.#lent.buffer)
    let at = 0
    const reads = this.#segments.flatMap(({ offset, starts }) => {
      const [first, end] = [starts[range.from] ?? 0, starts[range.to] ?? 0]
      const length = (end - first) * this.words * 4
      const into = bytes.subarray(at, at + length)
      at += length
      return length === 0 ? [] : [{ into, offset: offset + first * this.words * 4 }]
    })
    await forEachLimited(reads, READS_AT_ONCE, async ({ into, offset }) => await this.#file?.read(into, offset))
    return this.#lent.subarray(0, words)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#writing?.catch(() => undefined)
    const file = this.#file
    this.#file = undefined
    this.#filling = this.#sorted = this.#lent = new Uint32Array(0)
    await file?.[Symbol.asyncDispose]()
  }

  async #finishFilling(): Promise<void> {
    this.#isRead = true
    while (this.#writing !== undefined) await this.#writing
    if (this.#segments.length === 0) this.#starts = this.#sort()
    else {
      if (this.#used > 0) await this.#write()
      this.#sorted = new Uint32Array(0)
    }
    this.#filling = new Uint32Array(0)
  }

  async #write(): Promise<void> {
    const words = this.#used
    const starts = this.#sort()
    this.#writing = this.#append(new Uint8Array(this.#sorted.buffer, 0, words * 4), starts)
    try {
      await this.#writing
    } finally {
      this.#writing = undefined
    }
  }

  async #append(bytes: Uint8Array, starts: Uint32Array): Promise<void> {
    this.#file ??= await SpillFile.create()
    this.#segments.push({ offset: await this.#file.append(bytes), starts })
  }

  /** Moves all that was added to `#sorted`, partition after partition. Gives where each begins. */
  #sort(): Uint32Array {
    const starts = new Uint32Array(PARTITIONS + 1)
    for (let partition = 0; partition < PARTITIONS; partition++) {
      starts[partition + 1] = (starts[partition] ?? 0) + (this.#fillCounts[partition] ?? 0)
    }
    if (this.#sorted.length < this.#used) this.#sorted = new Uint32Array(this.#filling.length)
    const next = starts.slice()
    const bytes = new Uint8Array(this.#filling.buffer)
    for (let at = 0; at < this.#used; at += this.words) {
      const partition = partitionOf(bytes, at * 4)
      const record = next[partition] ?? 0
      next[partition] = record + 1
      this.#sorted.set(this.#filling.subarray(at, at + this.words), record * this.words)
    }
    this.#fillCounts.fill(0)
    this.#used = 0
    return starts
  }

  #grow(words: number): void {
    const most = (this.#limitBytes + SLACK_BYTES) / 4
    const doubled = Math.min(this.#filling.length * 2, most)
    const larger = new Uint32Array(Math.max(FIRST_BYTES / 4, doubled, words <= most ? words : words + SLACK_BYTES / 4))
    larger.set(this.#filling.subarray(0, this.#used))
    this.#filling = larger
  }
}

/** Parts of the id space that cover it, in order: as large as fits in memory with the records of all `bags`. */
export function* rangesOf(
  bags: readonly Pick<IdRecords, 'countIn'>[],
  maxRecords = MAX_RECORDS_AT_ONCE,
): Generator<PartitionRange> {
  let from = 0
  let records = 0
  for (let partition = 0; partition < PARTITIONS; partition++) {
    const here = bags.reduce((sum, bag) => sum + bag.countIn({ from: partition, to: partition + 1 }), 0)
    if (records > 0 && records + here > maxRecords) {
      yield { from, to: partition }
      from = partition
      records = 0
    }
    records += here
  }
  if (records > 0) yield { from, to: PARTITIONS }
}

function partitionOf(ids: Uint8Array, at: number): number {
  return ((ids[at] ?? 0) << 4) | ((ids[at + 1] ?? 0) >> 4)
}
