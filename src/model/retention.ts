import { BackupError } from '../base/errors.js'
import { calendarIn, PERIODS } from './calendar.js'
import type { Calendar, Period, PeriodKeys } from './calendar.js'
import { DAY_MS, formatAge, formatDuration, MINUTE_MS } from './duration.js'
import { shortId } from './point-ref.js'
import type { DomainRef, PointNotes } from './recovery-point.js'

/**
 * Which recovery points of one domain a policy keeps, and why. Deleting is
 * somebody else's business: this is the plan that `--dry-run` prints.
 *
 * The first point of a period stands for it, so a point that is kept as the
 * daily one at noon is still that in the evening:
 *
 *     daily: 2      Mon            Tue            Wed
 *     points        1   2   3      4   5          6   7
 *     kept                         4              6
 *
 * "First" and "newest" go by sequence; only the calendar's periods go by time.
 * Two properties hold for every history, also where clocks jumped: planning
 * again after the deletion keeps exactly the same points, and a newer point
 * never brings back an expired one.
 */

/** How many to keep; `'*'` keeps for ever. */
export type KeepCount = number | '*'

export interface RetentionPolicy extends Partial<Readonly<Record<Period, KeepCount | undefined>>> {
  readonly last?: KeepCount | undefined
  /** Milliseconds before the newest point, not before now: a host that was off for a month loses nothing. */
  readonly within?: number | undefined
  /** Points with one of these tags are kept. */
  readonly tags?: readonly string[] | undefined
}

export interface RetainedPoint {
  readonly id: string
  readonly time: number
  readonly sequence: number
  readonly tags: readonly string[]
  readonly hold?: PointNotes['hold']
}

export interface RetentionOptions {
  readonly now: number
  readonly timeZone: string
  /** Plan although a clock looks wrong. */
  readonly force?: boolean | undefined
}

export interface RetentionDecision<P extends RetainedPoint> {
  readonly point: P
  readonly action: 'keep' | 'expire'
  /** `hourly 1/24, daily 1/7` or `no rule left (daily full, weekly has @66ab2d1)`. */
  readonly reason: string
  /** The rules that keep it, for the KEPT BY column: `hourly`, `hold`; empty when it expires. */
  readonly keptBy: readonly string[]
}

export interface RetentionPlan<P extends RetainedPoint> {
  /** Newest first. */
  readonly decisions: readonly RetentionDecision<P>[]
  /** Why nothing may be expired now; every decision is then `keep`. */
  readonly refused: string | undefined
}

/** A clock may differ this much from the one that dated a point. */
export const CLOCK_TOLERANCE_MS = 5 * MINUTE_MS
/** Two neighbouring points further apart than this make `within` ask first: a clock may have jumped. */
export const CLOCK_JUMP_MS = 366 * DAY_MS

/** Plans for the points of one domain (in one group); `points` in any order. Throws E_USAGE for an unknown zone. */
export function planRetention<P extends RetainedPoint>(
  points: readonly P[],
  policy: RetentionPolicy,
  options: RetentionOptions,
): RetentionPlan<P> {
  return planIn(calendarIn(options.timeZone), points, { policy, options })
}

export interface DomainRetentionPlan<P extends RetainedPoint> extends RetentionPlan<P> {
  readonly domain: DomainRef
  readonly group: string | undefined
}

/** Plans each domain and group for itself: what one keeps says nothing about another. Sorted by group, then name. */
export function planRetentionByDomain<P extends RetainedPoint & { domain: DomainRef; group?: string | undefined }>(
  points: readonly P[],
  policyOf: (domain: DomainRef, group: string | undefined) => RetentionPolicy,
  options: RetentionOptions,
): readonly DomainRetentionPlan<P>[] {
  const parts = new Map<string, P[]>()
  for (const point of points) {
    const key = `${point.domain.uuid}\n${point.group ?? ''}`
    const part = parts.get(key)
    if (part === undefined) parts.set(key, [point])
    else part.push(point)
  }
  const plans = [...parts.values()].flatMap(part => {
    const newest = newestFirst(part)[0]
    if (newest === undefined) return []
    const { domain, group } = newest
    return [{ domain, group, ...planRetention(part, policyOf(domain, group), options) }]
  })
  return plans.sort(
    (a, b) => (a.group ?? '').localeCompare(b.group ?? '') || a.domain.name.localeCompare(b.domain.name),
  )
}

export interface Simulation {
  /** What is left after the last backup and prune, newest first. */
  readonly kept: readonly RetentionDecision<RetainedPoint>[]
  readonly backups: number
  /** The most points that there were at once, after a prune. */
  readonly peak: number
}

/**
 * What is left if a backup is made, and pruned, at each of `times` (rising).
 * Begins with the points that exist.
 */
export function simulateRetention(
  times: Iterable<number>,
  policy: RetentionPolicy,
  start: { readonly timeZone: string; readonly points?: readonly RetainedPoint[] | undefined },
): Simulation {
  const calendar = rememberingCalendar(start.timeZone)
  let points: readonly RetainedPoint[] = start.points ?? []
  let sequence = points.reduce((highest, point) => Math.max(highest, point.sequence), 0)
  let kept: readonly RetentionDecision<RetainedPoint>[] = []
  let backups = 0
  let peak = 0
  for (const time of times) {
    backups++
    sequence++
    const added = { id: `simulated${sequence}`, time, sequence, tags: [] }
    const options = { now: time, timeZone: start.timeZone }
    const plan = planIn(calendar, [...points, added], { policy, options })
    kept = plan.decisions.filter(decision => decision.action === 'keep')
    points = kept.map(decision => decision.point)
    peak = Math.max(peak, points.length)
  }
  return { kept, backups, peak }
}

/** `days` days of evenly spaced times from `start`, for a simulation. */
export function* evenTimes(start: number, days: number, everyMs: number): Generator<number> {
  if (everyMs <= 0) throw new BackupError('E_USAGE', 'the time between two backups must be more than nothing')
  for (let time = start; time < start + days * DAY_MS; time += everyMs) yield time
}

interface Candidate<P> {
  readonly point: P
  readonly keys: PeriodKeys
  readonly kept: string[]
  readonly lost: string[]
  readonly keptBy: string[]
}

function planIn<P extends RetainedPoint>(
  calendar: Pick<Calendar, 'periodKeys'>,
  points: readonly P[],
  { policy, options }: { readonly policy: RetentionPolicy; readonly options: RetentionOptions },
): RetentionPlan<P> {
  const all = newestFirst(points).map(point => ({
    point,
    keys: calendar.periodKeys(point.time),
    kept: [],
    lost: [],
    keptBy: [],
  }))
  const refused = options.force === true ? undefined : refusal(points, policy, options)
  if (refused !== undefined) return { decisions: all.map(one => keepFor(one, refused)), refused }
  if (!hasRule(policy)) {
    return { decisions: all.map(one => keepFor(one, 'no retention rule is set')), refused: undefined }
  }

  keepMarked(all, policy, options.now)
  // A point from the future stands in no period that has been: it is kept, and takes no slot from the others.
  const present = all.filter(one => !isFuture(one.point, options.now))
  keepLast(present, policy.last)
  for (const period of PERIODS) keepPeriod(present, period, policy[period])
  keepWithin(present, policy.within)
  const [newest] = present
  if (newest !== undefined && newest.kept.length === 0) note(newest, 'newest', 'newest point')
  return { decisions: all.map(decide), refused: undefined }
}

function refusal(
  points: readonly RetainedPoint[],
  policy: RetentionPolicy,
  options: RetentionOptions,
): string | undefined {
  const latest = points.toSorted((a, b) => b.time - a.time)[0]
  if (latest !== undefined && isFuture(latest, options.now)) {
    const ahead = formatDuration(latest.time - options.now)
    return `@${shortId(latest.id)} is dated ${ahead} in the future: this clock or the one that dated it is wrong`
  }
  const { within = 0 } = policy
  if (within <= 0) return undefined
  const times = newestFirst(points).map(point => point.time)
  const jump = times.findIndex((time, at) => time - (times[at + 1] ?? time) > Math.max(CLOCK_JUMP_MS, within))
  if (jump < 0) return undefined
  const gap = formatAge((times[jump] ?? 0) - (times[jump + 1] ?? 0))
  return `two points that follow one another are ${gap} apart: a clock may have jumped, and "within" would expire all before`
}

function isFuture(point: RetainedPoint, now: number): boolean {
  return point.time - CLOCK_TOLERANCE_MS > now
}

function hasRule(policy: RetentionPolicy): boolean {
  const counts = [policy.last, ...PERIODS.map(period => policy[period])]
  return (policy.within ?? 0) > 0 || counts.some(count => count === '*' || (count !== undefined && count > 0))
}

function keepMarked<P extends RetainedPoint>(all: readonly Candidate<P>[], policy: RetentionPolicy, now: number): void {
  for (const one of all) {
    const { hold, tags } = one.point
    if (hold !== undefined && (hold.until === undefined || hold.until > now)) {
      note(one, 'hold', hold.until === undefined ? 'hold' : `hold until ${isoDate(hold.until)}`)
    }
    const tag = policy.tags?.find(wanted => tags.includes(wanted))
    if (tag !== undefined) note(one, 'tag', `tag ${tag}`)
    if (isFuture(one.point, now)) note(one, 'future', 'dated in the future')
  }
}

function keepLast<P extends RetainedPoint>(present: readonly Candidate<P>[], count: KeepCount | undefined): void {
  if (!isRule(count)) return
  for (const [at, one] of present.entries()) {
    if (isWithin(at, count)) note(one, 'last', `last ${at + 1}/${count}`)
    else one.lost.push('last full')
  }
}

function keepPeriod<P extends RetainedPoint>(
  present: readonly Candidate<P>[],
  period: Period,
  count: KeepCount | undefined,
): void {
  if (!isRule(count)) return
  const firsts = new Map<number, Candidate<P>>()
  // `present` is newest first: the last to be set is the first of its period.
  for (const one of present) firsts.set(one.keys[period], one)
  const newestPeriods = [...firsts.keys()].sort((a, b) => b - a)
  const rank = new Map(newestPeriods.map((key, at) => [key, at]))
  for (const one of present) {
    const at = rank.get(one.keys[period]) ?? Infinity
    const first = firsts.get(one.keys[period])
    if (!isWithin(at, count)) one.lost.push(`${period} full`)
    else if (first === one) note(one, period, `${period} ${at + 1}/${count}`)
    else if (first !== undefined) one.lost.push(`${period} has @${shortId(first.point.id)}`)
  }
}

function keepWithin<P extends RetainedPoint>(present: readonly Candidate<P>[], within: number | undefined): void {
  if (within === undefined || within <= 0) return
  const newestTime = present.reduce((newest, one) => Math.max(newest, one.point.time), -Infinity)
  for (const one of present) {
    if (newestTime - one.point.time < within) note(one, 'within', `within ${formatAge(within)}`)
    else one.lost.push(`older than ${formatAge(within)}`)
  }
}

function isRule(count: KeepCount | undefined): count is KeepCount {
  return count === '*' || (count !== undefined && count > 0)
}

function isWithin(at: number, count: KeepCount): boolean {
  return count === '*' || at < count
}

function note<P>(one: Candidate<P>, rule: string, reason: string): void {
  one.kept.push(reason)
  one.keptBy.push(rule)
}

function decide<P extends RetainedPoint>({ point, kept, lost, keptBy }: Candidate<P>): RetentionDecision<P> {
  if (kept.length > 0) return { point, action: 'keep', reason: kept.join(', '), keptBy }
  return { point, action: 'expire', reason: `no rule left (${lost.join(', ')})`, keptBy: [] }
}

function keepFor<P extends RetainedPoint>({ point }: Candidate<P>, reason: string): RetentionDecision<P> {
  return { point, action: 'keep', reason, keptBy: [] }
}

function newestFirst<P extends RetainedPoint>(points: readonly P[]): P[] {
  return points.toSorted((a, b) => b.sequence - a.sequence || b.time - a.time || (a.id < b.id ? 1 : -1))
}

function isoDate(time: number): string {
  return new Date(time).toISOString().slice(0, 10)
}

function rememberingCalendar(timeZone: string): Pick<Calendar, 'periodKeys'> {
  const calendar = calendarIn(timeZone)
  const known = new Map<number, PeriodKeys>()
  return {
    periodKeys: time => {
      const keys = known.get(time) ?? calendar.periodKeys(time)
      known.set(time, keys)
      return keys
    },
  }
}
