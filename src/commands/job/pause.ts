import { BaseCommand, type Envelope } from '../../cli/base-command.js'
import { setPaused } from '../../cli/job-pause.js'
import { PAUSED_DOMAINS, PAUSED_JOB } from '../../cli/job-pause-flags.js'

export default class JobPauseCommand extends BaseCommand {
  static override description =
    'Stops jobs of domains from being started by schedule, until job resume. Written into the metadata of the domain, so ' +
    'that it holds after a migration too. What runs goes on; backup pull and job run still work.'
  static override examples = [
    { command: '<%= config.bin %> job pause db01', description: 'Before work on it' },
    { command: "<%= config.bin %> job pause 'r:^web' --job nightly", description: 'Only the nightly job of some' },
  ]
  static override args = { domain: PAUSED_DOMAINS }
  static override flags = { job: PAUSED_JOB }

  override async run(): Promise<Envelope> {
    const { args, flags } = await this.parse(JobPauseCommand)
    await using session = await this.session(flags)
    return this.finish(await setPaused(session, { selectors: args.domain, job: flags.job, paused: true }))
  }
}
