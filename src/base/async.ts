import PQueue from 'p-queue'

import { BackupError } from './errors.js'

/**
 * Runs `work` for every item, at most `limit` at once, and waits for all that
 * were started, also after a failure; then throws the first failure.
 */
export async function forEachLimited<T>(
  items: Iterable<T>,
  limit: number,
  work: (item: T) => Promise<void>,
): Promise<void> {
  const queue = new PQueue({ concurrency: limit })
  const failures: unknown[] = []
  for (const item of items) {
    void queue.add(async () => {
      if (failures.length > 0) return
      try {
        await work(item)
      } catch (error) {
        failures.push(error)
      }
    })
  }
  await queue.onIdle()
  if (failures.length > 0) throw failures[0]
}

/** A queue that runs at most `limit` things at once; the one way to p-queue. */
export function limitedQueue(limit: number): PQueue {
  return new PQueue({ concurrency: limit })
}

/** Throws what aborted `signal`, as a BackupError. */
export function throwIfAborted(signal: AbortSignal): void {
  if (!signal.aborted) return
  const reason: unknown = signal.reason
  throw reason instanceof BackupError ? reason : new BackupError('E_INTERRUPTED', 'interrupted', { cause: reason })
}

/** All that `items` yields; for sequences known to be short. */
export async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = []
  for await (const item of items) all.push(item)
  return all
}

/** Disposes of everything in the list, last first, and empties it. The first failure is thrown, and ends it. */
export async function disposeAll(undo: AsyncDisposable[]): Promise<void> {
  for (const thing of undo.splice(0).toReversed()) await thing[Symbol.asyncDispose]()
}
