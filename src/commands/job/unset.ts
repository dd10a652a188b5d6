import * as Args from '@oclif/core/args'
import * as Flags from '@oclif/core/flags'

import { BaseCommand, type Envelope } from '../../cli/base-command.js'
import { EXIT } from '../../cli/exit-codes.js'

export default class JobUnsetCommand extends BaseCommand {
  static override description =
    'Removes a job from the metadata of a domain, or single settings of it, which then come from its group or the ' +
    'default. Recovery points stay.'
  static override examples = [
    { command: '<%= config.bin %> job unset db01', description: 'Its only job' },
    { command: '<%= config.bin %> job unset db01 --job nightly --setting quiesce', description: 'One setting' },
  ]
  static override args = { domain: Args.string({ description: 'a name or a UUID', required: true, ignoreStdin: true }) }
  static override flags = {
    job: Flags.string({ summary: 'which of its jobs', helpValue: 'ID' }),
    setting: Flags.string({
      summary: 'only this setting, as in the configuration (repeatable)',
      helpValue: 'schedule',
      multiple: true,
      multipleNonGreedy: true,
    }),
  }

  override async run(): Promise<Envelope> {
    const { args, flags } = await this.parse(JobUnsetCommand)
    await using session = await this.session(flags)
    const { jobsAtHand, oneDomain } = await import('../../cli/jobs-at-hand.js')
    const { jobIdOf, requireJob, withoutSettings } = await import('../../cli/job-edit.js')
    const { writeJobs } = await import('../../cli/daemon-wire.js')
    await using at = await jobsAtHand(session)
    const { ref, jobs } = oneDomain(at, args.domain)
    const { id } = requireJob(jobs, jobIdOf(jobs, flags.job))
    const left =
      flags.setting === undefined ? jobs.filter(job => job.id !== id) : withoutSettings(jobs, id, flags.setting)
    await writeJobs(at.machine.hypervisor, ref.uuid, left)
    session.print([`${ref.name}: ${flags.setting === undefined ? `job ${id} is removed` : `job ${id} is changed`}`])
    return this.finish({
      schema: 'virtvault/job_unset/1',
      ok: true,
      status: 'success',
      exit: EXIT.ok,
      domain: ref.name,
      job: id,
    })
  }
}
