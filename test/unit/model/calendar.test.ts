import t from 'tap'

import { calendarIn, dayNumber, formatLocal, isTimeZone, PERIODS } from '../../../src/model/calendar.js'

const berlin = calendarIn('Europe/Berlin')

t.test('an instant reads as the wall clock shows it, with the ISO weekday', async t => {
  const local = berlin.localTime(Date.parse('2026-11-20T01:01:22Z'))

  t.strictSame(local, { year: 2026, month: 11, day: 20, hour: 2, minute: 1, second: 22, weekday: 5 })
  t.equal(formatLocal(local), '2026-11-20T02:01:22')
})

t.test('midnight is hour 0 of the new day', async t => {
  t.equal(formatLocal(berlin.localTime(Date.parse('2026-06-30T22:00:00Z'))), '2026-07-01T00:00:00')
})

t.test('the hour that October repeats is two hours', async t => {
  const first = berlin.periodKeys(Date.parse('2026-10-25T00:30:00Z'))
  const second = berlin.periodKeys(Date.parse('2026-10-25T01:30:00Z'))

  t.equal(formatLocal(berlin.localTime(Date.parse('2026-10-25T00:30:00Z'))), '2026-10-25T02:30:00')
  t.equal(formatLocal(berlin.localTime(Date.parse('2026-10-25T01:30:00Z'))), '2026-10-25T02:30:00')
  t.ok(first.hourly < second.hourly)
  t.equal(first.daily, second.daily)
})

t.test('two minutes of one hour share its key, in zones of half an hour and with milliseconds too', async t => {
  const kolkata = calendarIn('Asia/Kolkata')
  const a = kolkata.periodKeys(Date.parse('2026-01-01T00:31:00.999Z'))
  const b = kolkata.periodKeys(Date.parse('2026-01-01T01:29:59.001Z'))
  const c = kolkata.periodKeys(Date.parse('2026-01-01T01:30:00.000Z'))

  t.equal(a.hourly, b.hourly)
  t.ok(b.hourly < c.hourly)
})

t.test('a week begins on Monday, also across the year', async t => {
  const week = (iso: string) => calendarIn('UTC').periodKeys(Date.parse(iso)).weekly

  t.equal(week('2024-12-30T00:00:00Z'), week('2025-01-05T23:59:59Z'))
  t.equal(week('2025-01-06T00:00:00Z'), week('2025-01-05T23:59:59Z') + 1)
})

t.test('no key ever falls as time passes', async t => {
  let before = berlin.periodKeys(Date.parse('2023-12-31T00:00:00Z'))
  for (let time = Date.parse('2023-12-31T00:00:00Z'); time < Date.parse('2025-01-02T00:00:00Z'); time += 1_800_000) {
    const keys = berlin.periodKeys(time)
    for (const period of PERIODS) if (keys[period] < before[period]) t.fail(`${period} fell at ${time}`)
    before = keys
  }
  t.equal(dayNumber({ year: 2024, month: 3, day: 1 }) - dayNumber({ year: 2024, month: 2, day: 28 }), 2)
})

t.test('an unknown zone is a usage error', async t => {
  t.throws(() => calendarIn('Europe/Berlim'), { code: 'E_USAGE', message: /Europe\/Berlim/ })
  t.notOk(isTimeZone('Mars/Base'))
  t.ok(isTimeZone('UTC'))
})
