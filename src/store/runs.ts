import { join } from 'node:path'

import type { Clock } from '../base/clock.js'
import { type DurableFs, type FileLock, publishFile } from '../base/durable-fs.js'
import { BackupError, errorCodeOf } from '../base/errors.js'
import { isHex, toHex } from '../base/hex.js'
import type { RandomSource } from '../base/random.js'
import { decodeJournal, encodeJournal } from '../format/journal.js'
import { isDomainUuid } from '../format/point.js'
import type { PullJournal } from '../model/pull-journal.js'
import type { FileSeals } from './file-seals.js'
import type { DeadRun, Run, RunRegistry } from './store-types.js'

const LEASE = '.lease'
const JOURNAL = '.journal'
/** How long a commit waits for a gc's short exclusive moment. */
const COMMIT_LOCK_TIMEOUT_MS = 120_000
const LOCK_RETRY_MS = 50
const GC_LOCK = 'gc.lock'
const GC_LOCK_ATTEMPTS = 4

export interface RunsOptions {
  readonly fs: DurableFs
  readonly root: string
  readonly clock: Clock
  readonly random: RandomSource
  readonly seals: FileSeals
}

/**
 * Leases, journals and locks: kernel locks on files below `jobs/` and
 * `locks/`, which end with their process. There is no stale lock.
 */
export class Runs implements RunRegistry {
  readonly #fs: DurableFs
  readonly #jobs: string
  readonly #locks: string
  readonly #clock: Clock
  readonly #random: RandomSource
  readonly #seals: FileSeals
  /** Of all runs begun here; a process begins few. */
  readonly #own = new Set<string>()

  constructor(options: RunsOptions) {
    this.#fs = options.fs
    this.#jobs = join(options.root, 'jobs')
    this.#locks = join(options.root, 'locks')
    this.#clock = options.clock
    this.#random = options.random
    this.#seals = options.seals
  }

  /** `kind` is for people who look at the file. */
  async begin(kind: string): Promise<LeasedRun> {
    const id = toHex(this.#random(16))
    this.#own.add(id)
    const path = join(this.#jobs, `${id}${LEASE}`)
    // Locked before it has its name: whoever sees a lease that can be locked sees a dead one.
    const temporary = join(this.#jobs, `.tmp-${id}`)
    const file = await this.#fs.createFile(temporary)
    let lock: FileLock | undefined
    try {
      await file.append(Buffer.from(`${kind}\n`)).finally(() => file.close())
      lock = await this.#fs.lock(temporary, 'exclusive')
      if (lock === undefined) throw new BackupError('E_LOCKED', `${temporary} is locked by someone else`)
      if (!(await this.#fs.renameNoReplace(temporary, path))) throw new BackupError('E_EXISTS', `${path} exists`)
    } catch (error) {
      await lock?.[Symbol.asyncDispose]()
      await this.#fs.remove(temporary).catch(() => false)
      throw error
    }
    return new LeasedRun({ fs: this.#fs, directory: this.#jobs, random: this.#random, seals: this.#seals, id, lock })
  }

  /** Ids of the runs whose lease is locked now: what a gc waits for. */
  async live(): Promise<string[]> {
    const live: string[] = []
    for (const id of await this.#ids(LEASE)) if (!(await this.#isDead(id))) live.push(id)
    return live
  }

  /** How many runs are alive that were not begun here. */
  async others(): Promise<number> {
    return (await this.live()).filter(id => !this.#own.has(id)).length
  }

  async dead(domainUuid?: string): Promise<DeadRun[]> {
    const dead: DeadRun[] = []
    // A journal whose lease the power cut took is that of a dead run too.
    for (const id of new Set([...(await this.#ids(JOURNAL)), ...(await this.#ids(LEASE))])) {
      if (!(await this.#isDead(id))) continue
      const journal = await this.#journal(id)
      if (domainUuid !== undefined && journal?.domainUuid !== domainUuid) continue
      dead.push({ id, journal, remove: () => removeRun(this.#fs, this.#jobs, id) })
    }
    return dead
  }

  async lockDomain(domainUuid: string): Promise<AsyncDisposable> {
    if (!isDomainUuid(domainUuid)) throw new BackupError('E_USAGE', `${JSON.stringify(domainUuid)} is no domain uuid`)
    const lock = await this.#fs.lock(join(this.#locks, `domain-${domainUuid}.lock`), 'exclusive')
    if (lock === undefined) {
      throw new BackupError('E_LOCKED', `another backup of domain ${domainUuid} into this store is under way`)
    }
    return lock
  }

  /** Held while a point is committed, exclusively while a gc lists points for the last time. E_LOCKED after two minutes. */
  async lockCommits(mode: 'shared' | 'exclusive'): Promise<AsyncDisposable> {
    const deadline = this.#clock.monotonic() + COMMIT_LOCK_TIMEOUT_MS
    for (;;) {
      const lock = await this.#fs.lock(join(this.#locks, 'commit.lock'), mode)
      if (lock !== undefined) return lock
      if (this.#clock.monotonic() >= deadline) throw new BackupError('E_LOCKED', 'the commit lock is not let go')
      await this.#clock.sleep(LOCK_RETRY_MS)
    }
  }

  /** One gc at a time; rejects with E_LOCKED while another runs. The lock dies with the process. */
  async lockGc(): Promise<AsyncDisposable> {
    // Whoever only looks (isGcActive) holds it for a moment.
    for (let attempt = 0; attempt < GC_LOCK_ATTEMPTS; attempt++) {
      const lock = await this.#fs.lock(join(this.#locks, GC_LOCK), 'exclusive')
      if (lock !== undefined) return lock
      await this.#clock.sleep(LOCK_RETRY_MS)
    }
    throw new BackupError('E_LOCKED', 'another gc is at work on this store', {
      hints: ['Wait for it; nothing needs unlocking, the lock ends with that process.'],
    })
  }

  /** Whether a gc holds its lock right now. */
  async isGcActive(): Promise<boolean> {
    await using lock = await this.#fs.lock(join(this.#locks, GC_LOCK), 'shared')
    return lock === undefined
  }

  async #ids(ending: string): Promise<string[]> {
    const names = await this.#fs.list(this.#jobs)
    return names
      .filter(name => name.endsWith(ending) && isHex(name.slice(0, -ending.length), 32))
      .map(name => name.slice(0, 32))
      .sort()
  }

  async #isDead(id: string): Promise<boolean> {
    const path = join(this.#jobs, `${id}${LEASE}`)
    // Looking must not create: lock() would.
    if ((await this.#fs.fileSize(path)) === undefined) return true
    await using lock = await this.#fs.lock(path, 'exclusive')
    return lock !== undefined
  }

  async #journal(id: string): Promise<PullJournal | undefined> {
    const bytes = await this.#fs.readWhole(join(this.#jobs, `${id}${JOURNAL}`))
    if (bytes === undefined) return undefined
    try {
      return decodeJournal(id, bytes, { ...this.#seals.expectation(), encrypted: this.#seals.encrypted })
    } catch (error) {
      if (errorCodeOf(error) === 'E_DAMAGED') return undefined
      throw error
    }
  }
}

interface LeasedRunOptions {
  readonly fs: DurableFs
  readonly directory: string
  readonly random: RandomSource
  readonly seals: FileSeals
  readonly id: string
  readonly lock: FileLock
}

/** Disposing it without finish() leaves the journal: the run is then dead, and its successor cleans up. */
export class LeasedRun implements Run {
  readonly id: string
  readonly #fs: DurableFs
  readonly #directory: string
  readonly #random: RandomSource
  readonly #seals: FileSeals
  readonly #lock: FileLock
  #hasJournal = false
  #finished = false

  constructor(options: LeasedRunOptions) {
    this.id = options.id
    this.#fs = options.fs
    this.#directory = options.directory
    this.#random = options.random
    this.#seals = options.seals
    this.#lock = options.lock
  }

  async writeJournal(entry: PullJournal): Promise<void> {
    this.#hasJournal = true
    await publishFile(this.#fs, {
      directory: this.#directory,
      name: `${this.id}${JOURNAL}`,
      temporary: `.tmp-${toHex(this.#random(16))}`,
      bytes: encodeJournal(this.id, entry, this.#seals.next()),
      existing: 'replace',
    })
  }

  /** Whether the lease still protects what this run inherits: nobody has removed its file. */
  isCurrent(): Promise<boolean> {
    return this.#lock.isNamed(join(this.#directory, `${this.id}${LEASE}`))
  }

  async finish(): Promise<void> {
    if (this.#finished) return
    this.#finished = true
    try {
      await removeRun(this.#fs, this.#directory, this.id)
    } finally {
      await this.#lock[Symbol.asyncDispose]()
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#finished) return
    if (this.#hasJournal) {
      await this.#lock[Symbol.asyncDispose]()
      return
    }
    // What could not be removed is a dead run without a journal; the failure that led here says more.
    await this.finish().catch(() => undefined)
  }
}

async function removeRun(fs: DurableFs, directory: string, id: string): Promise<void> {
  // The journal last of all would be found without a lease, and cleaned up after once more: that is the harmless order.
  await fs.remove(join(directory, `${id}${JOURNAL}`))
  await fs.remove(join(directory, `${id}${LEASE}`))
  await fs.syncDirectory(directory)
}
