import type { ErrorCode } from '../base/errors.js'
import { HOUR_MS } from '../model/duration.js'
import type { RunOutcome } from './task.js'

export interface RetryPolicy {
  /** Further attempts after the first. */
  readonly attempts: number
  /** Milliseconds before the first of them; each next one waits twice as long. */
  readonly delay: number
}

const LONGEST_RETRY_DELAY_MS = HOUR_MS

/** Trying again does not help against these. */
const LASTING: ReadonlySet<ErrorCode> = new Set([
  'E_USAGE',
  'E_CONFIG',
  'E_REFUSED',
  'E_EXISTS',
  'E_NOT_FOUND',
  'E_UNSUPPORTED',
  'E_NO_DISK',
  'E_NO_STORE',
  'E_STORE_FORMAT',
  'E_KEY',
  'E_DAMAGED',
  'E_TOOL_MISSING',
])

/** How long to wait before the next attempt, after attempt number `attempt`; undefined where there is none. */
export function retryDelay(
  policy: RetryPolicy,
  { status, error }: Pick<RunOutcome, 'status' | 'error'>,
  attempt: number,
): number | undefined {
  if (status !== 'failed' || attempt > policy.attempts) return undefined
  if (error !== undefined && LASTING.has(error.code)) return undefined
  return Math.min(policy.delay * 2 ** (attempt - 1), LONGEST_RETRY_DELAY_MS)
}
