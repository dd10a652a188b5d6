/** What a gc knows of one pack. Bytes. */
export interface PackUse {
  readonly id: string
  readonly size: number
  /** As in the census: what can be said of its contents. */
  readonly state: 'sealed' | 'unsealed' | 'unreadable' | 'stub'
  readonly records: number
  readonly recordBytes: number
  readonly liveRecords: number
  readonly liveBytes: number
}

export interface StoreUse {
  readonly packs: readonly PackUse[]
  /** Ids that recovery points name and no pack has. */
  readonly missing: number
  readonly points: number
  /** Runs under way: a pack without a footer may be theirs. */
  readonly liveRuns: number
}

export interface GcOptions {
  /** A pack whose live part is smaller than this share is rewritten; 0 rewrites none. */
  readonly threshold: number
}

export const DEFAULT_LIVE_SHARE = 0.6
/** So many packs, each so small, are worth merging. */
const MANY_SMALL_PACKS = 64
const SMALL_PACK_BYTES = 4 * 1024 * 1024

/** What a gc would do; printing it is `--dry-run`. Bytes. */
export interface GcPlan {
  /** Nothing in them is needed. */
  readonly dead: readonly PackUse[]
  /** Their live records move to new packs. */
  readonly rewritten: readonly PackUse[]
  /** Packs that nobody can tell the contents of, and unfinished ones that may be needed: left alone. */
  readonly doubtful: readonly PackUse[]
  /** What the store's packs have now. */
  readonly storeBytes: number
  readonly freedBytes: number
  /** Garbage that stays, in packs that are mostly needed. */
  readonly keptGarbageBytes: number
}

/**
 * Chooses packs to delete and to rewrite. A sealed pack's footer is believed;
 * of any other, only "nothing in it is needed, and nothing needed is missing"
 * is reason enough.
 */
export function planGc(use: StoreUse, options: GcOptions): GcPlan {
  const dead: PackUse[] = []
  const rewritten: PackUse[] = []
  const doubtful: PackUse[] = []
  const kept: PackUse[] = []
  const small = use.packs.filter(pack => pack.state === 'sealed' && isSmall(pack))
  const merge = options.threshold > 0 && small.length >= MANY_SMALL_PACKS
  for (const pack of use.packs) {
    switch (pack.state) {
      case 'sealed':
        if (pack.liveRecords === 0) dead.push(pack)
        else if (isSparse(pack, options.threshold) || (merge && isSmall(pack))) rewritten.push(pack)
        else kept.push(pack)
        break
      case 'stub':
      case 'unsealed':
        if (pack.liveRecords === 0 && use.missing === 0 && use.liveRuns === 0) dead.push(pack)
        else doubtful.push(pack)
        break
      case 'unreadable':
        doubtful.push(pack)
        break
    }
  }
  const sum = (packs: readonly PackUse[], bytes: (pack: PackUse) => number) =>
    packs.reduce((total, pack) => total + bytes(pack), 0)
  return {
    dead,
    rewritten,
    doubtful,
    storeBytes: sum(use.packs, pack => pack.size),
    freedBytes: sum(dead, pack => pack.size) + sum(rewritten, garbageOf),
    keptGarbageBytes: sum(kept, garbageOf),
  }
}

/** What of `plan` still holds after the points were listed once more: nothing that was not condemned before. */
export function narrowPlan(plan: GcPlan, now: GcPlan): GcPlan {
  const condemned = new Set([...plan.dead, ...plan.rewritten].map(pack => pack.id))
  const only = (packs: readonly PackUse[]) => packs.filter(pack => condemned.has(pack.id))
  return { ...now, dead: only(now.dead), rewritten: only(now.rewritten) }
}

function garbageOf(pack: PackUse): number {
  return pack.recordBytes - pack.liveBytes
}

function isSparse(pack: PackUse, threshold: number): boolean {
  return pack.liveBytes < pack.recordBytes * threshold
}

function isSmall(pack: PackUse): boolean {
  return pack.size < SMALL_PACK_BYTES
}
