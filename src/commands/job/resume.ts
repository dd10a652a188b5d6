import { BaseCommand, type Envelope } from '../../cli/base-command.js'
import { setPaused } from '../../cli/job-pause.js'
import { PAUSED_DOMAINS, PAUSED_JOB } from '../../cli/job-pause-flags.js'

export default class JobResumeCommand extends BaseCommand {
  static override description =
    'Has paused jobs of domains started by schedule again. What was due meanwhile is not made up for.'
  static override examples = [
    { command: '<%= config.bin %> job resume db01', description: 'After it' },
    { command: "<%= config.bin %> job resume 'r:^web' --job nightly", description: 'Only the nightly job of some' },
  ]
  static override args = { domain: PAUSED_DOMAINS }
  static override flags = { job: PAUSED_JOB }

  override async run(): Promise<Envelope> {
    const { args, flags } = await this.parse(JobResumeCommand)
    await using session = await this.session(flags)
    return this.finish(await setPaused(session, { selectors: args.domain, job: flags.job, paused: false }))
  }
}
