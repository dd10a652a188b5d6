import { BackupError } from '../base/errors.js'

const WEEKDAYS = ['Sun', 'Mon', 'Tue', 'Wed', 'Thu', 'Fri', 'Sat'] as const
const MONTHS = ['jan', 'feb', 'mar', 'apr', 'may', 'jun', 'jul', 'aug', 'sep', 'oct', 'nov', 'dec'] as const
const DAYS = WEEKDAYS.map(day => day.toLowerCase())

/**
 * systemd's calendar events for a cron expression of five fields: one, or two
 * where cron means "this day of the month or that weekday", which systemd
 * cannot say in one. Throws E_UNSUPPORTED for `L`, `W` and `#`.
 */
export function calendarEvents(cron: string, timeZone: string): readonly string[] {
  const [minute = '*', hour = '*', day = '*', month = '*', weekday = '*'] = cron.trim().split(/\s+/)
  if (/[LW#?]/.test(`${day}${weekday.toUpperCase().replaceAll(/[A-Z]{3}/g, '')}`)) {
    throw new BackupError('E_UNSUPPORTED', `systemd has no word for "${cron}": the daemon has`)
  }
  const time = `${numbers(hour, { min: 0, max: 23 })}:${numbers(minute, { min: 0, max: 59 })}:00`
  const months = numbers(month, { min: 1, max: 12, names: MONTHS, first: 1 })
  const date = (days: string) => `*-${months}-${days} ${time} ${timeZone}`
  const days = numbers(day, { min: 1, max: 31 })
  const names = weekdays(weekday)
  if (day === '*' || weekday === '*') return [names === '' ? date(days) : `${names} ${date(days)}`]
  return [date(days), `${names} ${date('*')}`]
}

interface Field {
  readonly min: number
  readonly max: number
  readonly names?: readonly string[] | undefined
  /** Number of the first name. */
  readonly first?: number | undefined
}

function numbers(text: string, field: Field): string {
  if (text === '*') return '*'
  return expand(text, field)
    .map(value => String(value).padStart(2, '0'))
    .join(',')
}

function weekdays(text: string): string {
  if (text === '*') return ''
  const found = new Set(expand(text, { min: 0, max: 7, names: DAYS, first: 0 }).map(value => value % 7))
  return [...found].map(value => WEEKDAYS[value]).join(',')
}

/** Every value of `1-5/2,7`, ascending. Throws E_UNSUPPORTED. */
function expand(text: string, { min, max, names = [], first = 0 }: Field): readonly number[] {
  const numberOf = (word: string) => {
    const named = names.indexOf(word.toLowerCase())
    return named < 0 ? Number(word) : named + first
  }
  const values = text.split(',').flatMap(item => {
    const [, range = '', step = '1'] = /^([^/]+)(?:\/(\d+))?$/.exec(item) ?? []
    const [from = '', to] = range === '*' ? [String(min), String(max)] : range.split('-')
    const start = numberOf(from)
    const end = to !== undefined ? numberOf(to) : item.includes('/') ? max : start
    if (![start, end, Number(step)].every(Number.isInteger) || start < min || end > max || Number(step) < 1) {
      throw new BackupError('E_UNSUPPORTED', `"${item}" cannot be said in systemd's words`)
    }
    const list: number[] = []
    for (let value = start; value <= end; value += Number(step)) list.push(value)
    return list
  })
  return [...new Set(values)].sort((a, b) => a - b)
}
