import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import type { Readable } from 'node:stream'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'

import { throwIfAborted } from '../base/async.js'
import { BackupError, isErrorCode } from '../base/errors.js'
import type { WalkAnswer, WalkOrder } from '../files/walker.js'

/** What is left to do after SIGTERM is to remove one unfinished file. */
const END_TIMEOUT_MS = 5_000

export type WalkNews = Exclude<WalkAnswer, { readonly kind: 'error' }>

/**
 * Has a process of its own look into a mounted file system of a guest, and
 * yields what it says; the last is `done`. Rejects with the errors of
 * walker.ts, E_INTERRUPTED. Whatever happens, the process is gone when it ends.
 */
export async function* walk(order: WalkOrder, signal: AbortSignal): AsyncGenerator<WalkNews> {
  throwIfAborted(signal)
  const path = fileURLToPath(new URL('./walker-main.js', import.meta.url))
  const child = spawn(process.execPath, [path], { stdio: ['pipe', 'inherit', 'inherit', 'pipe'] })
  const ended = once(child, 'exit')
  const stop = () => child.kill('SIGTERM')
  signal.addEventListener('abort', stop, { once: true })
  child.stdin?.on('error', () => undefined)
  child.stdin?.write(`${JSON.stringify(order)}\n`)
  try {
    for await (const line of createInterface({ input: child.stdio[3] as Readable })) {
      const answer = JSON.parse(line) as WalkAnswer
      if (answer.kind !== 'error') {
        yield answer
        if (answer.kind === 'done') return
        continue
      }
      throwIfAborted(signal)
      const { code, message, why, hints } = answer
      throw new BackupError(isErrorCode(code) ? code : 'E_INTERNAL', message, { why, hints })
    }
    throwIfAborted(signal)
    throw new BackupError('E_IO', 'the process that reads the files was ended')
  } finally {
    signal.removeEventListener('abort', stop)
    child.kill('SIGTERM')
    const timer = new AbortController()
    const late = delay(END_TIMEOUT_MS, 'late', { signal: timer.signal }).catch(() => 'ended')
    if ((await Promise.race([ended, late])) === 'late') child.kill('SIGKILL')
    await ended
    timer.abort()
  }
}
