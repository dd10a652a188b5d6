import fc from 'fast-check'
import t from 'tap'

import { MINUTE_MS } from '../../../src/model/duration.js'
import type { RunTiming } from '../../../src/model/schedule.js'
import { decideRun, jitterFor, parseSchedule, parseWindow, whenOpen } from '../../../src/model/schedule.js'

const BERLIN = 'Europe/Berlin'
const at = (iso: string) => Date.parse(iso)
const iso = (time: number | undefined) => (time === undefined ? undefined : new Date(time).toISOString().slice(0, 16))

function runs(text: string, from: string, count: number): (string | undefined)[] {
  const schedule = parseSchedule(text, BERLIN)
  let time = at(from)
  return Array.from({ length: count }, () => iso((time = schedule.nextRun(time))))
}

t.test('a nightly run happens once in each night of a change to and from daylight saving', async t => {
  t.strictSame(runs('30 2 * * *', '2026-03-28T12:00:00Z', 2), ['2026-03-29T01:00', '2026-03-30T00:30'])
  t.strictSame(runs('30 2 * * *', '2026-10-24T12:00:00Z', 2), ['2026-10-25T00:30', '2026-10-26T01:30'])
  t.strictSame(runs('30 2,14 * * *', '2026-10-24T22:00:00Z', 2), ['2026-10-25T00:30', '2026-10-25T13:30'])
})

t.test('an hourly run goes by elapsed time in those nights', async t => {
  t.strictSame(runs('0 * * * *', '2026-10-24T23:30:00Z', 3), [
    '2026-10-25T00:00',
    '2026-10-25T01:00',
    '2026-10-25T02:00',
  ])
})

t.test('a year of nights has 365 runs, whatever the clocks do', async t => {
  const schedule = parseSchedule('30 2 * * *', BERLIN)
  const span = { after: at('2026-01-01T00:00:00Z'), until: at('2026-12-31T23:00:00Z') }

  t.equal(schedule.runsBetween(span, 1000).length, 365)
  t.equal(schedule.runsBetween(span, 10).length, 10)
})

t.test('the previous run is the last one at or before a time', async t => {
  const schedule = parseSchedule('0 2 * * *', BERLIN)

  t.equal(iso(schedule.previousRun(at('2026-11-20T01:00:00Z'))), '2026-11-20T01:00')
  t.equal(iso(schedule.previousRun(at('2026-11-20T00:59:59.999Z'))), '2026-11-19T01:00')
})

t.test('going forward and back meet at the same runs, over two years of Berlin', async () => {
  const schedules = ['30 2 * * *', '*/30 2 * * *', '0 3 * * 0', '15 0 1 * *', 'Mon..Fri 02:30'].map(text =>
    parseSchedule(text, BERLIN),
  )
  const times = fc.integer({ min: at('2025-01-01T00:00:00Z') / 60_000, max: at('2027-01-01T00:00:00Z') / 60_000 })
  fc.assert(
    fc.property(fc.constantFrom(...schedules), times, (schedule, minutes) => {
      const next = schedule.nextRun(minutes * 60_000)
      return schedule.previousRun(next) === next && schedule.nextRun(next - 1) === next
    }),
  )
})

t.test('words and systemd events mean what they mean there', async t => {
  const said: [string, string][] = [
    ['@daily', '0 0 * * *'],
    ['@weekly', '0 0 * * 0'],
    ['weekly', '0 0 * * 1'],
    ['Mon..Fri 02:00', '0 2 * * 1,2,3,4,5'],
    ['Fri..Mon 02:00', '0 2 * * 5,6,0,1'],
    ['Sat,Sunday 3:30:00', '30 3 * * 6,0'],
    ['*-*-* 04:00', '0 4 * * *'],
    ['*-*-01 04:30', '30 4 1 * *'],
    ['*-1,7-01..03', '0 0 1,2,3 1,7 *'],
    ['12-24 18:00', '0 18 24 12 *'],
    ['*:0/15', '0,15,30,45 * * * *'],
    ['8..18/2:30', '30 8,10,12,14,16,18 * * *'],
    ['  0   2 * * *', '0 2 * * *'],
  ]
  for (const [text, cron] of said) t.equal(parseSchedule(text, BERLIN).cron, cron, text)
  t.equal(parseSchedule('02:00 UTC', BERLIN).timeZone, 'UTC')
  t.equal(parseSchedule('Mon 02:00 America/New_York', BERLIN).timeZone, 'America/New_York')
})

t.test('a weekday and a day of the month are both asked for by systemd, either by cron', async t => {
  t.strictSame(runs('Fri *-*-13 02:00', '2026-01-01T00:00:00Z', 2), ['2026-02-13T01:00', '2026-03-13T01:00'])
  t.strictSame(runs('0 2 13 * 5', '2026-01-01T00:00:00Z', 2), ['2026-01-02T01:00', '2026-01-09T01:00'])
})

t.test('what cannot be said is refused with the reason', async t => {
  const refused: [string, RegExp][] = [
    ['0 0 30 2 *', /never comes/],
    ['61 0 * * *', /minute: 61$/],
    ['0 24 1 1 *', /hour: 24$/],
    ['0 2 32 1 *', /day: 32$/],
    ['0 2 1 13 *', /month: 13$/],
    ['0 2 1 0 *', /month: 0$/],
    ['@reboot', /@daily/],
    ['0 0 2 * * *', /five fields/],
    ['2027-*-* 02:00', /year/],
    ['*-*~01 02:00', /L/],
    ['02:00:30', /seconds/],
    ['Mox 02:00', /weekday/],
    ['25:00', /out of range/],
    ['*-*-* 02:00 x:y:z', /./],
    ['1 2', /./],
    ['', /./],
  ]
  for (const [text, why] of refused) t.throws(() => parseSchedule(text, BERLIN), { code: 'E_USAGE', why }, text)
  t.throws(() => parseSchedule('@daily', 'Nowhere/Land'), { code: 'E_USAGE', message: /zone/ })
})

t.test('a window is open over midnight, and says when it opens next', async t => {
  const night = parseWindow('22:00-06:00')
  const day = parseWindow('8:00 - 24:00')

  t.equal(iso(whenOpen(night, at('2026-11-20T02:00:00Z'), BERLIN)), '2026-11-20T02:00')
  t.equal(iso(whenOpen(night, at('2026-11-20T05:00:00Z'), BERLIN)), '2026-11-20T21:00')
  t.equal(iso(whenOpen(day, at('2026-11-20T23:30:00Z'), BERLIN)), '2026-11-21T07:00')
  t.equal(iso(whenOpen(day, at('2026-11-20T22:59:00Z'), BERLIN)), '2026-11-20T22:59')
  t.equal(whenOpen(undefined, 5, BERLIN), 5)
  for (const text of ['', '22:00', '25:00-26:00', '22:00-22:00', '10:60-11:00', '10:00-24:01']) {
    t.throws(() => parseWindow(text), { code: 'E_USAGE' }, text)
  }
})

t.test('jitter is the same for one seed, spread over many, and below its limit', async t => {
  const delays = Array.from({ length: 1000 }, (_, seed) => jitterFor(`prod/db${seed}`, 1000))

  t.equal(jitterFor('prod/db1', 1000), delays[1])
  t.ok(delays.every(delay => delay >= 0 && delay < 1000))
  const quarters = [0, 1, 2, 3].map(q => delays.filter(delay => Math.floor(delay / 250) === q).length)
  t.ok(Math.min(...quarters) > 200, String(quarters))
  t.equal(jitterFor('any', 0), 0)
})

const nightly = parseSchedule('0 2 * * *', BERLIN)

function decide(now: string, more: Partial<RunTiming> = {}): string {
  const timing = { schedule: nightly, accountedUntil: at('2026-11-19T01:00:30Z'), now: at(now), catchUp: true, ...more }
  const decision = decideRun(timing)
  const when = decision.kind === 'run' ? decision.due : decision.until
  return `${decision.kind} ${iso(when)} missed ${decision.missed.length}`
}

t.test('a job waits for its time and runs at it', async t => {
  t.equal(decide('2026-11-19T12:00:00Z'), 'wait 2026-11-20T01:00 missed 0')
  t.equal(decide('2026-11-20T01:00:00Z'), 'run 2026-11-20T01:00 missed 0')
  t.equal(decide('2026-11-20T01:09:00Z', { catchUp: false }), 'run 2026-11-20T01:00 missed 0')
})

t.test('after downtime one run makes up for all, and the others are reported', async t => {
  t.equal(decide('2026-11-23T12:00:00Z'), 'run 2026-11-23T01:00 missed 3')
})

t.test('without catch-up all are reported missed and the next is waited for', async t => {
  t.equal(decide('2026-11-23T12:00:00Z', { catchUp: false }), 'wait 2026-11-24T01:00 missed 4')
})

t.test('a run that falls outside its window waits for it to open, also without catch-up', async t => {
  const evening = { schedule: parseSchedule('0 20 * * *', BERLIN), window: parseWindow('22:00-06:00'), catchUp: false }

  t.equal(decide('2026-11-19T19:30:00Z', evening), 'wait 2026-11-19T21:00 missed 0')
  t.equal(decide('2026-11-19T21:00:00Z', evening), 'run 2026-11-19T19:00 missed 0')
  t.equal(decide('2026-11-20T12:00:00Z', { window: parseWindow('22:00-06:00') }), 'wait 2026-11-20T21:00 missed 0')
})

t.test('jitter puts the start off, not the due time', async t => {
  const jittered = { jitterMs: 5 * MINUTE_MS }

  t.equal(decide('2026-11-20T01:04:00Z', jittered), 'wait 2026-11-20T01:05 missed 0')
  t.equal(decide('2026-11-20T01:05:00Z', jittered), 'run 2026-11-20T01:00 missed 0')
})

t.test('a clock that went back a year does not silence the job for a year', async t => {
  t.equal(decide('2025-11-19T12:00:00Z'), 'wait 2025-11-20T01:00 missed 0')
})

t.test('years of missed minutes are counted up to a limit', async t => {
  const minutely = { schedule: parseSchedule('* * * * *', 'UTC') }

  t.equal(decide('2027-11-19T01:00:00Z', minutely), 'run 2027-11-19T01:00 missed 1000')
})

t.test('driven over a year with a dead week, each night is run once or reported', async t => {
  const schedule = parseSchedule('30 2 * * *', BERLIN)
  let accountedUntil = at('2026-01-01T00:00:00Z')
  const ran: number[] = []
  const missed: number[] = []
  let now = accountedUntil
  while (now < at('2027-01-01T00:00:00Z')) {
    if (now > at('2026-06-01T00:00:00Z') && now < at('2026-06-08T00:00:00Z')) now = at('2026-06-08T00:00:00Z')
    const decision = decideRun({ schedule, accountedUntil, now, catchUp: true })
    if (decision.kind === 'wait') {
      now = decision.until
      continue
    }
    ran.push(decision.due)
    missed.push(...decision.missed)
    accountedUntil = now
  }

  t.equal(ran.length + missed.length, 365)
  t.equal(missed.length, 6)
  t.equal(new Set([...ran, ...missed]).size, 365)
})
