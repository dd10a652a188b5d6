import * as Args from '@oclif/core/args'

import { BaseCommand, type Envelope } from '../../cli/base-command.js'
import { EXIT } from '../../cli/exit-codes.js'
import { printable } from '../../cli/printable.js'

export default class ResetCommand extends BaseCommand {
  static override description =
    'Deletes the checkpoints, and with them the dirty bitmaps, that backups of this store keep on a domain. Recovery ' +
    'points stay as they are. The next pull reads everything and stores only what changed.'
  static override examples = [
    { command: '<%= config.bin %> backup reset web01', description: 'Asks before it does so' },
    { command: '<%= config.bin %> backup reset web01 --yes --json', description: 'Without asking' },
  ]
  static override args = {
    domain: Args.string({ description: 'name or UUID of the domain', required: true, ignoreStdin: true }),
  }

  override async run(): Promise<Envelope> {
    const { args, flags } = await this.parse(ResetCommand)
    await using session = await this.session(flags)
    const { connectMachine, openStore, resetCheckpoints } = await import('../../cli/wire.js')
    await using store = await openStore(session)
    await using machine = await connectMachine(session)
    const { uuid, name } = await machine.hypervisor.lookup(args.domain)
    await session.confirm(`The next pull of ${name} will read all of its disks.`)
    await using _lock = await store.runs.lockDomain(uuid)

    const warnings = await resetCheckpoints(store, machine, { uuid, name })
    session.print([
      `${printable(name)}: ${warnings.length === 0 ? 'no checkpoint of this store is left' : 'not clean'}`,
    ])
    for (const { code, message } of warnings) session.complain(`${code} ${message}`)
    const isClean = warnings.length === 0
    return this.finish({
      schema: 'virtvault/backup_reset/1',
      ok: isClean,
      status: isClean ? 'success' : 'partial',
      exit: isClean ? EXIT.ok : EXIT.partial,
      domain: name,
      uuid,
      warnings,
    })
  }
}
