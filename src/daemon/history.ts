import { dirname, join } from 'node:path'

import type { AppendFile, DurableFs, FileLock } from '../base/durable-fs.js'
import { type HistoryEntry, historyDocument, type StartEntry, timeOf, tryReadHistoryLine } from './history-entry.js'

export interface HistoryOptions {
  /** Where its files are; its parent exists. */
  readonly directory: string
  readonly fs: DurableFs
  readonly now: () => number
  /** For names of files. */
  readonly random: (length: number) => Uint8Array
  /** A file that is larger is followed by a new one. */
  readonly maxFileBytes?: number | undefined
  /** Of all files; the oldest go first. */
  readonly maxTotalBytes?: number | undefined
}

export interface HistoryQuery {
  /** Wall-clock milliseconds. */
  readonly since?: number | undefined
  readonly domain?: string | undefined
  readonly task?: string | undefined
  readonly statuses?: readonly string[] | undefined
  /** The newest so many. */
  readonly limit?: number | undefined
}

const MAX_FILE_BYTES = 4 * 1024 * 1024
const MAX_TOTAL_BYTES = 32 * 1024 * 1024
const FILE_NAME = /^\d{15}-[0-9a-f]{8}\.ndjson$/

/**
 * Every run of every process, in files of one JSON object a line:
 *
 *     history/001763683200000-9f3c2a1b.ndjson
 *
 * Each process that writes has a file of its own, which it locks while it
 * lives, so none waits for another; the small files of processes that are gone
 * are taken into the file of the next one. A line that a crash tore is left
 * out when reading; every other is there once append() has resolved.
 */
export class History implements AsyncDisposable {
  readonly #options: HistoryOptions
  #file: { readonly name: string; readonly append: AppendFile; readonly lock: FileLock | undefined } | undefined
  /** One append after another. */
  #tail: Promise<void> = Promise.resolve()

  private constructor(options: HistoryOptions) {
    this.#options = options
  }

  /** Makes the directory where it is absent; no file before the first append(). Rejects as DurableFs. */
  static async open(options: HistoryOptions): Promise<History> {
    const { fs, directory } = options
    if (await fs.makeDirectory(directory)) await fs.syncDirectory(dirname(directory))
    return new History(options)
  }

  /** Durable when it resolves. Rejects with E_NO_SPACE, E_IO, E_REFUSED; the history goes on with a new file then. */
  append(entry: HistoryEntry): Promise<void> {
    const written = this.#tail.then(() => this.#append(entry))
    this.#tail = written.catch(() => undefined)
    return written
  }

  /** What is known, oldest first. Lines that cannot be read are left out. */
  async read(query: HistoryQuery = {}): Promise<readonly HistoryEntry[]> {
    await this.#tail
    const { fs, directory } = this.#options
    const entries = new Map<string, HistoryEntry>()
    for (const name of await this.#names()) {
      const bytes = await fs.readWhole(join(directory, name))
      for (const line of linesOf(bytes)) {
        const entry = tryReadHistoryLine(line)
        if (entry.kind === 'unreadable' || !isWanted(entry, query)) continue
        // A merge that a crash cut short has left some lines twice.
        entries.set(line, entry)
      }
    }
    const sorted = [...entries.values()].sort((a, b) => timeOf(a) - timeOf(b))
    return query.limit === undefined ? sorted : sorted.slice(-query.limit)
  }

  /** Takes in the files of processes that are gone, and drops what is too old to keep. Before the first append of a daemon. */
  async tidy(): Promise<void> {
    const run = this.#tail.then(() => this.#tidy())
    this.#tail = run.catch(() => undefined)
    await run
  }

  /** Runs that began and whose process died before they ended. */
  async died(): Promise<readonly StartEntry[]> {
    await this.#tail
    const { fs, directory } = this.#options
    const begun: StartEntry[] = []
    const ended = new Set<string>()
    for (const name of await this.#names()) {
      const path = join(directory, name)
      // Before the reading: who dies in between is found the next time.
      const lock = name === this.#file?.name ? undefined : await fs.lock(path, 'exclusive')
      for (const line of linesOf(await fs.readWhole(path))) {
        const entry = tryReadHistoryLine(line)
        if (entry.kind === 'run') ended.add(entry.id)
        if (entry.kind === 'start' && lock !== undefined) begun.push(entry)
      }
      await lock?.[Symbol.asyncDispose]()
    }
    return begun.filter(({ id }) => !ended.has(id))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#tail
    await this.#close()
  }

  async #append(entry: HistoryEntry): Promise<void> {
    const bytes = Buffer.from(`${JSON.stringify(historyDocument(entry))}\n`)
    const limit = this.#options.maxFileBytes ?? MAX_FILE_BYTES
    if (this.#file !== undefined && this.#file.append.size + bytes.length > limit) {
      await this.#close()
      await this.#dropOldest()
    }
    this.#file ??= await this.#create()
    try {
      await this.#file.append.append(bytes)
      await this.#file.append.sync()
    } catch (error) {
      // A file whose sync failed is never written again.
      await this.#close()
      throw error
    }
  }

  async #create() {
    const { fs, directory, now, random } = this.#options
    const suffix = Buffer.from(random(4)).toString('hex')
    const name = `${String(Math.max(0, Math.round(now()))).padStart(15, '0')}-${suffix}.ndjson`
    const path = join(directory, name)
    const append = await fs.createFile(path)
    const lock = await fs.lock(path, 'exclusive')
    await fs.syncDirectory(directory)
    return { name, append, lock }
  }

  async #close(): Promise<void> {
    const file = this.#file
    this.#file = undefined
    await file?.append.close()
    await file?.lock?.[Symbol.asyncDispose]()
  }

  async #tidy(): Promise<void> {
    const { fs, directory, maxFileBytes = MAX_FILE_BYTES } = this.#options
    let taken = 0
    for (const name of await this.#names()) {
      if (name === this.#file?.name) continue
      const path = join(directory, name)
      const size = (await fs.fileSize(path)) ?? 0
      if (size > maxFileBytes / 4 || taken + size > maxFileBytes) continue
      const lock = await fs.lock(path, 'exclusive')
      if (lock === undefined) continue
      try {
        const lines = linesOf(await fs.readWhole(path))
        this.#file ??= await this.#create()
        if (lines.length > 0) await this.#file.append.append(Buffer.from(`${lines.join('\n')}\n`))
        await this.#file.append.sync()
        await fs.remove(path)
        taken += size
      } finally {
        await lock[Symbol.asyncDispose]()
      }
    }
    if (taken > 0) await fs.syncDirectory(directory)
    await this.#dropOldest()
  }

  async #dropOldest(): Promise<void> {
    const { fs, directory, maxTotalBytes = MAX_TOTAL_BYTES } = this.#options
    let total = 0
    for (const name of (await this.#names()).reverse()) {
      const path = join(directory, name)
      total += (await fs.fileSize(path)) ?? 0
      if (total > maxTotalBytes && name !== this.#file?.name) await fs.remove(path)
    }
  }

  /** The oldest first. */
  async #names(): Promise<string[]> {
    const { fs, directory } = this.#options
    return (await fs.list(directory)).filter(name => FILE_NAME.test(name)).sort()
  }
}

/** Whole lines; what follows the last line end was torn by a crash. */
function linesOf(bytes: Uint8Array | undefined): string[] {
  const text = Buffer.from(bytes ?? []).toString('utf8')
  const end = text.lastIndexOf('\n')
  return end < 0
    ? []
    : text
        .slice(0, end)
        .split('\n')
        .filter(line => line !== '')
}

function isWanted(entry: HistoryEntry, query: HistoryQuery): boolean {
  if (query.since !== undefined && timeOf(entry) < query.since) return false
  if (entry.kind === 'event')
    return query.domain === undefined && query.task === undefined && query.statuses === undefined
  const { domain, task } = entry
  if (query.task !== undefined && task !== query.task) return false
  if (query.domain !== undefined && domain?.name !== query.domain && domain?.uuid !== query.domain) return false
  if (query.statuses === undefined) return true
  return query.statuses.includes(entry.kind === 'run' ? entry.status : entry.kind)
}
