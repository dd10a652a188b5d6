import { BackupError, isErrorCode, messageOf, WARNING_CODES, type Warning } from '../base/errors.js'
import type { MissReason } from './scheduler.js'
import type { RunError, RunFigures, RunStatus, Trigger, Verb } from './task.js'

/**
 * The lines of the history: one JSON object each, snake_case as all JSON that
 * leaves the program, times as ISO texts. Fields may be added.
 */

export type HistoryEntry = RunEntry | StartEntry | MissedEntry | EventEntry

/** What a run was about. */
export interface RunSubject {
  readonly task: string
  readonly verb: Verb
  readonly target: string
  readonly domain?: { readonly uuid: string; readonly name: string } | undefined
  readonly group?: string | undefined
  readonly job?: string | undefined
}

/** An attempt that ended. */
export interface RunEntry extends RunSubject {
  readonly kind: 'run'
  readonly id: string
  readonly trigger: Trigger
  readonly attempt: number
  readonly due?: number | undefined
  readonly started: number
  readonly ended: number
  readonly status: RunStatus
  readonly error?: RunError | undefined
  readonly warnings: readonly Warning[]
  readonly point?: string | undefined
  readonly figures: RunFigures
  readonly log: readonly string[]
  /** When the next attempt was to be made. */
  readonly retryAt?: number | undefined
}

/** An attempt that began; without its run entry, the process died in it. */
export interface StartEntry extends RunSubject {
  readonly kind: 'start'
  readonly id: string
  readonly trigger: Trigger
  readonly attempt: number
  readonly due?: number | undefined
  readonly started: number
}

/** Scheduled times that came to nothing. */
export interface MissedEntry extends RunSubject {
  readonly kind: 'missed'
  readonly at: number
  readonly times: readonly number[]
  readonly reason: MissReason | 'stale'
  readonly isMadeUp: boolean
}

/** Something that is not about one task: a broken configuration, a lost libvirt, a domain that came or went. */
export interface EventEntry {
  readonly kind: 'event'
  readonly at: number
  readonly level: 'info' | 'warning' | 'error'
  readonly message: string
}

/** When it was written, about: the end of a run, the beginning of a start. */
export function timeOf(entry: HistoryEntry): number {
  return entry.kind === 'run' ? entry.ended : entry.kind === 'start' ? entry.started : entry.at
}

/** As `--json`, the API and the file have it. */
export function historyDocument(entry: HistoryEntry): Readonly<Record<string, unknown>> {
  if (entry.kind === 'event') {
    return { kind: 'event', at: iso(entry.at), level: entry.level, message: entry.message }
  }
  const { task, verb, target, domain, group, job } = entry
  const subject = { task, verb, target, domain: domain?.name, uuid: domain?.uuid, group, job }
  if (entry.kind === 'missed') {
    const { at, times, reason, isMadeUp } = entry
    return { kind: 'missed', ...subject, at: iso(at), times: times.map(iso), reason, made_up: isMadeUp }
  }
  const { id, trigger, attempt, due } = entry
  const start = { ...subject, id, trigger, attempt, due: isoOr(due), started: iso(entry.started) }
  if (entry.kind === 'start') return { kind: 'start', ...start }
  const { ended, status, error, warnings, point, figures, log, retryAt } = entry
  return {
    kind: 'run',
    ...start,
    ended: iso(ended),
    seconds: (ended - entry.started) / 1000,
    status,
    error,
    warnings,
    point,
    figures,
    log,
    retry_at: isoOr(retryAt),
  }
}

/** Throws E_DAMAGED for what is not an entry of this form. */
export function readHistoryDocument(value: unknown): HistoryEntry {
  const read = fieldsOf(value)
  const kind = read.text('kind')
  switch (kind) {
    case 'event':
      return { kind, at: read.time('at'), level: read.oneOf('level', LEVELS), message: read.text('message') }
    case 'missed':
      return {
        kind,
        ...subjectOf(read),
        at: read.time('at'),
        times: read.list('times').map(parseTime),
        reason: read.oneOf('reason', ['down', 'overrun', 'stale'] as const),
        isMadeUp: read.raw('made_up') === true,
      }
    case 'start':
      return { kind, ...startOf(read) }
    case 'run':
      return {
        kind,
        ...startOf(read),
        ended: read.time('ended'),
        status: read.oneOf('status', STATUSES),
        error: errorOf(read.raw('error')),
        warnings: read.list('warnings').map(readWarning),
        point: read.optionalText('point'),
        figures: figuresOf(read.raw('figures')),
        log: read.list('log').map(String),
        retryAt: read.optionalTime('retry_at'),
      }
    default:
      throw notAnEntry(`kind "${kind}"`)
  }
}

const LEVELS = ['info', 'warning', 'error'] as const
const STATUSES = ['success', 'partial', 'failed', 'skipped'] as const
const TRIGGERS = ['schedule', 'catch-up', 'retry', 'manual'] as const
const VERBS = ['pull', 'prune', 'gc', 'verify'] as const

function startOf(read: Fields) {
  return {
    ...subjectOf(read),
    id: read.text('id'),
    trigger: read.oneOf('trigger', TRIGGERS),
    attempt: Number(read.raw('attempt') ?? 1),
    due: read.optionalTime('due'),
    started: read.time('started'),
  }
}

function subjectOf(read: Fields): RunSubject {
  const uuid = read.optionalText('uuid')
  return {
    task: read.text('task'),
    verb: read.oneOf('verb', VERBS),
    target: read.text('target'),
    domain: uuid === undefined ? undefined : { uuid, name: read.optionalText('domain') ?? uuid },
    group: read.optionalText('group'),
    job: read.optionalText('job'),
  }
}

function errorOf(value: unknown): RunError | undefined {
  if (value === undefined) return undefined
  const read = fieldsOf(value)
  const code = read.text('code')
  return { code: isErrorCode(code) ? code : 'E_INTERNAL', message: read.text('message') }
}

function readWarning(value: unknown): Warning {
  const read = fieldsOf(value)
  return { code: read.oneOf('code', WARNING_CODES), message: read.text('message') }
}

function figuresOf(value: unknown): RunFigures {
  const entries = typeof value === 'object' && value !== null ? Object.entries(value) : []
  return Object.fromEntries(entries.filter((entry): entry is [string, number] => typeof entry[1] === 'number'))
}

/** Checked access to the fields of one JSON object. */
interface Fields {
  raw(name: string): unknown
  text(name: string): string
  optionalText(name: string): string | undefined
  time(name: string): number
  optionalTime(name: string): number | undefined
  list(name: string): readonly unknown[]
  oneOf<T extends string>(name: string, known: readonly T[]): T
}

function fieldsOf(value: unknown): Fields {
  if (typeof value !== 'object' || value === null) throw notAnEntry('no object')
  const entries = new Map<string, unknown>(Object.entries(value))
  const raw = (name: string) => entries.get(name) ?? undefined
  const text = (name: string) => {
    const found = raw(name)
    if (typeof found !== 'string') throw notAnEntry(`no ${name}`)
    return found
  }
  return {
    raw,
    text,
    optionalText: name => (raw(name) === undefined ? undefined : text(name)),
    time: name => parseTime(raw(name)),
    optionalTime: name => (raw(name) === undefined ? undefined : parseTime(raw(name))),
    list: name => {
      const found = raw(name) ?? []
      if (!Array.isArray(found)) throw notAnEntry(`${name} is no list`)
      const list: readonly unknown[] = found
      return list
    },
    oneOf: (name, known) => {
      const found = known.find(one => one === raw(name))
      if (found === undefined) throw notAnEntry(`${name} is none of ${known.join(', ')}`)
      return found
    },
  }
}

function parseTime(value: unknown): number {
  const time = typeof value === 'string' ? Date.parse(value) : NaN
  if (!Number.isFinite(time)) throw notAnEntry('no time')
  return time
}

function iso(time: number): string {
  return new Date(time).toISOString()
}

function isoOr(time: number | undefined): string | undefined {
  return time === undefined ? undefined : iso(time)
}

function notAnEntry(why: string): BackupError {
  return new BackupError('E_DAMAGED', `not an entry of the history: ${why}`)
}

/** Why a line could not be read, for a warning. */
export function tryReadHistoryLine(line: string): HistoryEntry | { readonly kind: 'unreadable'; readonly why: string } {
  try {
    return readHistoryDocument(JSON.parse(line))
  } catch (error) {
    return { kind: 'unreadable', why: messageOf(error) }
  }
}
