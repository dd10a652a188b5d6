import * as Args from '@oclif/core/args'
import * as Flags from '@oclif/core/flags'

import { BaseCommand, type Envelope } from '../../cli/base-command.js'
import { EXIT } from '../../cli/exit-codes.js'
import { historyLines } from '../../cli/job-view.js'
import { historyDocument } from '../../daemon/history-entry.js'
import { parseDuration } from '../../model/duration.js'

export default class JobHistoryCommand extends BaseCommand {
  static override description =
    'Shows every run with its result, its figures and, with --log, what it said; also missed runs and what else ' +
    'happened. Kept on this machine, whether or not a daemon runs.'
  static override examples = [
    { command: '<%= config.bin %> job history --since 7d', description: 'The last week' },
    { command: '<%= config.bin %> job history db01 --failed --log', description: 'What went wrong with one domain' },
  ]
  static override args = { domain: Args.string({ description: 'a name or a UUID', ignoreStdin: true }) }
  static override flags = {
    since: Flags.string({ summary: 'only runs younger than this', helpValue: '7d' }),
    failed: Flags.boolean({ summary: 'only what failed, was partial or was missed' }),
    log: Flags.boolean({ summary: 'with what each run said' }),
    limit: Flags.integer({ summary: 'the newest so many', min: 1, max: 100_000, default: 50, helpValue: '50' }),
  }

  override async run(): Promise<Envelope> {
    const { args, flags } = await this.parse(JobHistoryCommand)
    await using session = await this.session(flags)
    const { openHistory } = await import('../../cli/daemon-wire.js')
    await using history = await openHistory(await session.config())
    const entries = await history.read({
      since: flags.since === undefined ? undefined : session.clock.now() - parseDuration(flags.since),
      domain: args.domain,
      statuses: flags.failed ? ['failed', 'partial', 'missed'] : undefined,
      limit: flags.limit,
    })
    const lines = historyLines(entries, { withLog: flags.log })
    session.print(lines.length === 0 ? ['Nothing has run yet.'] : lines)
    return this.finish({
      schema: 'virtvault/job_history/1',
      ok: true,
      status: 'success',
      exit: EXIT.ok,
      entries: entries.map(historyDocument),
    })
  }
}
