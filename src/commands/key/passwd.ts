import { BaseCommand, type Envelope } from '../../cli/base-command.js'
import { EXIT } from '../../cli/exit-codes.js'
import { unlockRing } from '../../cli/key-view.js'
import { newPassphrase } from '../../cli/passphrases.js'

export default class KeyPasswdCommand extends BaseCommand {
  static override description =
    'Puts a new passphrase in the place of the present one. Nothing that is stored is touched, so the key of the store ' +
    'stays the same: who knew the old passphrase and has a copy of the store’s files from before can read it still.'
  static override examples = [
    {
      command: '<%= config.bin %> key passwd -t /srv/backup',
      description: 'Asks for the old one, and twice for the new',
    },
    {
      command:
        'VIRTVAULT_PASSPHRASE_FILE=old VIRTVAULT_NEW_PASSPHRASE_FILE=new <%= config.bin %> key passwd -t /srv/backup',
      description: 'From files',
    },
  ]

  override async run(): Promise<Envelope> {
    const { flags } = await this.parse(KeyPasswdCommand)
    await using session = await this.session(flags)
    const { openKeyRing } = await import('../../cli/wire.js')
    const opened = await openKeyRing(session)
    await using ring = opened.ring

    await unlockRing(session, opened)
    const { added, removed } = await ring.replace(await newPassphrase(session))
    session.print([`Changed the passphrase: key slot ${added.slice(0, 8)} in the place of ${removed.slice(0, 8)}.`])
    return this.finish({
      schema: 'virtvault/key-passwd/1',
      ok: true,
      status: 'success',
      exit: EXIT.ok,
      slot: added,
      removed,
    })
  }
}
