import type { TaskView } from './scheduler.js'
import type { RunFigures } from './task.js'

/**
 * Figures for Prometheus, in its text format. Decision 0002 says why no
 * library writes it. One line per task and figure: as many as there are jobs.
 */

export interface MetricSample {
  readonly labels: Readonly<Record<string, string>>
  readonly value: number
}

export interface MetricFamily {
  readonly name: string
  readonly help: string
  readonly type: 'gauge' | 'counter'
  readonly samples: readonly MetricSample[]
}

/** What a target holds. */
export interface StoreFacts {
  readonly target: string
  readonly points: readonly {
    readonly domain: string
    readonly group?: string | undefined
    readonly count: number
    /** Milliseconds. */
    readonly oldest: number
  }[]
  /** Bytes of its packs. */
  readonly stored: number
}

export interface MetricFacts {
  readonly version: string
  readonly views: readonly TaskView[]
  /** Of the latest run of a task. */
  readonly figures: ReadonlyMap<string, RunFigures>
  readonly stores: readonly StoreFacts[]
  readonly libvirtConnected: boolean
  readonly configOk: boolean
}

const STATUS_VALUES = { success: 0, skipped: 0, partial: 1, failed: 2 } as const

export function metricFamilies(facts: MetricFacts): readonly MetricFamily[] {
  const { views, figures, stores } = facts
  const of = (verbs: readonly string[], value: (view: TaskView) => number | undefined) =>
    views.flatMap((view): MetricSample[] => {
      const found = verbs.includes(view.task.verb) ? value(view) : undefined
      return found === undefined ? [] : [{ labels: labelsOf(view), value: found }]
    })
  const pulls = (value: (view: TaskView) => number | undefined) => of(['pull'], value)
  const all = (value: (view: TaskView) => number | undefined) => of(['pull', 'prune', 'gc', 'verify'], value)
  const figure = (name: string) => pulls(({ task }) => figures.get(task.id)?.[name])
  const gauge = (name: string, help: string, samples: readonly MetricSample[]): MetricFamily => ({
    name: `virtvault_${name}`,
    help,
    type: 'gauge',
    samples,
  })
  const one = (value: number): MetricSample[] => [{ labels: {}, value }]
  const perDomain = (value: (points: StoreFacts['points'][number]) => number) =>
    stores.flatMap(({ target, points }) =>
      points.map(one => ({ labels: { domain: one.domain, group: one.group ?? '', target }, value: value(one) })),
    )
  return [
    gauge('build_info', 'Always 1; the version is a label.', [{ labels: { version: facts.version }, value: 1 }]),
    gauge('libvirt_connected', 'Whether the daemon is connected to libvirt.', one(Number(facts.libvirtConnected))),
    gauge(
      'config_last_reload_successful',
      'Whether the configuration on disk is the one in use.',
      one(Number(facts.configOk)),
    ),
    gauge(
      'backup_last_success_timestamp_seconds',
      'Start of the last pull that made a recovery point.',
      pulls(({ memory }) => seconds(memory.lastSuccess)),
    ),
    gauge(
      'backup_last_run_timestamp_seconds',
      'Start of the last pull.',
      pulls(({ memory }) => seconds(memory.last?.started)),
    ),
    gauge(
      'backup_last_status',
      'How the last pull ended: 0 success, 1 partial, 2 failed.',
      pulls(({ memory: { last } }) => (last === undefined ? undefined : STATUS_VALUES[last.status])),
    ),
    gauge(
      'backup_duration_seconds',
      'How long the last pull took.',
      pulls(({ memory: { last } }) => (last === undefined ? undefined : (last.ended - last.started) / 1000)),
    ),
    gauge('backup_read_bytes', 'Bytes that the last pull read from the domain.', figure('read_bytes')),
    gauge('backup_new_bytes', 'Plain bytes of the last pull that the target did not have.', figure('new_bytes')),
    gauge('backup_stored_bytes', 'Bytes that the last pull wrote to the target.', figure('stored_bytes')),
    gauge(
      'backup_guest_frozen_seconds',
      'How long the last pull kept file systems of the guest frozen.',
      figure('frozen_seconds'),
    ),
    gauge(
      'points',
      'Recovery points of a domain in a target.',
      perDomain(({ count }) => count),
    ),
    gauge(
      'point_oldest_timestamp_seconds',
      'Time of the oldest recovery point.',
      perDomain(({ oldest }) => oldest / 1000),
    ),
    gauge(
      'store_bytes',
      'Bytes of all packs of a target.',
      stores.map(({ target, stored }) => ({ labels: { target }, value: stored })),
    ),
    gauge(
      'verify_last_success_timestamp_seconds',
      'Start of the last verify that found no damage.',
      of(['verify'], ({ memory }) => seconds(memory.lastSuccess)),
    ),
    gauge(
      'verify_boot_seconds',
      'How long the slowest guest of the last boot test took to boot.',
      of(['verify'], ({ task }) => figures.get(task.id)?.['boot_seconds']),
    ),
    gauge(
      'maintenance_last_status',
      'How the last prune, gc or verify ended: 0 success, 1 partial, 2 failed.',
      of(['prune', 'gc', 'verify'], ({ memory: { last } }) =>
        last === undefined ? undefined : STATUS_VALUES[last.status],
      ),
    ),
    gauge(
      'job_next_run_timestamp_seconds',
      'When a job starts next.',
      all(({ nextRun }) => seconds(nextRun)),
    ),
    gauge('job_interval_seconds', 'Time between two scheduled runs of a job.', all(intervalOf)),
    gauge(
      'job_stale',
      'Whether a job is overdue.',
      all(({ staleSince }) => Number(staleSince !== undefined)),
    ),
  ]
}

/** Families without samples are left out. */
export function renderMetrics(families: readonly MetricFamily[]): string {
  const lines = families
    .filter(({ samples }) => samples.length > 0)
    .flatMap(({ name, help, type, samples }) => [
      `# HELP ${name} ${help.replaceAll('\\', '\\\\').replaceAll('\n', '\\n')}`,
      `# TYPE ${name} ${type}`,
      ...samples.map(({ labels, value }) => `${name}${renderLabels(labels)} ${renderValue(value)}`),
    ])
  return lines.length === 0 ? '' : `${lines.join('\n')}\n`
}

function renderLabels(labels: Readonly<Record<string, string>>): string {
  const pairs = Object.entries(labels).map(([name, value]) => `${name}="${escapeLabel(value)}"`)
  return pairs.length === 0 ? '' : `{${pairs.join(',')}}`
}

/** Names of domains may be anything. */
function escapeLabel(value: string): string {
  return value.replaceAll('\\', '\\\\').replaceAll('"', '\\"').replaceAll('\n', '\\n')
}

function renderValue(value: number): string {
  return Number.isNaN(value) ? 'NaN' : value === Infinity ? '+Inf' : value === -Infinity ? '-Inf' : String(value)
}

function labelsOf({ task }: TaskView): Readonly<Record<string, string>> {
  if (task.verb !== 'pull') return { verb: task.verb, target: task.target, level: task.level ?? '' }
  return { domain: task.domain.name, group: task.group ?? '', target: task.target, job: task.job.id }
}

function intervalOf({ task, nextRun }: TaskView): number | undefined {
  if (nextRun === undefined) return undefined
  const next = task.schedule.nextRun(nextRun)
  return (task.schedule.nextRun(next) - next) / 1000
}

function seconds(milliseconds: number | undefined): number | undefined {
  return milliseconds === undefined ? undefined : milliseconds / 1000
}
