import { readFile } from 'node:fs/promises'

import * as Args from '@oclif/core/args'

import { BackupError } from '../../base/errors.js'
import { BaseCommand, type Envelope } from '../../cli/base-command.js'
import { EXIT } from '../../cli/exit-codes.js'

export default class ConfigImportCommand extends BaseCommand {
  static override description =
    'Prints a configuration of virt-backup in our words, with its comments; what has no equal is named on stderr. ' +
    'virt-backup files are also understood as they are: this is for who wants to go on from there.'
  static override examples = [
    {
      command: '<%= config.bin %> config import virt-backup /etc/virt-backup/config.yml > /etc/virtvault/config.yml',
      description: 'Take it over',
    },
    {
      command: '<%= config.bin %> config import virt-backup ./config.yml --json',
      description: 'See what it becomes, and what has no counterpart',
    },
  ]
  static override args = {
    format: Args.string({ description: 'whose it is', required: true, options: ['virt-backup'], ignoreStdin: true }),
    file: Args.string({ description: 'the file', required: true, ignoreStdin: true }),
  }

  override async run(): Promise<Envelope> {
    const { args, flags } = await this.parse(ConfigImportCommand)
    await using session = await this.session(flags)
    const { convertConfig } = await import('../../config/compat.js')
    const { checkTexts } = await import('../../config/load.js')
    const { formatProblem } = await import('../../config/problems.js')
    const text = await readFile(args.file, 'utf8').catch((cause: unknown) => {
      throw new BackupError('E_NOT_FOUND', `${args.file} cannot be read`, { cause })
    })
    const converted = convertConfig(args.file, text)
    const { problems } = await checkTexts([{ file: args.file, text: converted.text }])
    if (problems.length > 0) {
      throw new BackupError('E_CONFIG', `${args.file} cannot be taken over`, {
        why: problems.map(formatProblem).join('\n'),
      })
    }
    for (const { where, message } of converted.remarks) session.note(`${where}  ${message}`)
    session.print([converted.text.trimEnd()])
    return this.finish({
      schema: 'virtvault/config_import/1',
      ok: true,
      status: 'success',
      exit: EXIT.ok,
      text: converted.text,
      remarks: converted.remarks,
    })
  }
}
