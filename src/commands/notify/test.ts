import { hostname } from 'node:os'

import { BackupError } from '../../base/errors.js'
import { BaseCommand, type Envelope } from '../../cli/base-command.js'
import { EXIT } from '../../cli/exit-codes.js'
import { secretEnvironment } from '../../cli/secret-env.js'

export default class NotifyTestCommand extends BaseCommand {
  static override description =
    'Sends a test through every notifier of the configuration, whatever it is for, and says which of them worked ' +
    '(exit 3 where some did not, 14 where none did).'
  static override examples = [
    { command: '<%= config.bin %> notify test', description: 'After setting one up' },
    { command: '<%= config.bin %> notify test --config ./config.yml', description: 'Before the file is put in place' },
  ]

  override async run(): Promise<Envelope> {
    const { flags } = await this.parse(NotifyTestCommand)
    await using session = await this.session(flags)
    const { makeNotifiers, tellAll } = await import('../../daemon/notifiers.js')
    const { testNotice } = await import('../../daemon/notice.js')
    const { config } = await session.config()
    const host = hostname()
    const notifiers = makeNotifiers(config.notify, { env: secretEnvironment(), host })
    if (notifiers.length === 0)
      throw new BackupError('E_NOT_FOUND', 'the configuration has no notifier', { hints: ['add one under notify:'] })
    const results: { notifier: string; ok: boolean; message?: string | undefined }[] = []
    for (const notifier of notifiers) {
      const [warning] = await tellAll([notifier], testNotice(host), session.signal)
      results.push({ notifier: notifier.name, ok: warning === undefined, message: warning?.message })
      session.print([`${notifier.name}: ${warning?.message ?? 'told'}`])
    }
    const failed = results.filter(({ ok }) => !ok).length
    const exit = failed === 0 ? EXIT.ok : failed < results.length ? EXIT.partial : EXIT.unreachable
    const status = failed === 0 ? 'success' : exit === EXIT.partial ? 'partial' : 'failed'
    return this.finish({ schema: 'virtvault/notify_test/1', ok: failed === 0, status, exit, results })
  }
}
