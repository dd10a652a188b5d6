import * as Flags from '@oclif/core/flags'

import { BaseCommand, type Envelope } from '../../cli/base-command.js'
import { EXIT } from '../../cli/exit-codes.js'
import { exportedKey, newPassphrase } from '../../cli/passphrases.js'

export default class KeyImportCommand extends BaseCommand {
  static override description =
    'Makes a new key slot with the key that `key export` printed, for a store whose passphrases or key slots are lost. ' +
    'The new passphrase comes from VIRTVAULT_NEW_PASSPHRASE_FILE, _COMMAND or _FD, or is asked for.'
  static override examples = [
    { command: '<%= config.bin %> key import -t /srv/backup', description: 'Asks for the printed key' },
    { command: '<%= config.bin %> key import --from key.txt -t /srv/backup', description: 'From a file' },
  ]
  static override flags = {
    from: Flags.string({ summary: 'file with the printed key; - is standard input', helpValue: 'FILE' }),
    label: Flags.string({ summary: 'of the new slot, at most 64 bytes', helpValue: 'TEXT', default: 'import' }),
  }

  override async run(): Promise<Envelope> {
    const { flags } = await this.parse(KeyImportCommand)
    await using session = await this.session(flags)
    const { openKeyRing } = await import('../../cli/wire.js')
    const { ring } = await openKeyRing(session)
    await using _ring = ring

    ring.importKey(await exportedKey(session, flags.from))
    const id = await ring.add(await newPassphrase(session), flags.label)
    session.print([`Added the key slot ${id.slice(0, 8)}.`])
    return this.finish({ schema: 'virtvault/key-import/1', ok: true, status: 'success', exit: EXIT.ok, slot: id })
  }
}
