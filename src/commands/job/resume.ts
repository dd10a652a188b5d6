import * as Args from '@oclif/core/args'
import * as Flags from '@oclif/core/flags'

import { BaseCommand, type Envelope } from '../../cli/base-command.js'
import { setPaused } from '../../cli/job-pause.js'

export default class JobResumeCommand extends BaseCommand {
  static override description =
    'Has paused jobs of domains started by schedule again. What was due meanwhile is not made up for.'
  static override examples = [
    { command: '<%= config.bin %> job resume db01', description: 'After it' },
    { command: "<%= config.bin %> job resume 'r:^web' --job nightly", description: 'Only the nightly job of some' },
  ]
  static override args = {
    domain: Args.string({
      description: 'domains: a name, a UUID, web*, r:REGEX, !x to leave out',
      required: true,
      multiple: true,
      ignoreStdin: true,
    }),
  }
  static override flags = {
    job: Flags.string({ summary: 'only this of their jobs', helpValue: 'ID' }),
  }

  override async run(): Promise<Envelope> {
    const { args, flags } = await this.parse(JobResumeCommand)
    await using session = await this.session(flags)
    return this.finish(await setPaused(session, { selectors: args.domain, job: flags.job, paused: false }))
  }
}
