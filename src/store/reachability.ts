import { throwIfAborted } from '../base/async.js'
import { errorCodeOf } from '../base/errors.js'
import { ID_BYTES } from '../format/record.js'
import { type DiskGeometry, treeDepth } from '../model/disk-tree.js'
import type { RecoveryPoint } from '../model/recovery-point.js'
import { blobGeometry, isOneRecord } from './blobs.js'
import { IdRecords, type PartitionRange, rangesOf } from './id-records.js'
import { ID_WORDS, IdTable } from './id-table.js'
import type { NodeSource } from './tree-nodes.js'

/** Of a live record: id, label, references. */
const LIVE_WORDS = ID_WORDS + 2
const LABEL_WORD = ID_WORDS
const REFERENCES_WORD = ID_WORDS + 1
/** Nodes loaded together, at most 4 KiB each. */
const NODES_AT_ONCE = 1024
const MAX_REFERENCES = 2 ** 32 - 1

/** The label of what several labels reach. */
export const SHARED = 2 ** 32 - 1

/** A recovery point, and the label that what it reaches gets: below SHARED. */
export interface Root {
  readonly point: RecoveryPoint
  readonly label: number
}

export interface ReachabilityOptions {
  readonly nodes: NodeSource
  readonly chunkSize: number
  /** What is in here, and below it, was marked before and is left out. */
  readonly known?: Reachability | undefined
  /** Told of nodes that cannot be loaded; without it they reject with E_DAMAGED. */
  readonly onLostNode?: ((id: Uint8Array) => void) | undefined
}

/** Ids that recovery points reach. */
export interface LiveIds {
  /** In order of first meeting. */
  readonly table: IdTable
  /** By number in the table. */
  readonly labels: Uint32Array
  /** How often chunks of disks name it, by number in the table; stops at 2^32 - 1. */
  readonly references: Uint32Array
}

/**
 * Every id that some recovery points reach: tree nodes, chunks, blobs.
 *
 * Trees are walked level by level, from the top: the nodes of one level are
 * gathered, taken by parts of the id space, each loaded once. So time is that
 * of the unique nodes, and memory that of one part, whatever the store's size
 * and however much its trees share.
 */
export class Reachability implements AsyncDisposable {
  readonly #options: ReachabilityOptions
  readonly #live = new IdRecords(LIVE_WORDS)
  /** By level. */
  readonly #pending = new Map<number, IdRecords>()
  /** What partition() lends. */
  readonly #unique = new UniqueIds()

  private constructor(options: ReachabilityOptions) {
    this.#options = options
  }

  /** Rejects with E_DAMAGED where a node cannot be loaded and nobody is told of it, E_INTERRUPTED. */
  static async mark(roots: readonly Root[], options: ReachabilityOptions, signal: AbortSignal): Promise<Reachability> {
    const marked = new Reachability(options)
    try {
      for (const root of roots) marked.#addRoot(root)
      for (let level = Math.max(-1, ...marked.#pending.keys()); level >= 0; level--) {
        await marked.#walkLevel(level, signal)
      }
      return marked
    } catch (error) {
      await marked[Symbol.asyncDispose]()
      throw error
    }
  }

  /** How many ids, counted as often as they were met, are in some partitions. */
  countIn(range: PartitionRange): number {
    return this.#live.countIn(range)
  }

  /** Ids of some partitions, each once. Lent until the next call. */
  async partitions(range: PartitionRange): Promise<LiveIds> {
    return this.#unique.of(await this.#live.read(range))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#live[Symbol.asyncDispose]()
    for (const level of this.#pending.values()) await level[Symbol.asyncDispose]()
    this.#pending.clear()
  }

  #addRoot({ point, label }: Root): void {
    for (const disk of point.disks) {
      if (disk.root.kind !== 'node') continue
      this.#addTree(disk.root.id, { size: disk.size, chunkSize: this.#options.chunkSize }, label)
    }
    for (const blob of point.blobs) {
      if (blob.id.every(byte => byte === 0)) continue
      if (isOneRecord(blob.length)) this.#live.add(blob.id, 0, label, 1)
      else this.#addTree(blob.id, blobGeometry(blob.length, this.#options.chunkSize), label)
    }
  }

  #addTree(id: Uint8Array, geometry: DiskGeometry, label: number): void {
    this.#level(treeDepth(geometry) - 1).add(id, 0, label, 1)
  }

  #level(level: number): IdRecords {
    let records = this.#pending.get(level)
    if (records === undefined) {
      records = new IdRecords(LIVE_WORDS)
      this.#pending.set(level, records)
    }
    return records
  }

  async #walkLevel(level: number, signal: AbortSignal): Promise<void> {
    const records = this.#pending.get(level)
    if (records === undefined) return
    const below = level === 0 ? this.#live : this.#level(level - 1)
    const { known } = this.#options
    for (const range of rangesOf(known === undefined ? [records] : [records, known])) {
      throwIfAborted(signal)
      if (records.countIn(range) === 0) continue
      const nodes = this.#unique.of(await records.read(range))
      const before = await known?.partitions(range)
      const words = wordsOf(nodes.table)
      const fresh = numbersOf(nodes).filter(
        number => before === undefined || before.table.find(words, number * ID_WORDS) === -1,
      )
      for (let at = 0; at < fresh.length; at += NODES_AT_ONCE) {
        throwIfAborted(signal)
        await this.#walkNodes(nodes, { numbers: fresh.slice(at, at + NODES_AT_ONCE), level, below })
      }
    }
    this.#pending.delete(level)
    await records[Symbol.asyncDispose]()
  }

  async #walkNodes(
    nodes: LiveIds,
    {
      numbers,
      level,
      below,
    }: { readonly numbers: readonly number[]; readonly level: number; readonly below: IdRecords },
  ): Promise<void> {
    const ids = nodes.table.ids
    const loaded = await this.#load(
      numbers.map(number => ids.subarray(number * ID_BYTES, (number + 1) * ID_BYTES)),
      level,
    )
    for (const [at, number] of numbers.entries()) {
      const label = nodes.labels[number] ?? SHARED
      const references = nodes.references[number] ?? 1
      this.#live.add(ids, number * ID_BYTES, label, references)
      const children = loaded[at] ?? new Uint8Array(0)
      for (let child = 0; child < children.length; child += ID_BYTES) below.add(children, child, label, references)
    }
    if (this.#live.isFull) await this.#live.spill()
    if (below.isFull) await below.spill()
  }

  /** The ids of each node's children; none for a node that is lost. */
  async #load(ids: readonly Uint8Array[], level: number): Promise<Uint8Array[]> {
    const { nodes, onLostNode } = this.#options
    try {
      return (await nodes.load(Buffer.concat(ids), level)).map(node => node.ids)
    } catch (error) {
      if (onLostNode === undefined || errorCodeOf(error) !== 'E_DAMAGED') throw error
    }
    const found: Uint8Array[] = []
    for (const id of ids) {
      try {
        const [node] = await nodes.load(id, level)
        found.push(node?.ids ?? new Uint8Array(0))
      } catch (error) {
        if (errorCodeOf(error) !== 'E_DAMAGED') throw error
        onLostNode(Uint8Array.from(id))
        found.push(new Uint8Array(0))
      }
    }
    return found
  }
}

/** Merges records of one id. Keeps its memory from one part to the next. */
class UniqueIds {
  readonly #table = new IdTable(0)
  #labels = new Uint32Array(0)
  #references = new Uint32Array(0)

  of(words: Uint32Array): LiveIds {
    const most = words.length / LIVE_WORDS
    this.#table.reset(most)
    if (most > this.#labels.length) {
      this.#labels = new Uint32Array(most)
      this.#references = new Uint32Array(most)
    }
    const [table, labels, references] = [this.#table, this.#labels, this.#references]
    for (let at = 0; at < words.length; at += LIVE_WORDS) {
      const before = table.count
      const number = table.add(words, at)
      const isNew = number === before
      const label = words[at + LABEL_WORD] ?? SHARED
      labels[number] = isNew || labels[number] === label ? label : SHARED
      const sum = (isNew ? 0 : (references[number] ?? 0)) + (words[at + REFERENCES_WORD] ?? 0)
      references[number] = Math.min(MAX_REFERENCES, sum)
    }
    return { table, labels, references }
  }
}

function numbersOf(live: LiveIds): number[] {
  return Array.from({ length: live.table.count }, (_, number) => number)
}

function wordsOf(table: IdTable): Uint32Array {
  const { ids } = table
  return new Uint32Array(ids.buffer, ids.byteOffset, ids.length / 4)
}
