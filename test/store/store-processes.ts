import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import type { Order, Report } from './store-process.js'

const PROGRAM = fileURLToPath(new URL('store-process.js', import.meta.url))

/** A real process that has a store open. Disposing it kills it with -9. */
export class StoreProcess implements AsyncDisposable {
  readonly #child: ChildProcess
  readonly notices: string[] = []
  isAlive = true

  private constructor(child: ChildProcess) {
    this.#child = child
    child.once('exit', () => (this.isAlive = false))
  }

  static async open(directory: string, indexDirectory?: string): Promise<StoreProcess> {
    const opened = new StoreProcess(
      // The pool is as large as the program's own.
      fork(PROGRAM, {
        stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
        env: { ...process.env, UV_THREADPOOL_SIZE: '12' },
      }),
    )
    await opened.order({ kind: 'open', directory, ...(indexDirectory === undefined ? {} : { indexDirectory }) })
    return opened
  }

  get pid(): number {
    return this.#child.pid!
  }

  /** Rejects where the process fails at it, or is killed meanwhile (KilledError). */
  order<T>(order: Order): Promise<T> {
    return new Promise((resolve, reject) => {
      const onExit = (code: number | null, signal: string | null) => {
        this.#child.off('message', onReport)
        reject(signal === 'SIGKILL' ? new KilledError() : new Error(`the process ended with ${signal ?? code}`))
      }
      const onReport = (report: unknown) => {
        this.#child.off('exit', onExit)
        const { failure, notices, result } = report as Report
        this.notices.push(...notices)
        if (failure === undefined) resolve(result as T)
        else reject(new Error(failure))
      }
      if (!this.isAlive) {
        reject(new KilledError())
        return
      }
      this.#child.once('exit', onExit)
      this.#child.once('message', onReport)
      this.#child.send(order, () => undefined)
    })
  }

  /** Does not wait for the process to be gone. */
  kill(): void {
    this.#child.kill('SIGKILL')
  }

  signal(name: 'SIGSTOP' | 'SIGCONT'): void {
    this.#child.kill(name)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.isAlive) return
    const gone = once(this.#child, 'exit')
    this.kill()
    await gone
  }
}

export class KilledError extends Error {
  constructor() {
    super('the process was killed')
  }
}

/** The process that has the index of a store, as the kernel knows it. */
export function holderOf(home: string): number | undefined {
  const lock = join(home, 'locks', 'index.lock')
  if (!existsSync(lock)) return undefined
  const { ino } = statSync(lock)
  for (const line of readFileSync('/proc/locks', 'utf8').split('\n')) {
    const [, kind, , , pid, file] = line.trim().split(/\s+/)
    if (kind === 'FLOCK' && file?.split(':')[2] === String(ino)) return Number(pid)
  }
  return undefined
}
