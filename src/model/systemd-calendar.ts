import { BackupError } from '../base/errors.js'

/** What a systemd calendar event says, as a cron expression. */
export interface TranslatedEvent {
  readonly cron: string
  /** systemd means "and" where a day of the month and a weekday are both given, cron means "or". */
  readonly bothDays: boolean
  /** The zone written behind it, if there was one. */
  readonly timeZone: string | undefined
}

const WEEKDAYS = ['sun', 'mon', 'tue', 'wed', 'thu', 'fri', 'sat'] as const
/** systemd's words; its week begins on Monday, that of cron's `@weekly` on Sunday. */
const WORDS: ReadonlyMap<string, string> = new Map([
  ['minutely', '* * * * *'],
  ['hourly', '0 * * * *'],
  ['daily', '0 0 * * *'],
  ['weekly', '0 0 * * 1'],
  ['monthly', '0 0 1 * *'],
  ['quarterly', '0 0 1 1,4,7,10 *'],
  ['semiannually', '0 0 1 1,7 *'],
  ['yearly', '0 0 1 1 *'],
  ['annually', '0 0 1 1 *'],
])

/**
 * Translates `Mon..Fri 02:00`, `*-*-01 04:30`, `Sat,Sun *:0/15`, `weekly` and
 * the like, each optionally followed by a zone.
 *
 * Throws E_USAGE, saying what, for the parts that cron cannot say: seconds,
 * years, and days counted from the end of a month.
 */
export function translateCalendarEvent(text: string): TranslatedEvent {
  const refuse = (why: string) =>
    new BackupError('E_USAGE', `"${text}" is not a schedule`, {
      why,
      hints: ["write a cron expression such as '0 2 * * *', a word such as @daily, or 'Mon..Fri 02:00'"],
    })
  const parts = text.trim().split(/\s+/)
  const timeZone = parts.length > 1 && /^(UTC|[A-Za-z]+\/[\w+/-]+)$/.test(parts.at(-1) ?? '') ? parts.pop() : undefined
  const word = parts.length === 1 ? WORDS.get((parts[0] ?? '').toLowerCase()) : undefined
  if (word !== undefined) return { cron: word, bothDays: false, timeZone }

  const weekdays = /^[a-z]/i.test(parts[0] ?? '') ? parseWeekdays(parts.shift() ?? '', refuse) : '*'
  const time = parts.at(-1)?.includes(':') === true ? parseTime(parts.pop() ?? '', refuse) : { hour: '0', minute: '0' }
  const date = parseDate(parts.shift() ?? '*-*-*', refuse)
  if (parts.length > 0) throw refuse(`"${parts.join(' ')}" was not expected`)
  return {
    cron: `${time.minute} ${time.hour} ${date.day} ${date.month} ${weekdays}`,
    bothDays: date.day !== '*' && weekdays !== '*',
    timeZone,
  }
}

type Refuse = (why: string) => BackupError

function parseWeekdays(text: string, refuse: Refuse): string {
  const dayOf = (name: string) => {
    const short = WEEKDAYS.findIndex(day => name.toLowerCase().startsWith(day))
    if (short < 0 || !/^(sun|mon|tues?|wed(nes)?|thu(rs)?|fri|sat(ur)?)(day)?$/i.test(name)) {
      throw refuse(`"${name}" is not a weekday`)
    }
    return short
  }
  const days = text.split(',').flatMap(item => {
    const [first = '', last] = item.split('..')
    const from = dayOf(first)
    const to = last === undefined ? from : dayOf(last)
    // Fri..Mon goes over the end of the week.
    return Array.from({ length: ((to - from + 7) % 7) + 1 }, (_, at) => (from + at) % 7)
  })
  return days.join(',')
}

function parseDate(text: string, refuse: Refuse): { month: string; day: string } {
  if (text.includes('~')) throw refuse("days from the end of a month are written with cron's L: '0 2 L * *'")
  const fields = text.split('-')
  const [year, month = '', day = ''] = fields.length === 2 ? ['*', ...fields] : fields
  if (fields.length < 2 || fields.length > 3) throw refuse(`"${text}" is not a date such as *-*-01`)
  if (year !== '*') throw refuse('a schedule cannot name a year')
  return {
    month: expand(month, { min: 1, max: 12 }, refuse),
    day: expand(day, { min: 1, max: 31 }, refuse),
  }
}

function parseTime(text: string, refuse: Refuse): { hour: string; minute: string } {
  const [hour = '', minute = '', second = '00', ...more] = text.split(':')
  if (more.length > 0) throw refuse(`"${text}" is not a time`)
  if (!/^0?0$/.test(second)) throw refuse('a schedule cannot name seconds')
  return {
    hour: expand(hour, { min: 0, max: 23 }, refuse),
    minute: expand(minute, { min: 0, max: 59 }, refuse),
  }
}

/** `*`, `5`, `1..5`, `0/15`, `1..9/2` and lists of them, as cron's list of numbers. */
function expand(text: string, { min, max }: { min: number; max: number }, refuse: Refuse): string {
  if (text === '*') return '*'
  const values = text.split(',').flatMap(item => {
    const match = /^(?:(\*)|(\d{1,2})(?:\.\.(\d{1,2}))?)(?:\/(\d{1,2}))?$/.exec(item)
    if (match === null) throw refuse(`"${item}" was not understood`)
    const [, star, first, last, every] = match
    const from = star === undefined ? Number(first) : min
    const to = last === undefined ? (every === undefined ? from : max) : Number(last)
    const step = every === undefined ? 1 : Number(every)
    if (from < min || to > max || from > to || step === 0) throw refuse(`"${item}" is out of range`)
    return Array.from({ length: Math.floor((to - from) / step) + 1 }, (_, at) => from + at * step)
  })
  return [...new Set(values)].sort((a, b) => a - b).join(',')
}
