import { BackupError } from '../base/errors.js'
import { calendarIn, formatLocal } from './calendar.js'
import type { RecoveryPoint } from './recovery-point.js'
import { didYouMean, suggest } from './suggest.js'

/**
 * How people point at a recovery point: `[DOMAIN]@REF[:DISK][/PATH]`, where REF
 * is `latest`, `~N`, the beginning of an id, of a local date and time, or a tag.
 * Parsing and finding are pure; the points come from whoever lists the store.
 */

/** What is needed of a point to find it. Its tags are the ones that hold now. */
export type AddressedPoint = Pick<RecoveryPoint, 'id' | 'domain' | 'time' | 'sequence' | 'tags'>

export type RefSelector =
  /** `latest` is `back: 0`, `~1` the one before it. */
  | { readonly kind: 'back'; readonly back: number }
  /** The beginning of an id or of a date, or a tag. */
  | { readonly kind: 'text'; readonly text: string }

export interface PointRef {
  /** Name or UUID; undefined asks all domains. */
  readonly domain: string | undefined
  readonly ref: RefSelector
  readonly disk: string | undefined
  /** Within the disk, beginning with `/`. */
  readonly path: string | undefined
}

export const SHORT_ID_LENGTH = 7
export const MIN_ID_PREFIX_LENGTH = 6

const DATE = String.raw`\d{4}(?:-\d{2}(?:-\d{2}(?:[T ]\d{2}(?::\d{2}(?::\d{2})?(?:Z|[+-]\d{2}:?\d{2})?)?)?)?)?`
// A date takes its colons before a disk may: `@2026-11-20T02:01:vda`. Lazy, so that a later @ belongs to the path.
const POINT = new RegExp(`^(?<domain>.*?)@(?<ref>${DATE}|[^@:/]+)(?::(?<disk>[^@:/]+))?(?<path>/.*)?$`, 's')
const ID_PREFIX = new RegExp(`^[0-9a-f]{${MIN_ID_PREFIX_LENGTH},32}$`, 'i')
const DATE_PREFIX = new RegExp(`^${DATE}$`)
const ZONED_DATE = /^(\d{4}-\d{2}-\d{2})[T ](\d{2}:\d{2})(:\d{2})?(Z|[+-]\d{2}:?\d{2})$/
const MAX_CANDIDATES = 5

/** `91be7d0`: what people see of an id. */
export function shortId(id: string): string {
  return id.slice(0, SHORT_ID_LENGTH)
}

/** Throws E_USAGE for what is not of the form; says nothing about whether the point exists. */
export function parsePointRef(text: string): PointRef {
  const groups = POINT.exec(text)?.groups
  const ref = groups?.['ref']
  if (groups === undefined || ref === undefined) throw notAPoint(text)
  const domain = groups['domain']
  return {
    domain: domain === '' ? undefined : domain,
    ref: parseRef(ref, text),
    disk: groups['disk'],
    path: groups['path'],
  }
}

/** The same in writing, so that what was meant can be said back. */
export function formatPointRef({ domain, ref, disk, path }: PointRef): string {
  const what = ref.kind === 'text' ? ref.text : ref.back === 0 ? 'latest' : `~${ref.back}`
  return `${domain ?? ''}@${what}${disk === undefined ? '' : `:${disk}`}${path ?? ''}`
}

/**
 * The one point that `ref` means among `points`; dates are read in `timeZone`.
 * The newest of a domain is the one with the highest sequence.
 *
 * Throws E_NOT_FOUND when none fits, with the nearest thing there is, and
 * E_USAGE when several do, with the candidates.
 */
export function resolvePointRef<P extends AddressedPoint>(ref: PointRef, points: readonly P[], timeZone: string): P {
  const inDomain = ref.domain === undefined ? points : pointsOfDomain(ref.domain, points)
  return ref.ref.kind === 'back'
    ? countBack(ref, ref.ref.back, inDomain)
    : findText(ref, ref.ref.text, { points: inDomain, timeZone })
}

function parseRef(ref: string, whole: string): RefSelector {
  if (ref === 'latest') return { kind: 'back', back: 0 }
  if (!ref.startsWith('~')) return { kind: 'text', text: ref }
  const back = Number(ref.slice(1))
  if (!/^~\d+$/.test(ref) || !Number.isSafeInteger(back)) throw notAPoint(whole)
  return { kind: 'back', back }
}

function notAPoint(text: string): BackupError {
  const guess = text.includes('@') ? [] : [ID_PREFIX.test(text) ? `@${text}` : `${text}@latest`]
  return new BackupError('E_USAGE', `"${text}" does not name a recovery point`, {
    why: 'it is written [DOMAIN]@REF[:DISK][/PATH]; REF is latest, ~N, the first characters of an id or of a date, or a tag',
    hints: [...guess.map(other => `did you mean ${other}?`), 'virtvault list shows the points'],
  })
}

/** Points of the domain with this UUID or name; of one that was renamed also those under its old names. */
function pointsOfDomain<P extends AddressedPoint>(domain: string, points: readonly P[]): readonly P[] {
  const byUuid = points.filter(point => point.domain.uuid === domain.toLowerCase())
  if (byUuid.length > 0) return byUuid
  const named = new Set(points.filter(point => point.domain.name === domain).map(point => point.domain.uuid))
  // A name that moved on belongs to the domain that bears it in its newest point.
  const bearers = [...named].filter(uuid => newestOf(uuid, points)?.domain.name === domain)
  const wanted = bearers.length > 0 ? new Set(bearers) : named
  const found = points.filter(point => wanted.has(point.domain.uuid))
  if (found.length > 0) return found
  const names = new Set(points.map(point => point.domain.name))
  throw new BackupError(
    'E_NOT_FOUND',
    `there is no recovery point of a domain "${domain}".${didYouMean(domain, names)}`,
  )
}

function newestOf<P extends AddressedPoint>(uuid: string, points: readonly P[]): P | undefined {
  return bySequence(points.filter(point => point.domain.uuid === uuid))[0]
}

function countBack<P extends AddressedPoint>(ref: PointRef, back: number, points: readonly P[]): P {
  const domains = new Map(points.map(point => [point.domain.uuid, point.domain.name]))
  if (domains.size > 1) {
    const sameName = new Set(domains.values()).size === 1
    const names = [...domains].map(([uuid, name]) => `${sameName ? uuid : name}@${back === 0 ? 'latest' : `~${back}`}`)
    throw new BackupError('E_USAGE', `"${formatPointRef(ref)}" could mean ${domains.size} domains`, {
      hints: names.slice(0, MAX_CANDIDATES).map(name => `say which: ${name}`),
    })
  }
  const found = bySequence(points)[back]
  if (found !== undefined) return found
  throw new BackupError('E_NOT_FOUND', `there is no recovery point "${formatPointRef(ref)}"`, {
    why: points.length === 0 ? 'no point is stored' : `only ${points.length} are stored`,
  })
}

function findText<P extends AddressedPoint>(
  ref: PointRef,
  text: string,
  among: { readonly points: readonly P[]; readonly timeZone: string },
): P {
  const { points, timeZone } = among
  const isMeant = [idTest(text), dateTest(text, timeZone), (point: AddressedPoint) => point.tags.includes(text)]
  const matches = points.filter(point => isMeant.some(test => test(point)))
  const [only] = matches
  if (only !== undefined && matches.length === 1) return only
  const format = (point: AddressedPoint) => describe(point, timeZone)
  if (matches.length > 1) {
    throw new BackupError('E_USAGE', `"${formatPointRef(ref)}" could mean ${matches.length} recovery points`, {
      hints: bySequence(matches).slice(0, MAX_CANDIDATES).map(format),
    })
  }
  const tooShort = /^[0-9a-f]+$/i.test(text) && text.length < MIN_ID_PREFIX_LENGTH && !DATE_PREFIX.test(text)
  const nearTag = suggest(text, new Set(points.flatMap(point => point.tags)))
  throw new BackupError('E_NOT_FOUND', `there is no recovery point "${formatPointRef(ref)}"`, {
    why: tooShort ? `an id is recognised by its first ${MIN_ID_PREFIX_LENGTH} characters or more` : undefined,
    hints: [
      ...(nearTag === undefined ? [] : [`did you mean the tag ${nearTag}?`]),
      ...bySequence(points).slice(0, 3).map(format),
    ],
  })
}

function idTest(text: string): (point: AddressedPoint) => boolean {
  const prefix = text.toLowerCase()
  return ID_PREFIX.test(text) ? point => point.id.toLowerCase().startsWith(prefix) : () => false
}

function dateTest(text: string, timeZone: string): (point: AddressedPoint) => boolean {
  const [, date, minutes, seconds, zone] = ZONED_DATE.exec(text) ?? []
  if (date !== undefined && minutes !== undefined && zone !== undefined) {
    const start = Date.parse(`${date}T${minutes}${seconds ?? ':00'}${zone}`)
    const length = seconds === undefined ? 60_000 : 1000
    return point => point.time >= start && point.time < start + length
  }
  if (!DATE_PREFIX.test(text)) return () => false
  const calendar = calendarIn(timeZone)
  const prefix = text.replace(' ', 'T')
  return point => formatLocal(calendar.localTime(point.time)).startsWith(prefix)
}

function bySequence<P extends AddressedPoint>(points: readonly P[]): P[] {
  return points.toSorted((a, b) => b.sequence - a.sequence || b.time - a.time)
}

function describe(point: AddressedPoint, timeZone: string): string {
  const local = formatLocal(calendarIn(timeZone).localTime(point.time)).replace('T', ' ')
  const tags = point.tags.length === 0 ? '' : `  ${point.tags.join(', ')}`
  return `${point.domain.name}@${shortId(point.id)}  ${local}${tags}`
}
