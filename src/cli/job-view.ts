import type { StatusDocument, TaskDocument } from '../daemon/daemon-status.js'
import { type HistoryEntry, timeOf } from '../daemon/history-entry.js'
import { formatAge, formatDuration } from '../model/duration.js'
import { shortId } from '../model/point-ref.js'
import { formatSize } from '../model/size.js'
import { formatLocalTime, renderTable } from './output.js'
import { printable } from './printable.js'

export function daemonLines(status: StatusDocument): string[] {
  const now = Date.parse(status.now)
  const running = status.jobs.filter(({ state }) => state === 'running' || state === 'queued')
  const next = status.jobs
    .flatMap(job => (job.next_run === undefined ? [] : [{ job, at: Date.parse(job.next_run) }]))
    .sort((a, b) => a.at - b.at)[0]
  return [
    `virtvault ${status.version}: ${status.health}, up ${formatDuration(now - Date.parse(status.started))}`,
    `libvirt        ${status.libvirt_connected ? (status.uri ?? '') : 'not connected'}, ${status.domains} domains`,
    `configuration  ${status.config_files.join(', ')}`,
    ...status.config_problems.map(problem => `  ! ${printable(problem)} (the last good one is in force)`),
    ...status.problems.map(problem => `  ! ${printable(problem)}`),
    `jobs           ${status.jobs.length}, ${status.jobs.filter(({ state }) => state === 'running').length} running`,
    ...running.map(job => `  ${job.state.padEnd(8)} ${printable(subjectOf(job))}`),
    ...(next === undefined ? [] : [`next           ${printable(subjectOf(next.job))}, ${formatLocalTime(next.at)}`]),
  ]
}

export function taskTable(tasks: readonly TaskDocument[], now: number): string[] {
  const columns = [
    { title: 'WHAT' },
    { title: 'JOB' },
    { title: 'TARGET' },
    { title: 'LAST' },
    { title: 'AGE', align: 'right' },
    { title: 'NEXT' },
    { title: 'STATE' },
  ] as const
  const rows = tasks.map(task => [
    task.domain ?? task.verb,
    task.job ?? '-',
    task.target,
    task.last_status ?? '-',
    task.last_success === undefined ? '-' : formatAge(now - Date.parse(task.last_success)),
    task.next_run === undefined ? '-' : formatLocalTime(Date.parse(task.next_run)),
    task.stale_since === undefined ? task.state : 'overdue',
  ])
  return renderTable(columns, rows)
}

/** Newest last. `withLog` adds what each run said. */
export function historyLines(entries: readonly HistoryEntry[], { withLog }: { readonly withLog: boolean }): string[] {
  return entries.flatMap(entry => {
    const time = formatLocalTime(timeOf(entry))
    switch (entry.kind) {
      case 'event':
        return [`${time}  ${entry.level.padEnd(8)} ${printable(entry.message)}`]
      case 'start':
        return []
      case 'missed': {
        const what = entry.reason === 'stale' ? 'overdue' : `missed ${entry.times.length}`
        return [`${time}  ${what.padEnd(8)} ${printable(subject(entry))} (${entry.reason})`]
      }
      case 'run': {
        const facts = [
          ...(entry.point === undefined ? [] : [`@${shortId(entry.point)}`]),
          ...(entry.figures['read_bytes'] === undefined ? [] : [`read ${formatSize(entry.figures['read_bytes'])}`]),
          ...(entry.figures['stored_bytes'] === undefined
            ? []
            : [`stored ${formatSize(entry.figures['stored_bytes'])}`]),
          formatDuration(entry.ended - entry.started),
          ...(entry.attempt > 1 ? [`attempt ${entry.attempt}`] : []),
          ...(entry.error === undefined ? [] : [`${entry.error.message} [${entry.error.code}]`]),
        ]
        return [
          `${time}  ${entry.status.padEnd(8)} ${printable(subject(entry))}  ${printable(facts.join(', '))}`,
          ...entry.warnings.map(({ code, message }) => `    ! ${code} ${printable(message)}`),
          ...(withLog ? entry.log.map(line => `    ${printable(line)}`) : []),
        ]
      }
    }
  })
}

function subject({ verb, target, domain }: Exclude<HistoryEntry, { kind: 'event' }>): string {
  return domain === undefined ? `${verb} of ${target}` : `${domain.name} to ${target}`
}

function subjectOf({ verb, domain, target }: TaskDocument): string {
  return domain === undefined ? `${verb} of ${target}` : `${domain} to ${target}`
}
