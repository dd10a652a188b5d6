import { forEachLimited } from '../base/async.js'
import { BufferPool } from '../base/buffer-pool.js'
import { BackupError, errorCodeOf, messageOf, type Warning } from '../base/errors.js'
import { invariant } from '../base/invariant.js'
import type { BackupSessionPort, ExportedDisk } from '../libvirt/session-types.js'
import type { DiskGeometry } from '../model/disk-tree.js'
import type { DomainRef, PointDisk } from '../model/recovery-point.js'
import type { PointDraft, TreeSide } from '../store/store-types.js'
import type { BelowOfRead } from './below-of-read.js'
import { isSameContent } from './content-id.js'
import { PulledBelow } from './pull-below.js'
import { BATCH_BYTES, type DiskExport, type DiskSink, type PulledDisk, pullDisk } from './pull-disk.js'
import type { PullPart } from './pull-part.js'
import type { PullPorts } from './pull-ports.js'
import { bytesOf } from './sink-writer.js'

/** Disks of one domain that are read at the same time. */
const DISKS_AT_ONCE = 4
/** Buffers of all disks together; with BATCH_BYTES this bounds a pull's memory. */
export const POOL_BUFFERS = 16
/** Chunks per disk and pull that the dirty bitmap calls clean and that are read all the same. */
export const CANARIES = 256

/** One target of a read, and what has become of it so far. */
export class PartOfRead {
  readonly part: PullPart
  readonly draft: PointDraft
  readonly disks = new Map<string, PointDisk>()
  readonly findings: Warning[] = []
  #failure: { readonly error: unknown } | undefined

  constructor(part: PullPart, draft: PointDraft) {
    this.part = part
    this.draft = draft
  }

  /** The first failure counts. */
  fail(error: unknown): void {
    this.#failure ??= { error }
  }

  get failure(): { readonly error: unknown } | undefined {
    return this.#failure
  }
}

export interface DisksToPull {
  readonly domain: DomainRef
  readonly session: BackupSessionPort
  /** All with chunks of one size, and bases of one family. */
  readonly parts: readonly PartOfRead[]
  readonly below: BelowOfRead
}

/**
 * Reads every disk of the session once, into all parts. What fails for one of
 * them is told by that part; rejects where reading fails, or `signal` is aborted.
 */
export async function pullDisks(ports: PullPorts, work: DisksToPull, signal: AbortSignal): Promise<void> {
  const { session, parts } = work
  const chunkSize = parts[0]?.part.store.chunkSize
  invariant(chunkSize !== undefined, 'a read has a part')
  const pool = new BufferPool(POOL_BUFFERS, Math.max(BATCH_BYTES, chunkSize))
  await forEachLimited(session.disks, DISKS_AT_ONCE, async exported => {
    const { target, size } = exported
    await using source = await ports.openExport(session.address, exported, signal)
    if (source.size !== size) {
      throw new BackupError('E_NBD_PROTOCOL', `${target}: the export has ${source.size} bytes, the disk ${size}`)
    }
    await using under = await work.below.exportOf(target, signal)
    const below = under === undefined ? undefined : new PulledBelow(under, pool.bufferBytes)
    await new DiskOfParts(ports, work, { exported, source, pool, below, geometry: { size, chunkSize } }).pull(signal)
  })
}

interface DiskToPull {
  readonly exported: ExportedDisk
  readonly source: DiskExport
  readonly pool: BufferPool
  readonly below: PulledBelow | undefined
  readonly geometry: DiskGeometry
}

/** One disk, for all parts that have not failed. */
class DiskOfParts {
  readonly #ports: PullPorts
  readonly #work: DisksToPull
  readonly #disk: DiskToPull
  readonly #seen = { totalBytes: 0, doneBytes: 0, newBytes: 0 }

  constructor(ports: PullPorts, work: DisksToPull, disk: DiskToPull) {
    this.#ports = ports
    this.#work = work
    this.#disk = disk
  }

  async pull(signal: AbortSignal): Promise<void> {
    const parents = this.#work.parts.map(part => this.#parentOf(part))
    const size = parents.find(parent => parent !== undefined)?.geometry.size
    const wishes = this.#work.parts.map((part, i) => {
      // Resized between two reads of one family: then only the first inherits.
      const parent = parents[i]?.geometry.size === size ? parents[i] : undefined
      return { part, parent, isAudit: parent !== undefined && this.#planned(part).isAudit }
    })
    const again = await this.#pullFor(wishes, signal)
    if (again.length === 0) return
    // What was inherited cannot be relied on: everything is in the domain still.
    await this.#pullFor(
      again.map(part => ({ part, parent: undefined, isAudit: false })),
      signal,
    )
  }

  /** Gives the parts whose disk is to be read once more, from the beginning. */
  async #pullFor(wishes: readonly DiskWish[], signal: AbortSignal): Promise<readonly PartOfRead[]> {
    const alive = wishes.filter(({ part }) => part.failure === undefined)
    if (alive.length === 0) return []
    const { source, geometry, pool, below } = this.#disk
    const results = await pullDisk(
      {
        source,
        geometry,
        pool,
        below,
        sinks: alive.map(wish => sinkOf(wish)),
        canaries: { count: CANARIES, random: this.#ports.random },
        onPlanned: run => {
          if (run.kind === 'read') this.#seen.totalBytes += bytesOf(run, geometry)
          this.#show()
        },
        onProgress: ({ readBytes, newBytes }) => {
          this.#seen.doneBytes += readBytes
          this.#seen.newBytes += newBytes
          this.#show()
        },
      },
      signal,
    )
    return alive
      .filter((wish, i) => {
        const result = results[i]
        if (result?.kind === 'pulled') return this.#take(wish, result.disk)
        if (wish.parent !== undefined && errorCodeOf(result?.error) === 'E_DAMAGED') {
          wish.part.findings.push(lostParentWarning(this.#disk.exported.target, result?.error))
          return true
        }
        wish.part.fail(result?.error)
        return false
      })
      .map(({ part }) => part)
  }

  /** true where the result is not to be trusted. */
  #take({ part, parent, isAudit }: DiskWish, pulled: PulledDisk): boolean {
    const { target, size } = this.#disk.exported
    const isIncremental = parent !== undefined && !isAudit
    if (pulled.reread > 0) part.findings.push(healedWarning(target, pulled.reread))
    if (pulled.isCut) {
      part.findings.push(cutWarning(target))
      return true
    }
    if (pulled.missed > 0) part.findings.push(bitmapWarning(target, pulled, isAudit))
    if (pulled.missed > 0 && isIncremental) return true
    const mode = isIncremental ? 'incremental' : 'full'
    const { root, statistics } = pulled
    const { source } = this.#planned(part)
    const below = this.#work.below.factsOf(target)
    part.disks.set(target, { target, size, root, mode, source, statistics, ...(below === undefined ? {} : { below }) })
    return false
  }

  /** I7: a parent only where libvirt confirmed a base of this part's own family for this very disk. */
  #parentOf(read: PartOfRead): TreeSide | undefined {
    const { part } = read
    const { target, bitmap } = this.#disk.exported
    if (bitmap === undefined || part.plannedDisk(target)?.base === undefined) return undefined
    const before = part.latest?.disks.find(disk => disk.target === target)
    invariant(before !== undefined, 'I7: an incremental disk has a parent')
    // What was as the images below is only inherited where these are what they were.
    const now = this.#work.below.factsOf(target)
    if (!isSameContent(before.below?.contentId, now?.contentId)) {
      read.findings.push(changedBelowWarning(target))
      return undefined
    }
    return { root: before.root, geometry: { size: before.size, chunkSize: part.store.chunkSize } }
  }

  #planned({ part }: PartOfRead) {
    const planned = part.plannedDisk(this.#disk.exported.target)
    invariant(planned !== undefined, 'libvirt exports only what was asked for')
    return planned
  }

  #show(): void {
    const { target } = this.#disk.exported
    this.#ports.progress.report({ kind: 'disk', subject: this.#work.domain.name, target, ...this.#seen })
  }
}

interface DiskWish {
  readonly part: PartOfRead
  readonly parent: TreeSide | undefined
  readonly isAudit: boolean
}

function sinkOf({ part, parent, isAudit }: DiskWish): DiskSink {
  return {
    parent,
    isAudit,
    store: part.part.store,
    draft: part.draft,
    pace: part.part.target.pace,
    isGivenUp: () => part.failure !== undefined,
    onFailure: error => {
      // What the parent's tree lost is read again.
      if (parent === undefined || errorCodeOf(error) !== 'E_DAMAGED') part.fail(error)
    },
  }
}

function changedBelowWarning(target: string): Warning {
  return {
    code: 'W_DISK_CHANGED',
    message:
      `${target}: the images below it hold something else than at the last recovery point: ` +
      'reading everything, storing only what changed',
  }
}

function bitmapWarning(target: string, { compared, missed }: PulledDisk, isAudit: boolean): Warning {
  return {
    code: 'W_BITMAP',
    message:
      `${target}: ${missed} of ${compared} chunks that the dirty bitmap calls unchanged have changed: something ` +
      'writes to the image past QEMU, or its bitmap is broken. ' +
      (isAudit ? 'This point has all of them' : 'Everything was read instead') +
      '; earlier incremental points of this disk may lack such changes',
  }
}

function cutWarning(target: string): Warning {
  return {
    code: 'W_CHAIN',
    message:
      `${target}: it was shrunk and grown again since the last recovery point, which its dirty bitmap does not tell: ` +
      'reading everything, storing only what changed',
  }
}

function healedWarning(target: string, chunks: number): Warning {
  return {
    code: 'W_DAMAGE_HEALED',
    message: `${target}: ${chunks} chunks that verify had found damaged in the store were read again from the disk`,
  }
}

function lostParentWarning(target: string, error: unknown): Warning {
  return {
    code: 'W_CHAIN',
    message: `${target}: the store has lost a part of the last recovery point (${messageOf(error)}): everything was read`,
  }
}
