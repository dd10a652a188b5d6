import * as Flags from '@oclif/core/flags'

import { BaseCommand, type Envelope } from '../../cli/base-command.js'
import { EXIT } from '../../cli/exit-codes.js'
import { parseDuration } from '../../model/duration.js'

export default class DaemonRunCommand extends BaseCommand {
  static override description =
    'Runs what the configuration and the metadata of domains schedule, until it is ended. Follows both without a ' +
    'restart; a configuration that cannot be used leaves the last good one in force. SIGHUP reads it again. SIGTERM ' +
    'begins nothing more and waits for what runs. For systemd: Type=notify, with watchdog.'
  static override examples = [
    { command: '<%= config.bin %> daemon run', description: 'In the foreground; systemd starts it so' },
    { command: '<%= config.bin %> daemon run --drain-timeout 1h', description: 'Let backups end on SIGTERM' },
  ]
  static override flags = {
    'drain-timeout': Flags.string({ summary: 'after SIGTERM abort what still runs (10m)', helpValue: '10m' }),
  }

  override async run(): Promise<Envelope> {
    const { flags } = await this.parse(DaemonRunCommand)
    const drain = flags['drain-timeout']
    const drainMs = drain === undefined ? undefined : parseDuration(drain)
    await using session = await this.session(flags)
    const { runDaemon } = await import('../../cli/daemon-wire.js')
    const { lowerPriority } = await import('../../cli/wire.js')
    const { config } = await session.config()
    await lowerPriority(config)
    await runDaemon(session, { drainMs })
    return this.finish({ schema: 'virtvault/daemon_run/1', ok: true, status: 'success', exit: EXIT.ok })
  }
}
