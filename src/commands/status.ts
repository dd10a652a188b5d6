import * as Flags from '@oclif/core/flags'

import { BaseCommand, type Envelope } from '../cli/base-command.js'
import { EXIT } from '../cli/exit-codes.js'
import { plural } from '../cli/output.js'
import { taskTable } from '../cli/job-view.js'
import { parseDuration } from '../model/duration.js'

/** As monitoring plugins end. */
const NAGIOS = { ok: 0, warning: 1, critical: 2 } as const

export default class StatusCommand extends BaseCommand {
  static override description =
    'Shows each scheduled job, how its last run ended and when the next is. With --check it is for monitoring systems: ' +
    'exit 0 where every job had a success within --max-age and none failed since, else 20. With --nagios one line ' +
    'first, and 0, 1, 2 or 3 as plugins end. Works without a daemon too, from the history of this machine.'
  static override examples = [
    { command: '<%= config.bin %> status', description: 'At a glance' },
    { command: '<%= config.bin %> status --check --max-age 26h', description: 'For cron or a monitoring system' },
    { command: '<%= config.bin %> status --nagios', description: 'For Nagios, Icinga, Checkmk' },
  ]
  static override flags = {
    check: Flags.boolean({ summary: 'exit 20 where a job is overdue, failed or too old' }),
    nagios: Flags.boolean({ summary: 'as a monitoring plugin' }),
    'max-age': Flags.string({ summary: 'of the last success of a pull', helpValue: '26h', default: '26h' }),
  }

  override async run(): Promise<Envelope> {
    const { flags } = await this.parse(StatusCommand)
    const maxAgeMs = parseDuration(flags['max-age'])
    await using session = await this.session(flags)
    const { knownTasks } = await import('../cli/known-tasks.js')
    const { checkJobs } = await import('../daemon/daemon-status.js')
    const { tasks, source } = await knownTasks(session)
    const now = session.clock.now()
    const { health, summary, lines } = checkJobs(tasks, { now, maxAgeMs })
    if (flags.nagios) session.print([`VIRTVAULT ${health.toUpperCase()} - ${summary}`, ...lines])
    else if (flags.check) session.print([`${health}: ${summary}`, ...lines])
    else
      session.print([
        ...taskTable(tasks, now),
        `${plural(tasks.length, 'job')}: ${health}`,
        ...lines.map(line => `  ! ${line}`),
      ])
    const checked = health === 'critical' ? EXIT.stale : EXIT.ok
    const exit = flags.nagios ? NAGIOS[health] : flags.check ? checked : EXIT.ok
    return this.finish({
      schema: 'virtvault/status/1',
      ok: exit === EXIT.ok,
      status: health === 'ok' ? 'success' : health === 'warning' ? 'partial' : 'failed',
      exit,
      health,
      problems: lines,
      source,
      jobs: tasks,
    })
  }
}
