import { BackupError } from '../base/errors.js'

/** Durations as people write and read them. The one parser: flags and configuration both come here. */

export const SECOND_MS = 1000
export const MINUTE_MS = 60 * SECOND_MS
export const HOUR_MS = 60 * MINUTE_MS
export const DAY_MS = 24 * HOUR_MS
export const WEEK_MS = 7 * DAY_MS
export const YEAR_MS = 365 * DAY_MS

/** Rising; of two names for one length the one to write comes last. */
const UNIT_MS: ReadonlyMap<string, number> = new Map([
  ['ms', 1],
  ['s', SECOND_MS],
  ['min', MINUTE_MS],
  ['m', MINUTE_MS],
  ['h', HOUR_MS],
  ['d', DAY_MS],
  ['w', WEEK_MS],
  ['y', YEAR_MS],
])
const DURATION = /^(?:\d+(?:\.\d+)?\s*(?:ms|min|[smhdwy])\s*)+$/i
const PART = /(\d+(?:\.\d+)?)\s*(ms|min|[smhdwy])/gi

/**
 * Milliseconds in `30d`, `26h`, `10m`, `1w`, `2y`, `1h30m` or `0`. A year is
 * 365 days and `m` is minutes. Throws E_USAGE for anything else, also for a
 * number without a unit.
 */
export function parseDuration(text: string): number {
  const trimmed = text.trim()
  if (trimmed === '0') return 0
  let total = 0
  for (const [, digits = '', unit = ''] of trimmed.matchAll(PART)) {
    total += Number(digits) * (UNIT_MS.get(unit.toLowerCase()) ?? NaN)
  }
  const ms = Math.round(total)
  if (!DURATION.test(trimmed) || !Number.isSafeInteger(ms)) {
    throw new BackupError('E_USAGE', `"${text}" is not a duration`, {
      hints: ['write a number with a unit: 45s, 10m, 26h, 30d, 4w, 2y, or several: 1h30m'],
    })
  }
  return ms
}

/** Exactly `ms`, in the largest unit that holds it whole, so that `parseDuration` reads the same: `10m`, `30d`, `90s`. */
export function writeDuration(ms: number): string {
  const [unit, length] = [...UNIT_MS].findLast(([, length]) => ms % length === 0 && ms >= length) ?? ['ms', 1]
  return `${ms / length}${unit}`
}

/** `9s`, `1m21s`, `2h05m`, `3d04h`; below ten seconds with a fraction, `0.11s`, when `ms` is not whole seconds. */
export function formatDuration(ms: number): string {
  if (ms < 10 * SECOND_MS && ms % SECOND_MS !== 0) return `${(ms / SECOND_MS).toFixed(ms < SECOND_MS ? 2 : 1)}s`
  const seconds = Math.round(ms / SECOND_MS)
  if (seconds < 60) return `${seconds}s`
  if (seconds < 3600) return `${Math.floor(seconds / 60)}m${two(seconds % 60)}s`
  const minutes = Math.floor(seconds / 60)
  if (minutes < 24 * 60) return `${Math.floor(minutes / 60)}h${two(minutes % 60)}m`
  const hours = Math.floor(minutes / 60)
  return `${Math.floor(hours / 24)}d${two(hours % 24)}h`
}

/** The largest whole unit: `45s`, `12m`, `6h`, `19d`, `2y`. */
export function formatAge(ms: number): string {
  if (ms < MINUTE_MS) return `${Math.max(0, Math.floor(ms / SECOND_MS))}s`
  if (ms < HOUR_MS) return `${Math.floor(ms / MINUTE_MS)}m`
  if (ms < DAY_MS) return `${Math.floor(ms / HOUR_MS)}h`
  if (ms < 2 * YEAR_MS) return `${Math.floor(ms / DAY_MS)}d`
  return `${Math.floor(ms / YEAR_MS)}y`
}

/** What is left, as a clock: `0:06`, `12:40`, `1:02:03`. */
export function formatCountdown(ms: number): string {
  const seconds = Math.max(0, Math.round(ms / SECOND_MS))
  const hours = Math.floor(seconds / 3600)
  const minutes = Math.floor(seconds / 60) % 60
  return hours > 0 ? `${hours}:${two(minutes)}:${two(seconds % 60)}` : `${minutes}:${two(seconds % 60)}`
}

function two(value: number): string {
  return String(value).padStart(2, '0')
}
