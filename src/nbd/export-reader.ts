import { throwIfAborted } from '../base/async.js'
import type { Clock } from '../base/clock.js'
import { BackupError } from '../base/errors.js'
import type { Extent } from '../model/extent.js'
import type { NbdAddress, NbdConnectOptions } from '../native/nbd.js'
import { type ContextLists, coveredBy, joinExtents, mergeContexts } from './extents.js'
import { Lane } from './lane.js'
import { bytesOf, splitPieces } from './pieces.js'

const ALLOCATION = 'base:allocation'
/** The length of a block status request has 32 bits; 64 KiB is QEMU's dirty granule. */
const WINDOW_BYTES = 4 * 1024 ** 3 - 64 * 1024
/**
 * Block status requests that are under way on a quiet stretch: 16 TiB take
 * 4,096 of them, and one after the other each waits for us and for the server.
 */
const STATUS_AHEAD = 8
/** A window with fewer extents than this lets expect that the next ones are as short. */
const QUIET_ENTRIES = 64
/** Per request and per connection. */
const REQUEST_BYTES = 512 * 1024
const DEPTH = 16
/** Less than this is not worth a second connection. */
const SPREAD_BYTES = 1024 * 1024
/** A server that cuts a disk into pieces of less than a sector is not worth listening to. */
const MIN_MEAN_EXTENT_BYTES = 512
const MIN_ANSWERED_BYTES = 1024 * 1024

export interface ExportOptions {
  readonly exportName: string
  /** Name of the exported bitmap (`exportbitmap`), not of the checkpoint. */
  readonly dirtyBitmap?: string | undefined
  /** At most this many connections; one where the server does not promise that several see the same, fewer where it takes no more. */
  readonly connections: number
  readonly requestTimeoutMs: number
  readonly clock?: Clock | undefined
}

/**
 * Reads one NBD export: what changed, and the bytes.
 *
 * An abort of any signal handed to it drops all its connections, since the
 * buffers lent to them are free only then: the reader is of no use after it.
 */
export class ExportReader implements AsyncDisposable {
  readonly size: number
  readonly #lanes: readonly Lane[]
  readonly #dirtyContext: string | undefined
  readonly #signals = new Set<AbortSignal>()
  readonly #abort = () => {
    for (const lane of this.#lanes) lane.abort()
  }

  private constructor(lanes: readonly Lane[], size: number, dirtyContext: string | undefined) {
    this.#lanes = lanes
    this.size = size
    this.#dirtyContext = dirtyContext
  }

  /**
   * Connects. Rejects with E_NBD (cannot connect, no such export),
   * E_NBD_PROTOCOL (the server makes no sense, or does not have the bitmap:
   * never taken for "nothing dirty"), E_TIMEOUT, or what aborted `signal`.
   */
  static async open(address: NbdAddress, options: ExportOptions, signal: AbortSignal): Promise<ExportReader> {
    const dirtyContext = options.dirtyBitmap === undefined ? undefined : `qemu:dirty-bitmap:${options.dirtyBitmap}`
    const connect: NbdConnectOptions = {
      ...address,
      exportName: options.exportName,
      metaContexts: dirtyContext === undefined ? [] : [dirtyContext],
      optionalContexts: [ALLOCATION],
      requestTimeoutMs: options.requestTimeoutMs,
    }
    const first = await Lane.open(connect, signal, options.clock)
    const lanes = [first]
    try {
      const { size, canMultiConn } = first.connection
      while (canMultiConn && lanes.length < options.connections) {
        const lane = await openAnother(connect, signal, options.clock)
        if (lane === undefined) break
        lanes.push(lane)
        if (lane.connection.size !== size) {
          throw new BackupError(
            'E_NBD_PROTOCOL',
            `two connections see exports of ${size} and ${lane.connection.size} bytes`,
          )
        }
      }
      return new ExportReader(lanes, size, dirtyContext)
    } catch (error) {
      await Promise.all(lanes.map(lane => lane.close()))
      throw error
    }
  }

  /** Connections in use. */
  get connections(): number {
    return this.#lanes.length
  }

  /**
   * The whole export in ascending order, without gaps; neighbours differ in
   * their flags. Holds one answer of the server at a time, and some short ones
   * ahead. Rejects as read().
   */
  extents(signal: AbortSignal): AsyncIterable<Extent> {
    return joinExtents(this.#extents(signal))
  }

  async *#extents(signal: AbortSignal): AsyncGenerator<Extent> {
    const [lane] = this.#lanes
    if (lane === undefined || this.size === 0) return
    this.#watch(signal)
    const { contexts } = lane.connection
    if (contexts.length === 0) {
      yield { offset: 0, length: this.size, dirty: true, zero: false, hole: false }
      return
    }
    const ask = (at: number): StatusAhead => {
      const length = Math.min(WINDOW_BYTES, this.size - at)
      const lists = lane.run(connection => connection.blockStatus(at, length), signal)
      // Awaited in its turn, or never: where an answer is short the later ones are of no use.
      lists.catch(() => undefined)
      return { offset: at, lists }
    }
    let ahead: StatusAhead[] = []
    for (let offset = 0, entries = 0; offset < this.size; ) {
      const window = Math.min(WINDOW_BYTES, this.size - offset)
      let next = ahead.shift()
      if (next?.offset !== offset) {
        ahead = []
        next = ask(offset)
      }
      const lists = await next.lists
      const byName = new Map(contexts.map((name, index) => [name, lists[index]]))
      const answer: ContextLists = {
        allocation: byName.get(ALLOCATION),
        dirty: this.#dirtyContext === undefined ? undefined : byName.get(this.#dirtyContext),
      }
      const covered = coveredBy(lists)
      entries += Math.max(...lists.map(list => list.length / 2))
      const answered = offset + covered
      const isQuiet = covered === window && lists.every(list => list.length / 2 < QUIET_ENTRIES)
      while (isQuiet && ahead.length < STATUS_AHEAD) {
        const at = (ahead.at(-1)?.offset ?? offset) + WINDOW_BYTES
        if (at >= this.size) break
        ahead.push(ask(at))
      }
      if (covered < window && answered > MIN_ANSWERED_BYTES && answered / entries < MIN_MEAN_EXTENT_BYTES) {
        throw new BackupError('E_NBD_PROTOCOL', `the NBD server sent ${entries} extents for ${answered} bytes`)
      }
      yield* mergeContexts(offset, answer)
      throwIfAborted(signal)
      offset = answered
    }
  }

  /**
   * Reads triples (offset in the export, length, offset in `buffer`) into
   * `buffer`, which is borrowed until the promise settles; on a failure its
   * content is undefined. Several calls may be under way: the next one's
   * requests follow the last one's without a pause.
   *
   * Rejects with E_NBD_READ (the server cannot read; the message has the
   * offset), E_NBD, E_NBD_PROTOCOL, E_TIMEOUT or what aborted `signal`, each
   * after the repeats that `Lane` describes.
   */
  async read(pieces: Float64Array, buffer: Uint8Array, signal: AbortSignal): Promise<void> {
    throwIfAborted(signal)
    this.#watch(signal)
    const bytes = bytesOf(pieces)
    if (bytes === 0) return
    const lanes = [...this.#lanes].sort((a, b) => a.load - b.load)
    const parts = bytes <= SPREAD_BYTES ? [pieces] : splitPieces(pieces, lanes.length, REQUEST_BYTES)
    const results = await Promise.allSettled(
      parts.map(async (part, index) => {
        const lane = lanes[index]
        if (lane === undefined) return
        const load = bytesOf(part)
        lane.load += load
        try {
          await lane.run(connection => connection.read(part, buffer, REQUEST_BYTES, DEPTH), signal)
        } finally {
          lane.load -= load
        }
      }),
    )
    throwIfAborted(signal)
    const failed = results.find(result => result.status === 'rejected')
    if (failed !== undefined) throw failed.reason
  }

  /** Ends all connections in order: nothing that was asked for stays unread. */
  async [Symbol.asyncDispose](): Promise<void> {
    for (const signal of this.#signals) signal.removeEventListener('abort', this.#abort)
    this.#signals.clear()
    await Promise.all(this.#lanes.map(lane => lane.close()))
  }

  #watch(signal: AbortSignal): void {
    if (this.#signals.has(signal)) return
    this.#signals.add(signal)
    signal.addEventListener('abort', this.#abort, { once: true })
  }
}

interface StatusAhead {
  readonly offset: number
  readonly lists: Promise<readonly Float64Array[]>
}

/** Nothing where the server takes no more connections; one is enough. */
async function openAnother(options: NbdConnectOptions, signal: AbortSignal, clock?: Clock): Promise<Lane | undefined> {
  try {
    return await Lane.open(options, signal, clock)
  } catch (error) {
    throwIfAborted(signal)
    if (error instanceof BackupError && error.code === 'E_NBD') return undefined
    throw error
  }
}
