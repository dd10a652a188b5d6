import * as Flags from '@oclif/core/flags'

import { BaseCommand, type Envelope } from '../../cli/base-command.js'
import { EXIT } from '../../cli/exit-codes.js'
import { taskTable } from '../../cli/job-view.js'

export default class JobNextCommand extends BaseCommand {
  static override description =
    'Shows what runs next, jitter and window included: as the daemon has it, or as configuration and metadata say where ' +
    'none runs.'
  static override examples = [
    { command: '<%= config.bin %> job next --limit 5', description: 'The next five' },
    { command: '<%= config.bin %> job next --json', description: 'For a script' },
  ]
  static override flags = {
    limit: Flags.integer({ summary: 'so many', min: 1, default: 20, helpValue: '20' }),
  }

  override async run(): Promise<Envelope> {
    const { flags } = await this.parse(JobNextCommand)
    await using session = await this.session(flags)
    const { knownTasks } = await import('../../cli/known-tasks.js')
    const { tasks, source } = await knownTasks(session)
    const now = session.clock.now()
    const next = tasks
      .filter(task => task.next_run !== undefined)
      .toSorted((a, b) => ((a.next_run ?? '') < (b.next_run ?? '') ? -1 : 1))
      .slice(0, flags.limit)
    session.print(next.length === 0 ? ['Nothing is scheduled.'] : taskTable(next, now))
    if (source === 'offline') session.note('No daemon runs here.')
    return this.finish({
      schema: 'virtvault/job_next/1',
      ok: true,
      status: 'success',
      exit: EXIT.ok,
      source,
      jobs: next,
    })
  }
}
