import { BaseCommand, type Envelope } from '../../cli/base-command.js'
import { EXIT } from '../../cli/exit-codes.js'
import { localTimeZone } from '../../cli/points.js'

export default class ConfigGenerateCommand extends BaseCommand {
  static override description =
    'Prints a configuration that works as it stands and explains itself; every other setting is in it as a comment.'
  static override examples = [
    { command: '<%= config.bin %> config generate > /etc/virtvault/config.yml', description: 'A start' },
    { command: '<%= config.bin %> config generate -t /mnt/nas/vms', description: 'With the place of the store' },
  ]

  override async run(): Promise<Envelope> {
    const { flags } = await this.parse(ConfigGenerateCommand)
    await using session = await this.session(flags)
    const { generateConfig } = await import('../../config/generate.js')
    const text = generateConfig({ storePath: session.settings.target, timeZone: localTimeZone() })
    session.print([text.trimEnd()])
    return this.finish({ schema: 'virtvault/config_generate/1', ok: true, status: 'success', exit: EXIT.ok, text })
  }
}
