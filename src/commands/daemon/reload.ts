import { BackupError } from '../../base/errors.js'
import { BaseCommand, type Envelope } from '../../cli/base-command.js'
import { EXIT } from '../../cli/exit-codes.js'

export default class DaemonReloadCommand extends BaseCommand {
  static override description =
    'Has the daemon read its configuration now, and says whether that is in use. It also does so by itself, some ' +
    'seconds after a change. Where the configuration cannot be used, the last good one stays in force (exit 2).'
  static override examples = [
    { command: '<%= config.bin %> daemon reload', description: 'After an edit' },
    { command: '<%= config.bin %> daemon reload --json', description: 'For a script' },
  ]

  override async run(): Promise<Envelope> {
    const { flags } = await this.parse(DaemonReloadCommand)
    await using session = await this.session(flags)
    const { daemonClient } = await import('../../cli/daemon-place.js')
    const client = await daemonClient(session)
    const problems = await client.reload()
    if (problems.length > 0) {
      throw new BackupError('E_CONFIG', 'the configuration cannot be used; the last good one stays in force', {
        why: problems.join('\n'),
        hints: ['virtvault config validate shows it again'],
      })
    }
    session.print(['The configuration is in use.'])
    return this.finish({ schema: 'virtvault/daemon_reload/1', ok: true, status: 'success', exit: EXIT.ok })
  }
}
