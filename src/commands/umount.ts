import * as Args from '@oclif/core/args'

import { BaseCommand, type Envelope } from '../cli/base-command.js'
import { EXIT } from '../cli/exit-codes.js'
import { printable } from '../cli/printable.js'

export default class UmountCommand extends BaseCommand {
  static override description =
    'Unmounts what virtvault mount has mounted; the mounting command then ends by itself. A directory that is in use is ' +
    'refused, and so is whatever else is mounted there.'
  static override examples = [
    { command: '<%= config.bin %> umount /mnt', description: 'As this user mounted it' },
    { command: '<%= config.bin %> umount /mnt --json', description: 'For programs' },
  ]
  static override args = {
    directory: Args.string({ description: 'where it is mounted', required: true, ignoreStdin: true }),
  }

  override async run(): Promise<Envelope> {
    const { args, flags } = await this.parse(UmountCommand)
    await using session = await this.session(flags)
    const { unmountOurs } = await import('../cli/files-wire.js')
    const directory = await unmountOurs(args.directory)
    session.print([printable(`Unmounted ${directory}.`)])
    return this.finish({ schema: 'virtvault/umount/1', ok: true, status: 'success', exit: EXIT.ok, directory })
  }
}
