import { BackupError } from '../base/errors.js'

/**
 * The calendar of one IANA time zone, through Intl: what a clock on the wall
 * shows at an instant, and in which hour, day, week, month and year it falls.
 * Pure: it knows neither the current time nor the machine's own zone.
 */

/** What a wall clock shows. `month` is 1..12, `weekday` 1 (Monday) .. 7 (Sunday). */
export interface LocalTime {
  readonly year: number
  readonly month: number
  readonly day: number
  readonly hour: number
  readonly minute: number
  readonly second: number
  readonly weekday: number
}

export const PERIODS = ['hourly', 'daily', 'weekly', 'monthly', 'yearly'] as const

export type Period = (typeof PERIODS)[number]

/** One number per period: equal for two instants in the same one, and growing with time. */
export type PeriodKeys = Readonly<Record<Period, number>>

export interface Calendar {
  readonly timeZone: string
  localTime(time: number): LocalTime
  /**
   * The periods that `time` falls into. Weeks begin on Monday (ISO 8601).
   * The hour that a change back from daylight saving repeats is two hours.
   */
  periodKeys(time: number): PeriodKeys
}

const DAY_MS = 86_400_000

/** Throws E_USAGE for a zone that this Node does not know. */
export function calendarIn(timeZone: string): Calendar {
  const format = formatterFor(timeZone)
  const localTime = (time: number): LocalTime => readParts(format.formatToParts(time))
  return { timeZone, localTime, periodKeys: time => keysOf(time, localTime(time)) }
}

/** True for a zone that `calendarIn` accepts. */
export function isTimeZone(timeZone: string): boolean {
  try {
    formatterFor(timeZone)
    return true
  } catch {
    return false
  }
}

/** `2026-11-20T02:01:22`, as the wall clock showed it. */
export function formatLocal(local: LocalTime): string {
  const two = (value: number) => String(value).padStart(2, '0')
  const date = `${String(local.year).padStart(4, '0')}-${two(local.month)}-${two(local.day)}`
  return `${date}T${two(local.hour)}:${two(local.minute)}:${two(local.second)}`
}

/** Days since 1970-01-01 of a calendar date, whatever the zone. */
export function dayNumber(local: Pick<LocalTime, 'year' | 'month' | 'day'>): number {
  return Math.floor(Date.UTC(local.year, local.month - 1, local.day) / DAY_MS)
}

function keysOf(time: number, local: LocalTime): PeriodKeys {
  const day = dayNumber(local)
  const intoHour = (local.minute * 60 + local.second) * 1000 + (((time % 1000) + 1000) % 1000)
  return {
    // The instant at which the hour began, not its name: a repeated hour has one name and two beginnings.
    hourly: time - intoHour,
    daily: day,
    // Day 0 was a Thursday; the Monday before it is day -3.
    weekly: Math.floor((day + 3) / 7),
    monthly: local.year * 12 + local.month - 1,
    yearly: local.year,
  }
}

// Building a formatter costs some 50 µs and much memory, using one 2 µs; there are few zones.
const formatters = new Map<string, Intl.DateTimeFormat>()

function formatterFor(timeZone: string): Intl.DateTimeFormat {
  const known = formatters.get(timeZone)
  if (known !== undefined) return known
  try {
    const created = new Intl.DateTimeFormat('en-US', {
      timeZone,
      calendar: 'gregory',
      numberingSystem: 'latn',
      hourCycle: 'h23',
      year: 'numeric',
      month: 'numeric',
      day: 'numeric',
      hour: 'numeric',
      minute: 'numeric',
      second: 'numeric',
    })
    formatters.set(timeZone, created)
    return created
  } catch (cause) {
    throw new BackupError('E_USAGE', `unknown time zone "${timeZone}"`, {
      cause,
      hints: ['use a name of the IANA database, such as Europe/Berlin or UTC'],
    })
  }
}

function readParts(parts: readonly Intl.DateTimeFormatPart[]): LocalTime {
  const fields = { year: 0, month: 1, day: 1, hour: 0, minute: 0, second: 0 }
  for (const { type, value } of parts) {
    if (type === 'year' || type === 'month' || type === 'day') fields[type] = Number(value)
    else if (type === 'hour' || type === 'minute' || type === 'second') fields[type] = Number(value)
  }
  const sinceMonday = (((dayNumber(fields) + 3) % 7) + 7) % 7
  return { ...fields, weekday: sinceMonday + 1 }
}
