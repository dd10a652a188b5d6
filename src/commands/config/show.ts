import * as Flags from '@oclif/core/flags'

import { BaseCommand, type Envelope } from '../../cli/base-command.js'
import { EXIT } from '../../cli/exit-codes.js'

export default class ConfigShowCommand extends BaseCommand {
  static override description =
    'Prints the configuration as it is understood, all files and overrides together, without its secrets. With ' +
    '--resolved what holds for each group, and where that is said. For one domain: job show.'
  static override examples = [
    { command: '<%= config.bin %> config show', description: 'Everything' },
    { command: '<%= config.bin %> config show --resolved', description: 'Group by group, with file and line' },
  ]
  static override flags = { resolved: Flags.boolean({ summary: 'what holds for each group, and who says so' }) }

  override async run(): Promise<Envelope> {
    const { flags } = await this.parse(ConfigShowCommand)
    await using session = await this.session(flags)
    const { configLines, resolvedGroups, resolvedLines, shownConfig } = await import('../../cli/config-view.js')
    const loaded = await session.config()
    session.print(flags.resolved ? resolvedLines(loaded) : configLines(loaded))
    return this.finish({
      schema: 'virtvault/config_show/1',
      ok: true,
      status: 'success',
      exit: EXIT.ok,
      files: loaded.files,
      ...(flags.resolved ? { groups: resolvedGroups(loaded) } : { config: shownConfig(loaded) }),
    })
  }
}
