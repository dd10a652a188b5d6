import { watch } from 'node:fs'
import { readdir, stat } from 'node:fs/promises'
import { dirname, join } from 'node:path'

import type { Clock } from '../base/clock.js'
import { messageOf } from '../base/errors.js'
import { type ConfigRequest, defaultFiles, type LoadedConfig, readConfig } from '../config/load.js'
import { formatProblem } from '../config/problems.js'

/** What a look at the configuration found. */
export type ConfigChange =
  | { readonly kind: 'loaded'; readonly loaded: LoadedConfig }
  /** The last good one goes on. */
  | { readonly kind: 'broken'; readonly problems: readonly string[] }

/** File systems that cannot be watched, and moved files, are seen after this at the latest. */
const POLL_MS = 10_000
/** Editors write in several steps. */
const SETTLE_MS = 300

/**
 * The configuration now, and again whenever its files have changed. A change
 * that cannot be used is told once, and what was good before stays good.
 */
export class ConfigFollower {
  readonly #request: ConfigRequest
  readonly #clock: Clock
  #waker = new AbortController()
  #isAsked = false

  constructor(request: ConfigRequest, clock: Clock) {
    this.#request = request
    this.#clock = clock
  }

  /** Reads again although nothing seems to have changed; SIGHUP. */
  reload(): void {
    this.#isAsked = true
    this.#waker.abort()
  }

  /** Ends when `signal` aborts. */
  async *changes(signal: AbortSignal): AsyncGenerator<ConfigChange> {
    const onAbort = () => this.#waker.abort()
    signal.addEventListener('abort', onAbort, { once: true })
    let seen: string | undefined
    try {
      while (!signal.aborted) {
        this.#waker = new AbortController()
        const now = await fingerprint(this.#request)
        if (now !== seen || this.#isAsked) {
          this.#isAsked = false
          // Of before the reading: what changes meanwhile is read again.
          seen = now
          yield await this.#read()
        }
        await this.#wait(signal)
      }
    } finally {
      signal.removeEventListener('abort', onAbort)
    }
  }

  async #read(): Promise<ConfigChange> {
    try {
      const reading = await readConfig(this.#request)
      const { config, problems } = reading
      if (config === undefined) return { kind: 'broken', problems: problems.map(formatProblem) }
      const unsafe = (config.commands ?? []).length === 0 ? [] : await writableByOthers(reading.files)
      if (unsafe.length > 0) return { kind: 'broken', problems: unsafe }
      return { kind: 'loaded', loaded: { ...reading, config } }
    } catch (error) {
      return { kind: 'broken', problems: [messageOf(error)] }
    }
  }

  /** Until something moves in the directories, somebody asks, or it is time to look. */
  async #wait(ending: AbortSignal): Promise<void> {
    const { signal } = this.#waker
    const watchers = foldersOf(this.#request).flatMap(folder => {
      try {
        const watcher = watch(folder, { persistent: false }, () => this.#waker.abort())
        watcher.on('error', () => watcher.close())
        return [watcher]
      } catch {
        // Not there, or not watchable: polling finds what changes.
        return []
      }
    })
    try {
      await this.#clock.sleep(POLL_MS, signal)
    } catch {
      if (!this.#isAsked) await this.#clock.sleep(SETTLE_MS, ending).catch(() => undefined)
    } finally {
      for (const watcher of watchers) watcher.close()
    }
  }
}

function mainFilesOf({ file, env }: ConfigRequest): readonly string[] {
  const named = file ?? env['VIRTVAULT_CONFIG']
  return named === undefined || named === '' ? defaultFiles(env) : [named]
}

function foldersOf(request: ConfigRequest): readonly string[] {
  return mainFilesOf(request).flatMap(file => [dirname(file), join(dirname(file), 'conf.d')])
}

/** Changes when a file does, comes or goes. */
async function fingerprint(request: ConfigRequest): Promise<string> {
  const files: string[] = []
  for (const main of mainFilesOf(request)) {
    const folder = join(dirname(main), 'conf.d')
    const parts = await readdir(folder).catch(() => [])
    files.push(main, ...parts.sort().map(name => join(folder, name)))
  }
  const marks = await Promise.all(
    files.map(async file => {
      const found = await stat(file).catch(() => undefined)
      return found === undefined ? `${file} -` : `${file} ${found.ino} ${found.size} ${found.mtimeMs} ${found.ctimeMs}`
    }),
  )
  return marks.join('\n')
}

/** Commands run with our rights: nobody else may be able to put one in. */
async function writableByOthers(files: readonly string[]): Promise<readonly string[]> {
  const own = process.getuid?.()
  const found = await Promise.all(
    files.map(async file => {
      const { mode, uid } = await stat(file)
      if ((mode & 0o022) !== 0)
        return `${file}: it has commands, and others than its owner can write it: chmod go-w ${file}`
      if (uid !== 0 && uid !== own)
        return `${file}: it has commands, and belongs to neither root nor the user of this process`
      return undefined
    }),
  )
  return found.filter(one => one !== undefined)
}
