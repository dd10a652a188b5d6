import { Cron } from 'croner'

import { BackupError } from '../base/errors.js'
import { calendarIn } from './calendar.js'
import { MINUTE_MS } from './duration.js'
import { translateCalendarEvent } from './systemd-calendar.js'

/**
 * When a job runs: cron expressions in a time zone, a fixed delay per job, a
 * window to start in, and what to do about runs that were slept through. Pure:
 * the current time is an argument. The one user of croner.
 */

export interface Schedule {
  /** As written. */
  readonly text: string
  /** As it is run. */
  readonly cron: string
  readonly timeZone: string
  /** The first run later than `time`. */
  nextRun(time: number): number
  /** The last run at or before `time`; undefined when there was none in living memory. */
  previousRun(time: number): number | undefined
  /** Runs in `(after, until]`, oldest first, at most `limit`. */
  runsBetween(span: { readonly after: number; readonly until: number }, limit: number): readonly number[]
}

const NICKNAMES: ReadonlyMap<string, string> = new Map([
  ['@hourly', '0 * * * *'],
  ['@daily', '0 0 * * *'],
  ['@midnight', '0 0 * * *'],
  ['@weekly', '0 0 * * 0'],
  ['@monthly', '0 0 1 * *'],
  ['@yearly', '0 0 1 1 *'],
  ['@annually', '0 0 1 1 *'],
])
/** Any instant will do to see whether an expression ever comes true. */
const REFERENCE = new Date('2024-01-01T00:00:00Z')

/**
 * Reads a cron expression of five fields, `@daily` and its like, or a systemd
 * calendar event such as `Mon..Fri 02:00`.
 *
 * Over changes of daylight saving it does what Vixie cron does: a run at a
 * fixed time happens once in that night, at the end of the gap if its time is
 * skipped; one with a `*` or a step in minute or hour goes by elapsed time.
 *
 * Throws E_USAGE for what cannot be read, for an unknown zone, and for a date
 * that never comes.
 */
export function parseSchedule(text: string, timeZone: string): Schedule {
  const key = `${timeZone}\n${text}`
  const known = schedules.get(key)
  if (known !== undefined) return known
  const schedule = readSchedule(text, timeZone)
  if (schedules.size >= MAX_REMEMBERED) schedules.clear()
  schedules.set(key, schedule)
  return schedule
}

// Many jobs share few schedules, and reading one takes half a millisecond.
const schedules = new Map<string, Schedule>()
const MAX_REMEMBERED = 256

function readSchedule(text: string, timeZone: string): Schedule {
  const { cron, zone, domAndDow } = readExpression(text.trim(), timeZone)
  calendarIn(zone)
  const job = compile(text, cron, { timezone: zone, domAndDow })
  if (job.nextRun(REFERENCE) === null) throw notASchedule(text, 'that date never comes')

  const nextRun = (time: number) => {
    const next = job.nextRun(new Date(time))
    if (next === null) throw notASchedule(text, 'it has no further run')
    return next.getTime()
  }
  return {
    text,
    cron,
    timeZone: zone,
    nextRun,
    // croner looks strictly before a whole second.
    previousRun: time => job.previousRuns(1, new Date(Math.floor(time / 1000) * 1000 + 1000))[0]?.getTime(),
    runsBetween: ({ after, until }, limit) => {
      const runs: number[] = []
      for (let run = nextRun(after); run <= until && runs.length < limit; run = nextRun(run)) runs.push(run)
      return runs
    },
  }
}

/** A daily span of wall-clock time, minutes after midnight; `[start, end)`, over midnight when `end` is less. */
export interface StartWindow {
  readonly start: number
  readonly end: number
}

/** Reads `22:00-06:00`. Throws E_USAGE for anything else. */
export function parseWindow(text: string): StartWindow {
  const [, startHour, startMinute, endHour, endMinute] =
    /^(\d{1,2}):(\d{2})\s*-\s*(\d{1,2}):(\d{2})$/.exec(text.trim()) ?? []
  const start = Number(startHour) * 60 + Number(startMinute)
  const end = Number(endHour) * 60 + Number(endMinute)
  const isReal = start < 24 * 60 && end <= 24 * 60 && Number(startMinute) < 60 && Number(endMinute) < 60
  if (!isReal || start === end) {
    throw new BackupError('E_USAGE', `"${text}" is not a time window`, { hints: ['write it as 22:00-06:00'] })
  }
  return { start, end }
}

/** `time` if the window is open then, else the instant at which it next opens. */
export function whenOpen(window: StartWindow | undefined, time: number, timeZone: string): number {
  if (window === undefined) return time
  const local = calendarIn(timeZone).localTime(time)
  const minute = local.hour * 60 + local.minute
  const { start, end } = window
  const isOpen = start < end ? minute >= start && minute < end : minute >= start || minute < end
  return isOpen ? time : parseSchedule(`${start % 60} ${Math.floor(start / 60)} * * *`, timeZone).nextRun(time)
}

/**
 * The delay of a job within `[0, maxMs)`: always the same for one `seed`, so
 * that its runs stay evenly spaced, and different among many, so that they do
 * not all begin at once.
 */
export function jitterFor(seed: string, maxMs: number): number {
  // FNV-1a with a final mix: it need not be secret, only spread.
  let hash = 0x811c9dc5
  for (const byte of new TextEncoder().encode(seed)) hash = Math.imul(hash ^ byte, 0x01000193)
  hash = Math.imul(hash ^ (hash >>> 15), 0x2c1b3c6d)
  hash = Math.imul(hash ^ (hash >>> 12), 0x297a2d39)
  return Math.floor((((hash ^ (hash >>> 15)) >>> 0) / 2 ** 32) * maxMs)
}

export interface RunTiming {
  readonly schedule: Schedule
  /** Up to when runs are accounted for: start of the last run, or when the job was first seen. */
  readonly accountedUntil: number
  readonly now: number
  /** Whether a run that was slept through is made up for. */
  readonly catchUp: boolean
  readonly window?: StartWindow | undefined
  /** As of `jitterFor`. */
  readonly jitterMs?: number | undefined
}

/** `missed` are the due times that came to nothing, oldest first; only what was not reported before if `accountedUntil` is moved on. */
export type RunDecision =
  | { readonly kind: 'run'; readonly due: number; readonly missed: readonly number[] }
  | { readonly kind: 'wait'; readonly until: number; readonly missed: readonly number[] }

/** A run that starts this much later than it should is still the run, not a missed one. */
export const ON_TIME_MS = 10 * MINUTE_MS
/** An accounted time further ahead than this is a clock's mistake. */
const CLOCK_TOLERANCE_MS = 5 * MINUTE_MS
const MAX_MISSED = 1000

/**
 * Whether a job is to run now, and if not, when to ask again.
 *
 * However many runs were slept through, at most one is made up for; outside
 * its window it waits for that to open. A clock that went back does not make
 * the job wait until its old time comes again.
 */
export function decideRun(timing: RunTiming): RunDecision {
  const { schedule, now, window, jitterMs = 0 } = timing
  const after = timing.accountedUntil > now + CLOCK_TOLERANCE_MS ? now : timing.accountedUntil
  const open = (time: number) => whenOpen(window, time, schedule.timeZone)
  const due = schedule.runsBetween({ after, until: now - jitterMs }, MAX_MISSED)
  if (due.length === 0) return { kind: 'wait', until: open(schedule.nextRun(after) + jitterMs), missed: [] }

  // With more than MAX_MISSED of them, the list ends early: the latest is still the one to run.
  const latest = schedule.previousRun(now - jitterMs) ?? now
  const missed = due.filter(run => run < latest)
  const intended = open(latest + jitterMs)
  if (now < intended) return { kind: 'wait', until: intended, missed }
  if (now - intended > ON_TIME_MS && !timing.catchUp) {
    return { kind: 'wait', until: open(schedule.nextRun(now - jitterMs) + jitterMs), missed: [...missed, latest] }
  }
  const start = open(now)
  return start > now ? { kind: 'wait', until: start, missed } : { kind: 'run', due: latest, missed }
}

interface Expression {
  readonly cron: string
  readonly zone: string
  readonly domAndDow: boolean
}

function readExpression(text: string, timeZone: string): Expression {
  const plain = { zone: timeZone, domAndDow: false }
  if (text.startsWith('@')) {
    const cron = NICKNAMES.get(text.toLowerCase())
    if (cron === undefined) throw notASchedule(text, `known words are ${[...NICKNAMES.keys()].join(', ')}`)
    return { ...plain, cron }
  }
  const fields = text.split(/\s+/)
  const isCron = !/:|\.\./.test(text) && fields.length >= 5
  if (isCron && fields.length > 5) throw notASchedule(text, 'it has more than five fields; seconds cannot be given')
  if (isCron) return { ...plain, cron: fields.join(' ') }
  const event = translateCalendarEvent(text)
  return { cron: event.cron, zone: event.timeZone ?? timeZone, domAndDow: event.bothDays }
}

function compile(text: string, cron: string, options: { timezone: string; domAndDow: boolean }): Cron {
  try {
    return new Cron(cron, { ...options, paused: true, mode: '5-part', fixedTimeRule: 'no-wildcard' })
  } catch (cause) {
    throw notASchedule(text, cause instanceof Error ? inUsersNumbers(cause.message) : undefined, cause)
  }
}

/** croner counts days and months from 0, in its messages too. */
function inUsersNumbers(message: string): string {
  return message
    .replace(/^CronPattern: /, '')
    .replace(/(?<=Invalid value for (?:month|day): )-?\d+$/, value => String(Number(value) + 1))
}

function notASchedule(text: string, why: string | undefined, cause?: unknown): BackupError {
  return new BackupError('E_USAGE', `"${text}" is not a schedule`, {
    why,
    cause,
    hints: ["write a cron expression such as '0 2 * * *', a word such as @daily, or 'Mon..Fri 02:00'"],
  })
}
