import * as Args from '@oclif/core/args'

import { BaseCommand, type Envelope } from '../../cli/base-command.js'
import { EXIT } from '../../cli/exit-codes.js'
import { renderRows } from '../../cli/output.js'
import { SETTING_KEYS } from '../../config/settings.js'
import type { JobSettings } from '../../model/domain-job.js'
import { writeDuration } from '../../model/duration.js'

/** Of settings that are numbers of milliseconds. */
const DURATIONS: ReadonlySet<string> = new Set(['jitter', 'within'])

export default class JobShowCommand extends BaseCommand {
  static override description =
    'Shows every setting of the jobs of a domain and who says so: a flag, a variable, the metadata of the domain, a ' +
    'host entry, a group or the default of the configuration with file, line and column, or what is built in.'
  static override examples = [
    { command: '<%= config.bin %> job show db01', description: 'Why it runs as it does' },
    { command: '<%= config.bin %> job show db01 --json', description: 'Every setting and its source, for a script' },
  ]
  static override args = { domain: Args.string({ description: 'a name or a UUID', required: true, ignoreStdin: true }) }

  override async run(): Promise<Envelope> {
    const { args, flags } = await this.parse(JobShowCommand)
    await using session = await this.session(flags)
    const { jobsAtHand, jobsOf, oneDomain } = await import('../../cli/jobs-at-hand.js')
    await using at = await jobsAtHand(session)
    const domain = oneDomain(at, args.domain)
    const jobs = jobsOf(at, domain)
    const shown = jobs.map(job => ({
      ...job,
      values: ALL_NAMES.flatMap(name => {
        const value = job.settings[name]
        if (value === undefined || (Array.isArray(value) && value.length === 0)) return []
        const origin = job.originOf(name)
        return [{ name: SETTING_KEYS[name], value, text: textOf(name, value), ...origin }]
      }),
    }))
    for (const { id, group, description, values } of shown) {
      session.print([`${domain.ref.name}: job ${id}${group === undefined ? '' : ` of group ${group}`}`])
      if (description !== undefined) session.print([`  ${description}`])
      session.print(
        renderRows(values.map(({ name, text, source, where }) => [`  ${name}`, text, where ?? source ?? ''])),
      )
    }
    if (jobs.length === 0) session.print([`${domain.ref.name} has no job: nobody backs it up.`])
    return this.finish({
      schema: 'virtvault/job_show/1',
      ok: true,
      status: 'success',
      exit: EXIT.ok,
      domain: domain.ref.name,
      uuid: domain.ref.uuid,
      jobs: shown.map(({ id, group, description, values }) => ({
        id,
        group,
        description,
        settings: values.map(({ name, value, source, where }) => ({ name, value, source, where })),
      })),
    })
  }
}

const ALL_NAMES = [
  'schedule',
  'timeZone',
  'jitter',
  'window',
  'catchUp',
  'priority',
  'paused',
  'autostart',
  'targets',
  'disks',
  'excludeDisks',
  'depth',
  'disableIfPoweredOff',
  'startPaused',
  'quiesce',
  'freezeMounts',
  'onBrokenChain',
  'connections',
  'bwlimit',
  'minChange',
  'scratchDir',
  'scratchDevices',
  'last',
  'hourly',
  'daily',
  'weekly',
  'monthly',
  'yearly',
  'within',
  'keepTags',
  'tags',
  'prune',
] as const satisfies readonly (keyof JobSettings)[]

function textOf(name: string, value: NonNullable<JobSettings[keyof JobSettings]>): string {
  if (typeof value === 'number' && DURATIONS.has(name)) return value === 0 ? '0' : writeDuration(value)
  return Array.isArray(value) ? value.join(', ') : String(value)
}
