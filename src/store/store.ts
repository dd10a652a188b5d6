import { basename, dirname, join } from 'node:path'

import { type Clock, systemClock } from '../base/clock.js'
import { type DurableFs, localFs, makeDirectoryPath } from '../base/durable-fs.js'
import { BackupError, type Warning } from '../base/errors.js'
import { fromHex, toHex } from '../base/hex.js'
import { invariant } from '../base/invariant.js'
import { type RandomSource, systemRandom } from '../base/random.js'
import { decodeCondemned } from '../format/condemned.js'
import type { ScryptCost } from '../format/key-slot.js'
import { ID_BYTES, RECORD_KIND } from '../format/record.js'
import {
  ENCRYPTION_FEATURE,
  MAX_ZSTD_LEVEL,
  type StoreFile,
  decodeStoreFile,
  encodeStoreFile,
  featuresAgainstWriting,
  isChunkSize,
} from '../format/store-file.js'
import { type DiskGeometry, type TreeRun, chunkLength } from '../model/disk-tree.js'
import type { PointBlob, TreeRoot } from '../model/recovery-point.js'
import { native } from '../native/binding.js'
import { blobGeometry, isOneRecord } from './blobs.js'
import { Collector } from './collector.js'
import { DamageList, type KnownDamage } from './damage-list.js'
import { Draft } from './draft.js'
import { type PassphraseSource, encryptStore, unlockStore } from './encryption.js'
import { FileSeals } from './file-seals.js'
import { IndexHolder, type IndexProvider } from './index-holder.js'
import type { StoreKeys } from './keys.js'
import { CONDEMNED_FILE, KEY_FOLDER, STORE_FILE, STORE_FOLDERS } from './layout.js'
import { LocalObjects, isLeftover } from './local-objects.js'
import { Locator } from './locator.js'
import { LostRangeFinder } from './lost-ranges.js'
import { NodeReader } from './node-reader.js'
import type { ObjectStore } from './object-store.js'
import { PackCatalog } from './pack-catalog.js'
import { PackReader } from './pack-reader.js'
import type { PackWriterOptions } from './pack-writer.js'
import { Points } from './points.js'
import { LeasedRun, Runs } from './runs.js'
import type { Root } from './reachability.js'
import { SharedProvider } from './shared-provider.js'
import type {
  ChunkIds,
  ChunkSource,
  PointDraft,
  Run,
  StorePort,
  StoreUsage,
  TreeDifference,
  TreeSide,
} from './store-types.js'
import { lookUpChunks } from './tree-lookup.js'
import { diffTrees, walkTree } from './tree-walk.js'
import { measureUsage } from './usage.js'
import { Verifier } from './verifier.js'

const DEFAULT_CHUNK_BYTES = 64 * 1024
const DEFAULT_LEVEL = 1
/** Damaged ids looked up together. */
const LOOK_UPS_AT_ONCE = 1024
/** Firmware state, a kernel, an initrd: nothing of that comes near. */
const MAX_BLOB_BYTES = 1024 * 1024 * 1024

/** What a store is built from; tests replace parts. */
export interface StoreParts {
  readonly fs: DurableFs
  readonly clock: Clock
  readonly random: RandomSource
  readonly index: IndexProvider
  /** Degradations that do not stop anything: an index rebuilt, a place that cannot be written. */
  readonly onNotice: (warning: Warning) => void
  readonly passphrase: PassphraseSource | undefined
}

export interface InitOptions extends Partial<StoreParts> {
  /** A power of two from 64 KiB to 4 MiB. */
  readonly chunkSize?: number | undefined
  /** zstd level; 0 stores plain. */
  readonly level?: number | undefined
  /** Makes the store encrypted, with one key slot. */
  readonly encryption?: NewEncryption | undefined
}

export interface NewEncryption {
  readonly passphrase: string
  /** Of the slot; for people. */
  readonly label?: string | undefined
  readonly cost?: ScryptCost | undefined
}

export interface OpenOptions extends Partial<StoreParts> {
  /** An existing directory for the index, when not in the store; each store has a directory of its own in it. */
  readonly indexDirectory?: string | undefined
}

/** A store on local files. */
export class Store implements StorePort {
  readonly id: string
  readonly chunkSize: number
  readonly location: string
  readonly encrypted: boolean
  readonly points: Points
  readonly runs: Runs
  readonly chunks: ChunkSource
  /** For those who maintain the store: gc, verify. */
  readonly packs: PackCatalog
  readonly index: IndexHolder
  readonly objects: ObjectStore
  readonly damage: DamageList
  readonly #file: StoreFile
  readonly #keys: StoreKeys
  readonly #random: RandomSource
  readonly #locator: Locator
  readonly #reader: PackReader
  readonly #nodes: NodeReader

  private constructor(location: string, file: StoreFile, keys: StoreKeys, parts: Omit<StoreParts, 'passphrase'>) {
    const storeId = fromHex(file.id)
    const { fs, random } = parts
    this.id = file.id
    this.chunkSize = file.chunkSize
    this.location = location
    this.encrypted = keys.idKey !== undefined
    this.objects = new LocalObjects({ fs, root: location, random })
    const seals = new FileSeals({ keys, storeId: file.id, random })
    this.runs = new Runs({ fs, root: location, clock: parts.clock, random, seals })
    const isGcActive = () => this.runs.isGcActive()
    this.points = new Points({ objects: this.objects, storeId: file.id, random, seals, isGcActive })
    this.damage = new DamageList(this.objects)
    this.packs = new PackCatalog(this.objects, storeId)
    const otherRuns = () => this.runs.others()
    this.index = new IndexHolder({ provider: parts.index, packs: this.packs, onNotice: parts.onNotice, otherRuns })
    this.#locator = new Locator({ index: this.index, packs: this.packs, keys, storeId })
    this.#reader = new PackReader({
      objects: this.objects,
      index: this.index,
      packs: this.packs,
      locator: this.#locator,
      keys,
    })
    this.#nodes = new NodeReader(this.#reader)
    this.#file = file
    this.#keys = keys
    this.#random = random
    this.chunks = {
      read: (ids, out, outSpans, signal) => this.#reader.read({ ids, out, outSpans, kind: RECORD_KIND.chunk }, signal),
    }
  }

  /**
   * Makes a store in a directory that is absent or empty; store.json comes
   * last, so a store is whole or none. Rejects with E_USAGE, E_EXISTS (a store
   * is there), E_REFUSED (something else is), E_NO_SPACE, E_IO.
   */
  static async init(location: string, options: InitOptions = {}): Promise<void> {
    const { fs = localFs(native()), random = systemRandom, clock = systemClock } = options
    const { chunkSize = DEFAULT_CHUNK_BYTES, level = DEFAULT_LEVEL } = options
    if (!isChunkSize(chunkSize)) {
      throw new BackupError('E_USAGE', `a chunk size of ${chunkSize} bytes is not possible`, {
        hints: ['Choose a power of two from 64 KiB to 4 MiB.'],
      })
    }
    if (!Number.isInteger(level) || level < 0 || level > MAX_ZSTD_LEVEL) {
      throw new BackupError('E_USAGE', `there is no compression level ${level}`, {
        hints: [`Choose one from 0 (none) to ${MAX_ZSTD_LEVEL}.`],
      })
    }
    await makeDirectoryPath(fs, dirname(location), [basename(location)])
    await refuseStrangers(fs, location)
    for (const folder of STORE_FOLDERS) await makeDirectoryPath(fs, location, [folder])
    // Another init must not take our key slot for a leftover.
    await using lock = await fs.lock(join(location, 'locks', 'init.lock'), 'exclusive')
    if (lock === undefined) throw new BackupError('E_LOCKED', `another init of ${location} is under way`)
    await clearLeftovers(fs, location)
    const { encryption } = options
    const objects = new LocalObjects({ fs, root: location, random })
    const plain: StoreFile = {
      id: toHex(random(16)),
      chunkSize,
      hash: encryption === undefined ? 'sha256' : 'hmac-sha256',
      level,
      created: clock.now(),
      features: { compat: [], readonlyCompat: [], incompat: encryption === undefined ? [] : [ENCRYPTION_FEATURE] },
    }
    const file = encryption === undefined ? plain : await encryptStore(plain, encryption, { fs, objects, random })
    if (!(await objects.putNew(STORE_FILE, encodeStoreFile(file)))) throw alreadyStore(location)
  }

  /** Rejects with E_NO_STORE, E_STORE_FORMAT, E_DAMAGED, E_KEY. Writes nothing. */
  static async open(location: string, options: OpenOptions = {}): Promise<Store> {
    const { fs = localFs(native()), random = systemRandom, clock = systemClock } = options
    const bytes = await fs.readWhole(join(location, STORE_FILE))
    if (bytes === undefined) {
      throw new BackupError('E_NO_STORE', `there is no store at ${location}`, {
        why: `${join(location, STORE_FILE)} does not exist.`,
        hints: ['Make one with init.', 'Check that its disk is mounted.'],
      })
    }
    const file = decodeStoreFile(bytes)
    const keys = await unlockStore(file, new LocalObjects({ fs, root: location, random }), options.passphrase)
    const home = options.indexDirectory === undefined ? location : join(options.indexDirectory, file.id)
    const index = options.index ?? new SharedProvider({ fs, clock, home })
    return new Store(location, file, keys, { fs, random, clock, index, onNotice: options.onNotice ?? ignoreNotice })
  }

  async draft(run: Run): Promise<PointDraft> {
    invariant(run instanceof LeasedRun, 'a draft needs a run of this store')
    this.#refuseStrange()
    this.#locator.forgetAll()
    await this.index.catchUp()
    const damage = await this.damage.read()
    // I8: read after the lease is visible.
    const condemned = await this.objects.get(CONDEMNED_FILE)
    return new Draft({
      run,
      runs: this.runs,
      points: this.points,
      index: this.index,
      locator: this.#locator,
      packs: this.packs,
      nodes: this.#nodes,
      chunkSize: this.chunkSize,
      condemned: new Set(condemned === undefined ? [] : decodeCondemned(condemned).packIds.map(toHex)),
      damage,
      writer: this.#writer(),
    })
  }

  chunkIdsAt(side: TreeSide, indexes: Float64Array): Promise<ChunkIds> {
    return lookUpChunks(this.#nodes, side, indexes)
  }

  identify(bytes: Uint8Array, spans: Uint32Array): Promise<ChunkIds> {
    return native().hashChunks(bytes, spans, { kind: RECORD_KIND.chunk, key: this.#keys.idKey })
  }

  /** What a gc of this store is made of. Rejects with E_STORE_FORMAT where this version must not write. */
  collector(): Collector {
    this.#refuseStrange()
    return new Collector({
      objects: this.objects,
      points: this.points,
      runs: this.runs,
      packs: this.packs,
      index: this.index,
      damage: this.damage,
      locator: this.#locator,
      nodes: this.#nodes,
      keys: this.#keys,
      chunkSize: this.chunkSize,
      random: this.#random,
      writer: this.#writer(),
    })
  }

  /** What a verify of this store is made of. */
  verifier(): Verifier {
    return new Verifier({
      objects: this.objects,
      points: this.points,
      packs: this.packs,
      locator: this.#locator,
      reader: this.#reader,
      nodes: this.#nodes,
      damage: this.damage,
      keys: this.#keys,
      chunkSize: this.chunkSize,
    })
  }

  async *damagedChunks(side: TreeSide, signal: AbortSignal): AsyncGenerator<TreeDifference> {
    const known = await this.damage.read()
    if (known.isEmpty) return
    const damaged = await this.#unhealed(known)
    yield* new LostRangeFinder(this.#nodes, id => damaged.has(toHex(id))).find(side, signal)
  }

  /** What recovery points hold alone and together; see usage.ts. */
  usage(roots: readonly Root[], signal: AbortSignal): Promise<StoreUsage> {
    return measureUsage({ nodes: this.#nodes, packs: this.packs, chunkSize: this.chunkSize }, roots, signal)
  }

  walkTree(root: TreeRoot, geometry: DiskGeometry, from?: number): AsyncIterable<TreeRun> {
    return walkTree(this.#nodes, { root, geometry }, from)
  }

  diffTrees(a: TreeSide, b: TreeSide): AsyncIterable<TreeDifference> {
    return diffTrees(this.#nodes, a, b)
  }

  async readBlob(blob: PointBlob): Promise<Uint8Array> {
    if (blob.length > MAX_BLOB_BYTES) {
      throw new BackupError('E_DAMAGED', `${blob.name} has the impossible length ${blob.length}`)
    }
    const out = new Uint8Array(blob.length)
    if (blob.id.every(byte => byte === 0)) return out
    const { signal } = new AbortController()
    if (isOneRecord(blob.length)) {
      const outSpans = Uint32Array.of(0, blob.length)
      await this.#reader.read({ ids: blob.id, out, outSpans, kind: RECORD_KIND.blob }, signal)
      return out
    }
    const geometry = blobGeometry(blob.length, this.chunkSize)
    for await (const run of this.walkTree({ kind: 'node', id: blob.id }, geometry)) {
      if (run.kind !== 'data') continue
      const spans = Array.from({ length: run.ids.length / ID_BYTES }, (_, index) => [
        (run.first + index) * geometry.chunkSize,
        chunkLength(geometry, run.first + index),
      ])
      await this.chunks.read(run.ids, out, Uint32Array.from(spans.flat()), signal)
    }
    return out
  }

  /** Ids, in hex, that the index still finds nowhere but in a damaged copy. */
  async #unhealed(known: KnownDamage): Promise<ReadonlySet<string>> {
    const damaged = new Set<string>()
    for (let at = 0; at < known.copies.length; at += LOOK_UPS_AT_ONCE) {
      const ids = known.copies.slice(at, at + LOOK_UPS_AT_ONCE).map(({ id }) => id)
      const places = await this.#locator.locate(Buffer.concat(ids))
      ids.forEach((id, index) => {
        const place = places[index]
        if (place === undefined || known.hasCopy(place.pack, id)) damaged.add(toHex(id))
      })
    }
    return damaged
  }

  #refuseStrange(): void {
    const strange = featuresAgainstWriting(this.#file)
    if (strange.length > 0) {
      throw new BackupError('E_STORE_FORMAT', 'this store may only be read by this version', {
        why: `It uses ${strange.join(', ')}.`,
        hints: ['Use a newer version to write to it.'],
      })
    }
  }

  #writer(): Omit<PackWriterOptions, 'kind' | 'onSealed'> {
    return {
      objects: this.objects,
      storeId: fromHex(this.id),
      keys: this.#keys,
      random: this.#random,
      level: this.#file.level,
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.index[Symbol.asyncDispose]()
    await this.objects[Symbol.asyncDispose]()
    this.#keys.wipe()
  }
}

/** Refuses a directory that a store must not be made in: E_EXISTS, E_REFUSED. */
async function refuseStrangers(fs: DurableFs, location: string): Promise<void> {
  const names = await fs.list(location)
  if (names.includes(STORE_FILE)) throw alreadyStore(location)
  const own: readonly string[] = [...STORE_FOLDERS, KEY_FOLDER]
  const strange = names.filter(name => !own.includes(name) && !isLeftover(name))
  if (strange.length === 0) return
  throw new BackupError('E_REFUSED', `${location} is not empty`, {
    why: `It has ${strange.slice(0, 3).join(', ')}.`,
    hints: ['Choose an empty directory.'],
  })
}

/** Removes what an interrupted init left. Keys of packs or points are beyond price, also without their store.json: E_REFUSED. */
async function clearLeftovers(fs: DurableFs, location: string): Promise<void> {
  const names = await fs.list(location)
  if (names.includes(STORE_FILE)) throw alreadyStore(location)
  for (const name of names.filter(isLeftover)) await fs.remove(join(location, name))
  if (!names.includes(KEY_FOLDER)) return
  for (const folder of ['packs', 'points']) {
    if ((await fs.list(join(location, folder))).length === 0) continue
    throw new BackupError('E_REFUSED', `${location} holds an encrypted store whose store.json is missing`, {
      hints: ['Put store.json back, or choose an empty directory.'],
    })
  }
  for (const name of await fs.list(join(location, KEY_FOLDER))) await fs.remove(join(location, KEY_FOLDER, name))
}

function alreadyStore(location: string): BackupError {
  return new BackupError('E_EXISTS', `there is a store at ${location} already`)
}

function ignoreNotice(): void {
  // Whoever wants to know passes onNotice.
}
