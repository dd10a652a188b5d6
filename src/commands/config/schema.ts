import { BaseCommand, type Envelope } from '../../cli/base-command.js'
import { EXIT } from '../../cli/exit-codes.js'

export default class ConfigSchemaCommand extends BaseCommand {
  static override description = 'Prints the JSON schema of the configuration, for editors and checkers.'
  static override examples = [
    { command: '<%= config.bin %> config schema > config.schema.json', description: 'For an editor' },
    { command: '<%= config.bin %> config schema --json', description: 'Within the document that every command prints' },
  ]

  override async run(): Promise<Envelope> {
    const { flags } = await this.parse(ConfigSchemaCommand)
    await using session = await this.session(flags)
    const { configJsonSchema } = await import('../../config/schema.js')
    const content = configJsonSchema()
    session.print([JSON.stringify(content, undefined, 2)])
    return this.finish({ schema: 'virtvault/config_schema/1', ok: true, status: 'success', exit: EXIT.ok, content })
  }
}
