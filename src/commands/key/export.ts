import { BaseCommand, type Envelope } from '../../cli/base-command.js'
import { EXIT } from '../../cli/exit-codes.js'
import { unlockRing } from '../../cli/key-view.js'

export default class KeyExportCommand extends BaseCommand {
  static override description =
    'Prints the key of the store itself, to be written on paper and locked away: it opens the store whatever becomes of ' +
    'passphrases and key slots, also in the place of a passphrase, and cannot be revoked.'
  static override examples = [
    { command: '<%= config.bin %> key export -t /srv/backup', description: 'Onto the terminal' },
    { command: '<%= config.bin %> key export -t /srv/backup | lpr', description: 'Onto paper' },
  ]

  override async run(): Promise<Envelope> {
    const { flags } = await this.parse(KeyExportCommand)
    await using session = await this.session(flags)
    const { openKeyRing } = await import('../../cli/wire.js')
    const opened = await openKeyRing(session)
    await using ring = opened.ring

    await unlockRing(session, opened)
    const key = ring.exportKey()
    session.print([key])
    session.note(`This key opens the store ${ring.storeId.slice(0, 8)} for whoever has it. Keep it off this machine.`)
    return this.finish({
      schema: 'virtvault/key-export/1',
      ok: true,
      status: 'success',
      exit: EXIT.ok,
      store_id: ring.storeId,
      key,
    })
  }
}
