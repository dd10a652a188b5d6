import * as Args from '@oclif/core/args'

import { BaseCommand, type Envelope } from '../../cli/base-command.js'
import { EXIT } from '../../cli/exit-codes.js'
import { unlockRing } from '../../cli/key-view.js'

export default class KeyRemoveCommand extends BaseCommand {
  static override description =
    'Removes a key slot: its passphrase opens the store no more. The last one stays. Who kept a copy of the slot, or of ' +
    'the key itself, can still read the store: against them only a new store helps.'
  static override examples = [
    { command: '<%= config.bin %> key remove 3f9c2a1b -t /srv/backup', description: 'By the id that key list shows' },
    { command: '<%= config.bin %> key remove 3f9c2a1b -t nas --yes', description: 'Without asking' },
  ]
  static override args = {
    slot: Args.string({ description: 'id of a slot, or its beginning', required: true, ignoreStdin: true }),
  }

  override async run(): Promise<Envelope> {
    const { args, flags } = await this.parse(KeyRemoveCommand)
    await using session = await this.session(flags)
    const { openKeyRing } = await import('../../cli/wire.js')
    const opened = await openKeyRing(session)
    await using ring = opened.ring

    const own = await unlockRing(session, opened)
    const slot = await ring.find(args.slot)
    const name = `${slot.id.slice(0, 8)}${slot.label === '' ? '' : ` (${slot.label})`}`
    const isOwn = slot.id === own?.id
    await session.confirm(
      `The key slot ${name} will be removed${isOwn ? ': it is the one you opened the store with' : ''}.`,
    )
    await ring.remove(slot.id)
    session.print([`Removed the key slot ${name}.`])
    return this.finish({ schema: 'virtvault/key-remove/1', ok: true, status: 'success', exit: EXIT.ok, slot: slot.id })
  }
}
