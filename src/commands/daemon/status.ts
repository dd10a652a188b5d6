import { BaseCommand, type Envelope } from '../../cli/base-command.js'
import { EXIT } from '../../cli/exit-codes.js'
import { daemonLines } from '../../cli/job-view.js'

export default class DaemonStatusCommand extends BaseCommand {
  static override description =
    'Shows how the daemon is: its configuration, its libvirt, what runs and what comes next.'
  static override examples = [
    { command: '<%= config.bin %> daemon status', description: 'At a glance' },
    { command: '<%= config.bin %> daemon status --json', description: 'For programs' },
  ]

  override async run(): Promise<Envelope> {
    const { flags } = await this.parse(DaemonStatusCommand)
    await using session = await this.session(flags)
    const { daemonClient } = await import('../../cli/daemon-place.js')
    const status = await (await daemonClient(session)).status()
    session.print(daemonLines(status))
    return this.finish({ ...status, ok: true, status: 'success', exit: EXIT.ok })
  }
}
