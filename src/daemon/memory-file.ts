import { join } from 'node:path'

import type { DurableFs } from '../base/durable-fs.js'
import type { TaskMemory } from './task-memory.js'

/**
 * What the scheduler knows of its tasks' past, in one small file that is
 * replaced as a whole. Losing it costs no point: tasks count as new then, and
 * run at their next time.
 */
export class MemoryFile {
  readonly #fs: DurableFs
  readonly #directory: string
  #latest: (() => Memories) | undefined
  #writing: Promise<void> | undefined

  constructor(fs: DurableFs, directory: string) {
    this.#fs = fs
    this.#directory = directory
  }

  /** Empty where there is none, or where it cannot be understood. */
  async read(): Promise<Memories> {
    const bytes = await this.#fs.readWhole(this.#path)
    try {
      return decodeMemory(JSON.parse(Buffer.from(bytes ?? []).toString('utf8')))
    } catch {
      return new Map()
    }
  }

  /**
   * Has what `contents` gives written soon. Calls during a write are joined
   * into one that follows it. Failures go to `onFailure`: the history has it all.
   */
  save(contents: () => Memories, onFailure: (error: unknown) => void): void {
    this.#latest = contents
    this.#writing ??= this.#writeAll()
      .catch(onFailure)
      .finally(() => (this.#writing = undefined))
  }

  /** Resolves when everything that was to be saved is. */
  async settled(): Promise<void> {
    await this.#writing
  }

  async #writeAll(): Promise<void> {
    // What is saved in one go with what comes right after it.
    await Promise.resolve()
    for (let next = this.#latest; next !== undefined; next = this.#latest) {
      this.#latest = undefined
      await this.#write(Buffer.from(JSON.stringify(encodeMemory(next()))))
    }
  }

  async #write(bytes: Uint8Array): Promise<void> {
    const temporary = `${this.#path}.new`
    await this.#fs.remove(temporary)
    const file = await this.#fs.createFile(temporary)
    try {
      await file.append(bytes)
      await file.sync()
    } finally {
      await file.close()
    }
    await this.#fs.renameReplace(temporary, this.#path)
    await this.#fs.syncDirectory(this.#directory)
  }

  get #path(): string {
    return join(this.#directory, 'memory.json')
  }
}

/** By id of the task. */
export type Memories = ReadonlyMap<string, TaskMemory>

const VERSION = 1

export function encodeMemory(tasks: Memories): object {
  return { version: VERSION, tasks: Object.fromEntries(tasks) }
}

/** Leaves out what it does not understand: a task without memory is only a new one. */
export function decodeMemory(value: unknown): Memories {
  if (!isRecord(value) || value['version'] !== VERSION) return new Map()
  const tasks = isRecord(value['tasks']) ? Object.entries(value['tasks']) : []
  return new Map(
    tasks.flatMap(([id, raw]) => {
      const memory = decodeTask(raw)
      return memory === undefined ? [] : [[id, memory] as const]
    }),
  )
}

const STATUSES = ['success', 'partial', 'failed', 'skipped'] as const

function decodeTask(raw: unknown): TaskMemory | undefined {
  if (!isRecord(raw)) return undefined
  const accountedUntil = numberIn(raw, 'accountedUntil')
  const firstSeen = numberIn(raw, 'firstSeen')
  if (accountedUntil === undefined || firstSeen === undefined) return undefined
  return {
    accountedUntil,
    firstSeen,
    last: decodeLast(raw['last']),
    lastSuccess: numberIn(raw, 'lastSuccess'),
    lastSkip: numberIn(raw, 'lastSkip'),
    toldStale: numberIn(raw, 'toldStale'),
  }
}

function decodeLast(raw: unknown): TaskMemory['last'] {
  if (!isRecord(raw)) return undefined
  const status = STATUSES.find(one => one === raw['status'])
  const started = numberIn(raw, 'started')
  const ended = numberIn(raw, 'ended')
  const id = raw['id']
  if (status === undefined || started === undefined || ended === undefined || typeof id !== 'string') return undefined
  return { id, started, ended, due: numberIn(raw, 'due'), status, attempt: numberIn(raw, 'attempt') ?? 1 }
}

function numberIn(record: Readonly<Record<string, unknown>>, key: string): number | undefined {
  const value = record[key]
  return typeof value === 'number' && Number.isFinite(value) ? value : undefined
}

function isRecord(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}
