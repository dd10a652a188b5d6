import type { StoreUse } from '../model/gc-plan.js'
import type { DiskGeometry, TreeRun } from '../model/disk-tree.js'
import type { PullJournal } from '../model/pull-journal.js'
import type { PointBlob, PointContents, PointNotes, RecoveryPoint, TreeRoot } from '../model/recovery-point.js'

export type { PullJournal } from '../model/pull-journal.js'

/**
 * The store as jobs see it. Jobs import these types only; `cli/wire.ts` opens
 * the real one.
 */
export interface StorePort extends AsyncDisposable {
  /** 32 lower-case hex characters. */
  readonly id: string
  readonly chunkSize: number
  readonly location: string
  readonly encrypted: boolean

  readonly points: PointCatalog
  readonly runs: RunRegistry

  /**
   * Starts a new recovery point under the lease of `run`. Disposing it without
   * commit() leaves nothing but garbage for gc.
   */
  draft(run: Run): Promise<PointDraft>

  /** Walks a disk tree in disk order. Rejects with E_DAMAGED where a node is missing or wrong. Loads nodes lazily. */
  walkTree(root: TreeRoot, geometry: DiskGeometry, from?: number): AsyncIterable<TreeRun>

  /** What a tree says of single chunks; `indexes` ascend. Rejects with E_DAMAGED. */
  chunkIdsAt(side: TreeSide, indexes: Float64Array): Promise<ChunkIds>

  /** Names pieces of `bytes` (pairs offset, length in `spans`) as storing them would, and stores nothing. */
  identify(bytes: Uint8Array, spans: Uint32Array): Promise<ChunkIds>

  /** Bytes of the chunks that only one of two trees has, by walking just what differs. */
  diffTrees(a: TreeSide, b: TreeSide): AsyncIterable<TreeDifference>

  /**
   * Runs of chunks that verify found damaged in this tree and nothing has healed
   * since: a pull reads them again. Nothing, at no cost, where no damage is
   * known. Rejects with E_IO.
   */
  damagedChunks(side: TreeSide, signal: AbortSignal): AsyncIterable<TreeDifference>

  readonly chunks: ChunkSource

  /** Rejects with E_DAMAGED. */
  readBlob(blob: PointBlob): Promise<Uint8Array>
}

/** In `ChunkIds.zero`, of a chunk that is as the images that the point leaves out. */
export const AS_BELOW = 2

/** 32 bytes per chunk in `ids`; zeroes where `zero` is set: 1 where it reads as zeros, or AS_BELOW. */
export interface ChunkIds {
  readonly ids: Uint8Array
  readonly zero: Uint8Array
}

export interface TreeSide {
  readonly root: TreeRoot
  readonly geometry: DiskGeometry
}

/** Chunks `[first, first + count)` differ. */
export interface TreeDifference {
  readonly first: number
  readonly count: number
}

export interface ChunkSource {
  /**
   * Reads chunks by id into `out`: piece i goes to outSpans (offset, length)
   * pairs, `ids` has 32 bytes per piece. Every piece is checked against its
   * id. Reads in pack order, coalesced. Rejects with a DamagedChunksError
   * (E_DAMAGED) that lists the pieces that could not be had; the others are in place.
   */
  read(ids: Uint8Array, out: Uint8Array, outSpans: Uint32Array, signal: AbortSignal): Promise<void>
}

export interface PointCatalog {
  /** Newest last, by sequence within a domain. Rejects with E_DAMAGED, E_KEY; never returns a partial list as a whole one. */
  list(domainUuid?: string): Promise<RecoveryPoint[]>
  /** As list(), without those that cannot be read: for whoever reports these by themselves. */
  readable(): Promise<RecoveryPoint[]>
  /** Points that are there but cannot be read, with the reason. */
  unreadable(): Promise<{ readonly file: string; readonly error: Error }[]>
  /** The newest point of a domain in this store, by sequence. */
  latest(domainUuid: string): Promise<RecoveryPoint | undefined>
  get(id: string): Promise<RecoveryPoint | undefined>
  notes(point: RecoveryPoint): Promise<PointNotes>
  annotate(point: RecoveryPoint, notes: PointNotes): Promise<void>
  /** Deletes the point file (the commit), durably. Chunks stay until gc. */
  remove(point: RecoveryPoint): Promise<void>
}

/** One run of this program on the store, alive as long as its lease is locked. */
export interface Run extends AsyncDisposable {
  readonly id: string
  /** Durable when it resolves; replaces what was written before. */
  writeJournal(entry: PullJournal): Promise<void>
  /** Removes journal and lease. */
  finish(): Promise<void>
}

export interface DeadRun {
  readonly id: string
  readonly journal: PullJournal | undefined
  /** Forgets it: removes its files. Call after cleaning up what its journal names. */
  remove(): Promise<void>
}

export interface RunRegistry {
  /** Takes a lease that gc waits for. */
  begin(kind: string): Promise<Run>
  /** Runs whose process is gone. `domainUuid` limits it to pulls of one domain. */
  dead(domainUuid?: string): Promise<DeadRun[]>
  /** One pull of a domain at a time on this store; rejects with E_LOCKED at once. The lock dies with the process. */
  lockDomain(domainUuid: string): Promise<AsyncDisposable>
}

export interface StoredChunks {
  readonly count: number
  /** 32 bytes per chunk; zeroes where `zero` is set. */
  readonly ids: Uint8Array
  readonly zero: Uint8Array
  readonly newChunks: number
  /** Plain bytes of the new ones. */
  readonly newBytes: number
  /** What they take in the pack. */
  readonly storedBytes: number
}

export interface PointDraft extends AsyncDisposable {
  /**
   * Hashes pieces of `bytes` (pairs offset, length in `spans`), asks which are
   * new, stores those. Several calls may be under way. `bytes` is borrowed
   * until it settles. Rejects with E_NO_SPACE, E_IO.
   */
  storeChunks(bytes: Uint8Array, spans: Uint32Array, signal: AbortSignal): Promise<StoredChunks>
  storeBlob(name: string, bytes: Uint8Array, path?: string): Promise<PointBlob>
  /** A tree that starts as `parent` (another size is fine: what lies beyond it is a hole), or as all hole. */
  tree(geometry: DiskGeometry, parent: TreeSide | undefined): TreeDraft
  /**
   * Seals and syncs the packs, updates the index, checks that every pack relied
   * on is live, and writes the point file: the commit. Rejects with nothing committed.
   */
  commit(contents: PointContents): Promise<RecoveryPoint>
}

/** Changes must come in ascending order of chunk index. */
export interface TreeDraft {
  /** `indexes[i]` gets chunk i of `stored`. */
  putChunks(indexes: Float64Array, stored: StoredChunks): Promise<void>
  putRun(first: number, count: number, kind: 'hole' | 'zero' | 'below'): Promise<void>
  /** The new root; equal to the parent's where nothing changed (then no node was stored). */
  finish(): Promise<{ readonly root: TreeRoot; readonly newNodes: number; readonly storedBytes: number }>
}

/** The steps of a gc, in the order in which gc-job.ts takes them. */
export interface CollectorPort {
  /** One gc at a time; rejects with E_LOCKED while another runs. */
  lock(): Promise<AsyncDisposable>
  /** Under the lock: ends what a gc that died had begun, and forgets runs that died without leaving work. */
  tidy(signal: AbortSignal): Promise<void>
  /**
   * Lists points and packs, and finds what the points reach. Changes nothing.
   * Rejects with E_DAMAGED, E_IO where anything cannot be read: then nothing may be deleted.
   */
  survey(signal: AbortSignal): Promise<GcSurvey>
  /** Publishes, durably, what is about to go: a draft that begins from now on does without it. */
  condemn(packIds: readonly string[]): Promise<void>
  /** Takes the publication back. */
  pardon(): Promise<void>
  /** Ids of the runs that hold a lease now. */
  liveRuns(): Promise<string[]>
}

export interface GcSurvey extends AsyncDisposable {
  readonly use: StoreUse
  /**
   * Lists the points once more and adds what those reach that came since:
   * after every run that held a lease at the publication has ended. `use` is
   * then the truth for all that was condemned.
   */
  relist(signal: AbortSignal): Promise<void>
  /** Deletes and rewrites. Rejects with E_INTERRUPTED, E_NO_SPACE, E_IO; what is needed is in place at any moment. */
  sweep(work: SweepWork, signal: AbortSignal): Promise<Swept>
}

/** Ids of packs. */
export interface SweepWork {
  readonly dead: readonly string[]
  readonly rewritten: readonly string[]
  /** Called after each pack that is gone. */
  onSwept(packId: string): void
}

/** Bytes. */
export interface Swept {
  readonly deletedPacks: number
  readonly deletedBytes: number
  /** Of packs that were made for what was still needed. */
  readonly writtenBytes: number
  /** Packs that were to be rewritten and stay: a record in them that is needed cannot be read. */
  readonly damagedPacks: readonly string[]
}

/** Bytes. */
export interface StoreUsage {
  /** By label: what nothing with another label reaches, so what deleting all of that label would free. */
  readonly alone: ReadonlyMap<number, { readonly storedBytes: number; readonly plainBytes: number }>
  /** Of everything reached: in packs, as plain bytes once, and as often as it is named. */
  readonly storedBytes: number
  readonly plainBytes: number
  readonly referencedBytes: number
  readonly records: number
  /** Of all pack files, garbage included. */
  readonly packBytes: number
  /** Ids that no pack has. */
  readonly missing: number
}

/** How verify looks at a store. */
export interface VerifierPort {
  /** Walks the trees of `points` and holds what they name against what the packs have. Rejects with E_IO, E_INTERRUPTED. */
  survey(points: readonly RecoveryPoint[], signal: AbortSignal): Promise<VerifySurvey>
  /** When packs (ids in hex) were last read as a whole, in wall-clock milliseconds. */
  verifiedPacks(): Promise<ReadonlyMap<string, number>>
  /** Durable when it resolves; replaces what was noted. */
  noteVerified(packs: ReadonlyMap<string, number>): Promise<void>
}

/** A pack with something in it that is needed. Bytes. */
export interface VerifiedPack {
  readonly id: string
  readonly liveBytes: number
}

/** A part of a recovery point that the store cannot give back: bytes of a disk, or a whole file beside the disks. */
export type LostPart =
  | { readonly point: RecoveryPoint; readonly disk: string; readonly offset: number; readonly length: number }
  | { readonly point: RecoveryPoint; readonly file: string }

export interface VerifySurvey extends AsyncDisposable {
  readonly packs: readonly VerifiedPack[]
  /** Packs of which nothing can be told, and those that lost header or footer and hold something needed. */
  readonly damagedPacks: readonly string[]
  /** Ids found lost so far. */
  readonly lostCount: number
  /** Reads what is needed of one pack and checks every byte. Gives how many ids are lost. Rejects with E_INTERRUPTED. */
  readPack(packId: string, onRead: (bytes: number) => void, signal: AbortSignal): Promise<number>
  /** What the lost ids are to these points. */
  findLost(points: readonly RecoveryPoint[], signal: AbortSignal): AsyncIterable<LostPart>
  /** Keeps the damage in the store, so that the next pull heals it. */
  remember(): Promise<void>
}
