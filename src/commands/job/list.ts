import * as Args from '@oclif/core/args'

import { BaseCommand, type Envelope } from '../../cli/base-command.js'
import { EXIT } from '../../cli/exit-codes.js'
import { renderTable } from '../../cli/output.js'

export default class JobListCommand extends BaseCommand {
  static override description =
    'Lists the jobs of domains, from groups of the configuration and from the metadata of domains, with what they run ' +
    'by and where that is said. A domain without a job is listed too: nobody backs it up.'
  static override examples = [
    { command: '<%= config.bin %> job list', description: 'All domains' },
    { command: "<%= config.bin %> job list 'web*'", description: 'Some' },
  ]
  static override args = {
    domain: Args.string({
      description: 'domains: a name, a UUID, web*, r:REGEX, !x to leave out',
      multiple: true,
      ignoreStdin: true,
    }),
  }

  override async run(): Promise<Envelope> {
    const { args, flags } = await this.parse(JobListCommand)
    await using session = await this.session(flags)
    const { chooseDomains, jobsAtHand, jobsOf } = await import('../../cli/jobs-at-hand.js')
    await using at = await jobsAtHand(session)
    const found = chooseDomains(at, args.domain ?? []).map(domain => ({
      domain,
      jobs: jobsOf(at, domain),
    }))
    const columns = ['DOMAIN', 'JOB', 'GROUP', 'SCHEDULE', 'TARGETS', 'SAID BY'].map(title => ({ title }))
    const rows = found.flatMap(({ domain: { ref }, jobs }) =>
      jobs.length === 0
        ? [[ref.name, '-', '-', 'not backed up', '-', '-']]
        : jobs.map(({ id, group, settings, originOf }) => [
            ref.name,
            settings.paused ? `${id} (paused)` : id,
            group ?? '-',
            settings.schedule ?? 'by hand',
            settings.targets.join(', ') || '-',
            originOf('schedule')?.where ?? originOf('schedule')?.source ?? '-',
          ]),
    )
    session.print(renderTable(columns, rows))
    return this.finish({
      schema: 'virtvault/job_list/1',
      ok: true,
      status: 'success',
      exit: EXIT.ok,
      domains: found.map(({ domain: { ref }, jobs }) => ({
        domain: ref.name,
        uuid: ref.uuid,
        jobs: jobs.map(({ id, group, settings }) => ({
          id,
          group,
          schedule: settings.schedule,
          timezone: settings.timeZone,
          targets: settings.targets,
          paused: settings.paused,
        })),
      })),
    })
  }
}
