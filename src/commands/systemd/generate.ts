import { writeFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'

import * as Flags from '@oclif/core/flags'

import { BackupError } from '../../base/errors.js'
import { BaseCommand, type Envelope } from '../../cli/base-command.js'
import { EXIT } from '../../cli/exit-codes.js'
import { programPath } from '../../cli/package-json.js'
import { localTimeZone } from '../../cli/points.js'

export default class SystemdGenerateCommand extends BaseCommand {
  static override description =
    'Writes units for systemd: with --daemon the hardened service of the daemon, with --timers a timer for each group ' +
    'and for prune, gc and verify, for people without the daemon. Jobs in the metadata of domains need the daemon.'
  static override examples = [
    { command: '<%= config.bin %> systemd generate --daemon -n', description: 'Look at it first' },
    {
      command: '<%= config.bin %> systemd generate --timers --to /etc/systemd/system',
      description: 'Without a daemon',
    },
  ]
  static override flags = {
    daemon: Flags.boolean({ summary: 'the daemon', exactlyOne: ['daemon', 'timers'] }),
    timers: Flags.boolean({ summary: 'timers, without a daemon' }),
    to: Flags.string({ summary: 'directory for the units', helpValue: 'DIR', default: '/etc/systemd/system' }),
    'dry-run': Flags.boolean({ char: 'n', summary: 'print them, write nothing' }),
  }

  override async run(): Promise<Envelope> {
    const { flags } = await this.parse(SystemdGenerateCommand)
    await using session = await this.session(flags)
    const { daemonUnits, timerUnits } = await import('../../daemon/systemd-units.js')
    const loaded = await session.config()
    const [main] = loaded.files
    if (main === undefined)
      throw new BackupError('E_CONFIG', 'there is no configuration', { hints: ['virtvault config generate'] })
    const options = { program: programPath(), configFile: resolve(main), timeZone: localTimeZone() }
    const units = flags.daemon ? daemonUnits(loaded, options) : timerUnits(loaded, options)
    if (units.length === 0)
      throw new BackupError('E_NOT_FOUND', 'no group has a schedule: there is nothing to be timed')
    for (const { name, text } of units) {
      if (flags['dry-run']) session.print([`# ${join(flags.to, name)}`, text])
      else await writeFile(join(flags.to, name), text)
    }
    if (!flags['dry-run'])
      session.print(
        nextSteps(
          units.map(({ name }) => name),
          flags.to,
        ),
      )
    return this.finish({ schema: 'virtvault/systemd_generate/1', ok: true, status: 'success', exit: EXIT.ok, units })
  }
}

function nextSteps(names: readonly string[], folder: string): string[] {
  const enabled = names.filter(name => name.endsWith('.timer') || name === 'virtvault-daemon.service')
  return [
    `${names.length} units are in ${folder}. Now:`,
    '  systemctl daemon-reload',
    ...enabled.map(name => `  systemctl enable --now ${name}`),
  ]
}
