import * as Flags from '@oclif/core/flags'

import { BaseCommand, type Envelope } from '../../cli/base-command.js'
import { EXIT } from '../../cli/exit-codes.js'
import { unlockRing } from '../../cli/key-view.js'
import { newPassphrase } from '../../cli/passphrases.js'

export default class KeyAddCommand extends BaseCommand {
  static override description =
    'Adds a key slot: one more passphrase that opens the store. The new one comes from VIRTVAULT_NEW_PASSPHRASE_FILE, ' +
    '_COMMAND or _FD, or is asked for; the present one as always. Nothing that is stored is touched.'
  static override examples = [
    { command: '<%= config.bin %> key add --label ops -t /srv/backup', description: 'A passphrase for colleagues' },
    { command: '<%= config.bin %> key add -t nas', description: 'To a configured target; asks for both passphrases' },
  ]
  static override flags = {
    label: Flags.string({ summary: 'whose it is, at most 64 bytes', helpValue: 'TEXT', default: '' }),
  }

  override async run(): Promise<Envelope> {
    const { flags } = await this.parse(KeyAddCommand)
    await using session = await this.session(flags)
    const { openKeyRing } = await import('../../cli/wire.js')
    const opened = await openKeyRing(session)
    await using ring = opened.ring

    await unlockRing(session, opened)
    const id = await ring.add(await newPassphrase(session), flags.label)
    session.print([`Added the key slot ${id.slice(0, 8)}.`])
    return this.finish({ schema: 'virtvault/key-add/1', ok: true, status: 'success', exit: EXIT.ok, slot: id })
  }
}
