/** Time as the program sees it; tests drive their own. */
export interface Clock {
  /** Wall-clock milliseconds since the epoch. For people and names, never for safety decisions. */
  now(): number
  /** Milliseconds that only grow, from an arbitrary start. For durations and deadlines. */
  monotonic(): number
  /** Resolves after `ms`; rejects with the signal's reason when it is aborted first. */
  sleep(ms: number, signal?: AbortSignal): Promise<void>
}

export const systemClock: Clock = {
  now: () => Date.now(),
  monotonic: () => performance.now(),
  sleep: (ms, signal) =>
    new Promise((resolve, reject) => {
      if (signal?.aborted === true) {
        reject(toError(signal.reason))
        return
      }
      const onAbort = () => {
        clearTimeout(timer)
        reject(toError(signal?.reason))
      }
      const timer = setTimeout(() => {
        signal?.removeEventListener('abort', onAbort)
        resolve()
      }, ms)
      signal?.addEventListener('abort', onAbort, { once: true })
    }),
}

function toError(reason: unknown): Error {
  return reason instanceof Error ? reason : new Error(String(reason))
}
