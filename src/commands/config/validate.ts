import { BackupError } from '../../base/errors.js'
import { BaseCommand, type Envelope } from '../../cli/base-command.js'
import { EXIT } from '../../cli/exit-codes.js'
import { plural } from '../../cli/output.js'

export default class ConfigValidateCommand extends BaseCommand {
  static override description =
    'Reads the configuration and lists every mistake with its file, line and column. A configuration of virt-backup is ' +
    'understood as it is.'
  static override examples = [
    { command: '<%= config.bin %> config validate', description: 'The configuration that would be used' },
    { command: '<%= config.bin %> config validate --config ./new.yml', description: 'Another one' },
  ]

  override async run(): Promise<Envelope> {
    const { flags } = await this.parse(ConfigValidateCommand)
    await using session = await this.session(flags)
    const { readConfig } = await import('../../config/load.js')
    const { formatProblem } = await import('../../config/problems.js')
    const { files, problems, warnings } = await readConfig(session.configRequest)

    if (problems.length > 0) {
      const [first = '', ...others] = problems.map(formatProblem)
      throw new BackupError('E_CONFIG', first, {
        why: others.length === 0 ? undefined : `also:\n${others.join('\n')}`,
      })
    }
    for (const warning of warnings) session.warn(warning)
    session.print([
      files.length === 0 ? 'There is no configuration; flags can say everything.' : `${files.join(', ')}: ok`,
    ])
    if (warnings.length > 0) session.print([plural(warnings.length, 'warning')])
    return this.finish({
      schema: 'virtvault/config_validate/1',
      ok: true,
      status: 'success',
      exit: EXIT.ok,
      files,
      warnings,
    })
  }
}
