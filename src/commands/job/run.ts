import * as Args from '@oclif/core/args'
import * as Flags from '@oclif/core/flags'

import { BackupError } from '../../base/errors.js'
import { BaseCommand, type Envelope } from '../../cli/base-command.js'
import { EXIT } from '../../cli/exit-codes.js'
import { historyLines } from '../../cli/job-view.js'

export default class JobRunCommand extends BaseCommand {
  static override description =
    'Has the daemon run scheduled jobs now, within its limits and with its hooks and notifications. Without a daemon, ' +
    'backup pull does the same work. A job that runs already is not begun again.'
  static override examples = [
    { command: '<%= config.bin %> job run db01 --wait', description: 'One domain, and its result' },
    { command: '<%= config.bin %> job run -g prod', description: 'A group' },
  ]
  static override args = {
    domain: Args.string({ description: 'names or UUIDs of domains', multiple: true, ignoreStdin: true }),
  }
  static override flags = {
    group: Flags.string({ char: 'g', summary: 'all domains of a group', helpValue: 'GROUP' }),
    verb: Flags.option({ summary: 'work on stores instead', options: ['prune', 'gc', 'verify'] as const })(),
    wait: Flags.boolean({ summary: 'wait for the end; the exit code is that of the runs' }),
  }

  override async run(): Promise<Envelope> {
    const { args, flags } = await this.parse(JobRunCommand)
    const names = args.domain ?? []
    if (names.length === 0 && flags.group === undefined && flags.verb === undefined) {
      throw new BackupError('E_USAGE', 'no job was chosen', { hints: ['name domains, a group with -g, or a --verb'] })
    }
    await using session = await this.session(flags)
    const { daemonClient } = await import('../../cli/daemon-place.js')
    const { awaitRuns } = await import('../../cli/await-runs.js')
    const client = await daemonClient(session)
    const { jobs } = await client.status()
    const isNamed = (job: (typeof jobs)[number]) =>
      flags.verb !== undefined
        ? job.verb === flags.verb
        : job.verb === 'pull' &&
          (flags.group === undefined || job.group === flags.group) &&
          (names.length === 0 || names.includes(job.domain ?? '') || names.includes(job.uuid ?? ''))
    const ids = jobs
      .filter(job => isNamed(job) && (session.settings.target === undefined || job.target === session.settings.target))
      .map(({ id }) => id)
    if (ids.length === 0)
      throw new BackupError('E_NOT_FOUND', 'the daemon has no such job', { hints: ['virtvault job next shows them'] })
    const since = session.clock.now()
    const begun = await client.run(ids)
    session.print([`${begun.length} of ${ids.length} jobs begun`])
    const common = { schema: 'virtvault/job_run/1', begun }
    if (!flags.wait) return this.finish({ ...common, ok: true, status: 'success', exit: EXIT.ok })
    const { exit, runs } = await awaitRuns(session, client, { ids: begun, since })
    session.print(historyLines(runs, { withLog: false }))
    const status = exit === EXIT.ok ? 'success' : exit === EXIT.partial ? 'partial' : 'failed'
    return this.finish({ ...common, ok: exit === EXIT.ok, status, exit, runs })
  }
}
