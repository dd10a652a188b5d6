import * as Args from '@oclif/core/args'
import * as Flags from '@oclif/core/flags'

import { BaseCommand, type Envelope } from '../../cli/base-command.js'
import { setPaused } from '../../cli/job-pause.js'

export default class JobPauseCommand extends BaseCommand {
  static override description =
    'Stops jobs of domains from being started by schedule, until job resume. Written into the metadata of the domain, so ' +
    'that it holds after a migration too. What runs goes on; backup pull and job run still work.'
  static override examples = [
    { command: '<%= config.bin %> job pause db01', description: 'Before work on it' },
    { command: "<%= config.bin %> job pause 'r:^web' --job nightly", description: 'Only the nightly job of some' },
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
    const { args, flags } = await this.parse(JobPauseCommand)
    await using session = await this.session(flags)
    return this.finish(await setPaused(session, { selectors: args.domain, job: flags.job, paused: true }))
  }
}
