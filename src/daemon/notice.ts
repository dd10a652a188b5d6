import { formatDuration } from '../model/duration.js'
import { shortId } from '../model/point-ref.js'
import { formatSize } from '../model/size.js'
import { type HistoryEntry, historyDocument, type MissedEntry, type RunEntry } from './history-entry.js'
import type { RunStatus } from './task.js'

/** What people are told: the sum of runs that belong together, or a job that is overdue. */
export interface Notice {
  readonly status: RunStatus | 'stale' | 'test'
  /** One line. */
  readonly title: string
  readonly lines: readonly string[]
  readonly entries: readonly HistoryEntry[]
}

/** The three outcomes of several runs together; skipped ones count for nothing. */
export function statusOfRuns(runs: readonly Pick<RunEntry, 'status'>[]): RunStatus {
  const counted = runs.filter(({ status }) => status !== 'skipped')
  const isGood = counted.every(({ status }) => status === 'success')
  if (counted.length === 0) return 'skipped'
  if (isGood) return 'success'
  return counted.every(({ status }) => status === 'failed') ? 'failed' : 'partial'
}

export function noticeOfRuns(runs: readonly RunEntry[], host: string): Notice {
  const status = statusOfRuns(runs)
  const bad = runs.filter(run => run.status === 'failed').length
  const warned = runs.filter(run => run.status !== 'failed' && run.warnings.length > 0).length
  const counts = [`${runs.length} ${runs.length === 1 ? 'run' : 'runs'}`]
  if (bad > 0) counts.push(`${bad} failed`)
  if (warned > 0) counts.push(`${warned} with warnings`)
  return {
    status,
    title: `virtvault on ${host}: ${status} (${counts.join(', ')})`,
    // What went wrong comes first: not everybody reads on.
    lines: runs.toSorted((a, b) => rank(a) - rank(b)).flatMap(runLines),
    entries: runs,
  }
}

export function noticeOfStale(missed: MissedEntry, host: string): Notice {
  const what =
    missed.domain === undefined ? `${missed.verb} of ${missed.target}` : `${missed.domain.name} to ${missed.target}`
  const [since = missed.at] = missed.times
  return {
    status: 'stale',
    title: `virtvault on ${host}: ${what} is overdue`,
    lines: [`${what}: no success since the one that was due at ${new Date(since).toISOString()}`],
    entries: [missed],
  }
}

export function testNotice(host: string): Notice {
  return {
    status: 'test',
    title: `virtvault on ${host}: this is a test`,
    lines: ['If you can read this, notifications work.'],
    entries: [],
  }
}

export function noticeDocument(notice: Notice, host: string): Readonly<Record<string, unknown>> {
  const { status, title, lines, entries } = notice
  const results = entries.map(entry => ({ ...historyDocument(entry), log: undefined }))
  return { schema: 'virtvault/notice/1', host, status, title, text: lines.join('\n'), results }
}

function runLines(run: RunEntry): string[] {
  const what = run.domain === undefined ? `${run.verb} of ${run.target}` : `${run.domain.name} to ${run.target}`
  const took = formatDuration(run.ended - run.started)
  const warnings = run.warnings.map(({ code, message }) => `  ! ${code} ${message}`)
  if (run.status === 'failed') {
    return [
      `${what}: failed after ${took}: ${run.error?.message ?? 'no reason given'} [${run.error?.code ?? '?'}]`,
      ...warnings,
    ]
  }
  const read = run.figures['read_bytes']
  const stored = run.figures['stored_bytes']
  const facts = [
    ...(run.point === undefined ? [] : [`@${shortId(run.point)}`]),
    ...(read === undefined ? [] : [`read ${formatSize(read)}`]),
    ...(stored === undefined ? [] : [`stored ${formatSize(stored)}`]),
    took,
  ]
  return [`${what}: ${run.status}, ${facts.join(', ')}`, ...warnings]
}

function rank({ status, warnings }: RunEntry): number {
  return status === 'failed' ? 0 : status === 'partial' ? 1 : warnings.length > 0 ? 2 : 3
}
