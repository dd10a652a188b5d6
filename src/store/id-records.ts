import { type FileHandle, mkdtemp, open, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import { invariant } from '../base/invariant.js'
import { ID_BYTES } from '../format/record.js'
import { ID_WORDS } from './id-table.js'

/** By the first byte of the id. */
export const PARTITIONS = 256
/** Of one set; what is more goes to a temporary file. */
const MEMORY_BYTES = 48 * 1024 * 1024
const FIRST_PARTITION_BYTES = 4096

/**
 * A bag of fixed-size records that begin with an id, split by the id's first
 * byte: a partition fits in memory where the whole does not. Holds 48 MiB at
 * most; the rest is in one file below the system's temporary directory, which
 * goes when this is disposed.
 */
export class IdRecords implements AsyncDisposable {
  readonly words: number
  #parts = emptyParts()
  /** Words in use of each part. */
  readonly #used = new Float64Array(PARTITIONS)
  readonly #spilled: { readonly offset: number; readonly bytes: number }[][]
  readonly #limitBytes: number
  #file: SpillFile | undefined
  #spilling = Promise.resolve()
  #bytes = 0
  #count = 0

  /** `words`: 32-bit words of a record, the 8 of its id included. */
  constructor(words: number, limitBytes = MEMORY_BYTES) {
    invariant(words >= ID_WORDS, 'a record begins with an id')
    this.words = words
    this.#limitBytes = limitBytes
    this.#spilled = Array.from({ length: PARTITIONS }, () => [])
  }

  /** Records that were added. */
  get count(): number {
    return this.#count
  }

  /** Whether spill() is due. */
  get isFull(): boolean {
    return this.#bytes > this.#limitBytes
  }

  /** The id is that at byte `at` of `ids`; the other words follow it in the record. */
  add(ids: Uint8Array, at: number, ...rest: readonly number[]): void {
    const partition = ids[at] ?? 0
    const used = this.#used[partition] ?? 0
    const part = this.#room(partition, used + this.words)
    new Uint8Array(part.buffer, used * 4, ID_BYTES).set(ids.subarray(at, at + ID_BYTES))
    for (let word = ID_WORDS; word < this.words; word++) part[used + word] = rest[word - ID_WORDS] ?? 0
    this.#used[partition] = used + this.words
    this.#bytes += this.words * 4
    this.#count++
  }

  /** Whether nothing was added to a partition. */
  isEmpty(partition: number): boolean {
    return (this.#used[partition] ?? 0) === 0 && (this.#spilled[partition] ?? []).length === 0
  }

  /** Moves what is in memory to the file; others may go on adding. Rejects with what the system says. */
  spill(): Promise<void> {
    // Taken at once: what comes while it is being written belongs to the next time.
    const parts = this.#parts.map((part, partition) => new Uint8Array(part.buffer, 0, (this.#used[partition] ?? 0) * 4))
    this.#parts = emptyParts()
    this.#used.fill(0)
    this.#bytes = 0
    const before = this.#spilling
    this.#spilling = (async () => {
      await before
      this.#file ??= await SpillFile.create()
      for (const [partition, bytes] of parts.entries()) {
        if (bytes.length === 0) continue
        this.#spilled[partition]?.push({ offset: await this.#file.append(bytes), bytes: bytes.length })
      }
    })()
    return this.#spilling
  }

  /** All records of one partition, in the order in which they came. */
  async partition(partition: number): Promise<Uint32Array> {
    const segments = this.#spilled[partition] ?? []
    const used = this.#used[partition] ?? 0
    const inMemory = this.#parts[partition]?.subarray(0, used) ?? new Uint32Array(0)
    const spilledBytes = segments.reduce((sum, { bytes }) => sum + bytes, 0)
    const all = new Uint32Array(spilledBytes / 4 + used)
    const bytes = new Uint8Array(all.buffer)
    let at = 0
    for (const segment of segments) {
      await this.#file?.read(bytes.subarray(at, at + segment.bytes), segment.offset)
      at += segment.bytes
    }
    all.set(inMemory, at / 4)
    return all
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#spilling.catch(() => undefined)
    const file = this.#file
    this.#file = undefined
    await file?.[Symbol.asyncDispose]()
  }

  #room(partition: number, words: number): Uint32Array {
    const part = this.#parts[partition] ?? new Uint32Array(0)
    if (words <= part.length) return part
    const larger = new Uint32Array(Math.max(FIRST_PARTITION_BYTES / 4, words, part.length * 2))
    larger.set(part)
    this.#parts[partition] = larger
    return larger
  }
}

function emptyParts(): Uint32Array[] {
  return Array.from({ length: PARTITIONS }, () => new Uint32Array(0))
}

/** Written once, read back, never kept: nothing here needs to survive anything. */
class SpillFile implements AsyncDisposable {
  readonly #directory: string
  readonly #handle: FileHandle
  #size = 0

  private constructor(directory: string, handle: FileHandle) {
    this.#directory = directory
    this.#handle = handle
  }

  static async create(): Promise<SpillFile> {
    const directory = await mkdtemp(join(tmpdir(), 'virtvault-ids-'))
    try {
      return new SpillFile(directory, await open(join(directory, 'ids'), 'wx+', 0o600))
    } catch (error) {
      await rm(directory, { recursive: true, force: true })
      throw error
    }
  }

  /** Gives the offset that the bytes got. */
  async append(bytes: Uint8Array): Promise<number> {
    const offset = this.#size
    for (let done = 0; done < bytes.length; ) {
      const { bytesWritten } = await this.#handle.write(bytes, done, bytes.length - done, offset + done)
      invariant(bytesWritten > 0, 'a file takes bytes or refuses them')
      done += bytesWritten
    }
    this.#size += bytes.length
    return offset
  }

  async read(into: Uint8Array, offset: number): Promise<void> {
    for (let done = 0; done < into.length; ) {
      const { bytesRead } = await this.#handle.read(into, done, into.length - done, offset + done)
      invariant(bytesRead > 0, 'a temporary file keeps what was written to it')
      done += bytesRead
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#handle.close()
    await rm(this.#directory, { recursive: true, force: true })
  }
}
