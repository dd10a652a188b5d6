import { BackupError } from '../base/errors.js'
import { SETTING_KEYS, withoutAbsent } from '../config/settings.js'
import { DEFAULT_JOB_ID, type DomainJob, isJobId, type JobSettings } from '../model/domain-job.js'
import { parseDuration } from '../model/duration.js'
import type { KeepCount } from '../model/retention.js'
import { parseSchedule, parseWindow } from '../model/schedule.js'
import { parseSize } from '../model/size.js'
import { didYouMean } from '../model/suggest.js'

/** Changes of the jobs in a domain's metadata. */

export interface JobFlags {
  readonly schedule?: string | undefined
  readonly timezone?: string | undefined
  readonly jitter?: string | undefined
  readonly window?: string | undefined
  readonly 'catch-up'?: boolean | undefined
  readonly priority?: number | undefined
  readonly target?: readonly string[] | undefined
  readonly disk?: readonly string[] | undefined
  readonly 'exclude-disk'?: readonly string[] | undefined
  readonly quiesce?: 'yes' | 'no' | 'required' | undefined
  readonly 'freeze-mount'?: readonly string[] | undefined
  readonly depth?: number | undefined
  readonly 'disable-if-powered-off'?: boolean | undefined
  readonly keep?: readonly string[] | undefined
  readonly tag?: readonly string[] | undefined
  readonly bwlimit?: string | undefined
  readonly prune?: boolean | undefined
}

/** Checked here, so that what cannot run is never written into a domain. Throws E_USAGE. */
export function settingsOfFlags(flags: JobFlags): JobSettings {
  const timeZone = flags.timezone ?? 'UTC'
  if (flags.schedule !== undefined || flags.timezone !== undefined) parseSchedule(flags.schedule ?? '@daily', timeZone)
  if (flags.window !== undefined) parseWindow(flags.window)
  return withoutAbsent({
    schedule: flags.schedule,
    timeZone: flags.timezone,
    jitter: flags.jitter === undefined ? undefined : parseDuration(flags.jitter),
    window: flags.window,
    catchUp: flags['catch-up'],
    priority: flags.priority,
    targets: flags.target,
    disks: flags.disk,
    excludeDisks: flags['exclude-disk'],
    quiesce:
      flags.quiesce === undefined ? undefined : flags.quiesce === 'required' ? 'required' : flags.quiesce === 'yes',
    freezeMounts: flags['freeze-mount'],
    depth: flags.depth,
    disableIfPoweredOff: flags['disable-if-powered-off'],
    tags: flags.tag,
    bwlimit: flags.bwlimit === undefined ? undefined : parseSize(flags.bwlimit),
    prune: flags.prune,
    ...keepOf(flags.keep ?? []),
  })
}

/** `daily=7`, `yearly=*`, `within=30d`. */
function keepOf(rules: readonly string[]): JobSettings {
  const found: Record<string, KeepCount | number> = {}
  for (const rule of rules) {
    const [, name = '', value = ''] = /^([a-z]+)=(.+)$/.exec(rule) ?? []
    if (name === 'within') found['within'] = parseDuration(value)
    else if (KEEP_RULES.has(name) && /^(\*|\d{1,9})$/.test(value)) found[name] = value === '*' ? '*' : Number(value)
    else {
      throw new BackupError('E_USAGE', `"${rule}" is not a rule for keeping`, {
        hints: ["write daily=7, or yearly='*', or within=30d"],
      })
    }
  }
  return found
}

const KEEP_RULES = new Set(['last', 'hourly', 'daily', 'weekly', 'monthly', 'yearly'])

/** The job with `change` over what it says already; a new one where there is none of that id. Throws E_USAGE. */
export function withJob(
  jobs: readonly DomainJob[],
  id: string,
  change: {
    readonly group?: string | undefined
    readonly description?: string | undefined
    readonly settings: JobSettings
  },
): readonly DomainJob[] {
  if (!isJobId(id))
    throw new BackupError('E_USAGE', `"${id}" is not a job id: letters, digits, dots, dashes, underscores`)
  const known = jobs.find(job => job.id === id)
  const next: DomainJob = {
    id,
    group: change.group ?? known?.group,
    description: change.description ?? known?.description,
    settings: { ...known?.settings, ...change.settings },
  }
  const { schedule, timeZone, jitter, window, catchUp } = next.settings
  // In the metadata they are attributes of the schedule.
  if (schedule === undefined && [timeZone, jitter, window, catchUp].some(value => value !== undefined)) {
    throw new BackupError('E_USAGE', 'time zone, jitter, window and catch-up belong to a schedule: give --schedule too')
  }
  return known === undefined ? [...jobs, next] : jobs.map(job => (job.id === id ? next : job))
}

/** Without some settings of a job; `names` as in the configuration. Throws E_USAGE, E_NOT_FOUND. */
export function withoutSettings(
  jobs: readonly DomainJob[],
  id: string,
  names: readonly string[],
): readonly DomainJob[] {
  const known = requireJob(jobs, id)
  const keys = Object.entries(SETTING_KEYS)
  const drop = new Set(
    names.map(name => {
      const found = keys.find(
        ([key, written]) => written === name || key === name || (name === 'target' && key === 'targets'),
      )
      if (found === undefined) {
        throw new BackupError(
          'E_USAGE',
          `there is no setting "${name}".${didYouMean(
            name,
            keys.map(([, written]) => written),
          )}`,
        )
      }
      return found[0]
    }),
  )
  const settings: JobSettings = Object.fromEntries(Object.entries(known.settings).filter(([key]) => !drop.has(key)))
  return jobs.map(job => (job.id === id ? { ...job, settings } : job))
}

export function requireJob(jobs: readonly DomainJob[], id: string): DomainJob {
  const known = jobs.find(job => job.id === id)
  if (known !== undefined) return known
  const ids = jobs.map(job => job.id)
  throw new BackupError('E_NOT_FOUND', `its metadata has no job "${id}".${didYouMean(id, ids)}`, {
    why: ids.length === 0 ? 'it has none' : `it has ${ids.join(', ')}`,
  })
}

/** The id that is meant where none was given: the only one there is, else the default one. */
export function jobIdOf(jobs: readonly DomainJob[], given: string | undefined): string {
  const [only, another] = jobs
  return given ?? (only !== undefined && another === undefined ? only.id : DEFAULT_JOB_ID)
}
