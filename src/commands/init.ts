import * as Args from '@oclif/core/args'
import * as Flags from '@oclif/core/flags'

import { BaseCommand, type Envelope } from '../cli/base-command.js'
import { EXIT } from '../cli/exit-codes.js'
import { formatSize, parseSize } from '../model/size.js'

export default class InitCommand extends BaseCommand {
  static override description =
    'Makes an empty store in a directory that is absent or empty. Chunk size and compression are fixed for its life: ' +
    '64 KiB, the default, is the granule in which QEMU tracks changes. Encryption is too: with --encryption, or where ' +
    'VIRTVAULT_PASSPHRASE_FILE (_COMMAND, _FD) or the configuration of the target give a passphrase, the store is ' +
    'encrypted; otherwise it is not, and says so.'
  static override examples = [
    { command: '<%= config.bin %> init /srv/backup', description: 'A store in a directory' },
    { command: '<%= config.bin %> init /srv/backup --chunk-size 1MiB', description: 'Larger chunks, a smaller index' },
    { command: '<%= config.bin %> init /srv/backup --encryption aes-256-gcm', description: 'Asks for a passphrase' },
  ]
  static override args = {
    target: Args.string({ description: 'directory or URL of the new store; else -t', ignoreStdin: true }),
  }
  static override flags = {
    'chunk-size': Flags.string({ summary: 'a power of two from 64 KiB to 4 MiB [64 KiB]', helpValue: '64KiB' }),
    encryption: Flags.option({
      summary: 'of everything that tells of the disks [aes-256-gcm where a passphrase is given, else none]',
      options: ['aes-256-gcm', 'none'] as const,
    })(),
    level: Flags.integer({ summary: 'zstd level; 0 does not compress [1]', min: 0, max: 19 }),
  }

  override async run(): Promise<Envelope> {
    const { args, flags } = await this.parse(InitCommand)
    const chunkSize = flags['chunk-size'] === undefined ? undefined : parseSize(flags['chunk-size'])
    await using session = await this.session({ ...flags, target: args.target ?? flags.target })
    const { createStore } = await import('../cli/wire.js')
    await using store = await createStore(session, { chunkSize, level: flags.level, encryption: flags.encryption })

    session.print([
      `Created the store ${store.id.slice(0, 8)} in ${store.location}: chunks of ${formatSize(store.chunkSize)}, ${
        store.encrypted ? 'encrypted with AES-256-GCM' : 'not encrypted'
      }.`,
      store.encrypted
        ? `Next: virtvault key export -t ${store.location}, for the safe: without passphrase and key nobody can read it.`
        : 'Whoever can read its files can read the disks. For an encrypted one: --encryption aes-256-gcm.',
      `Next: virtvault backup pull DOMAIN -t ${store.location}`,
    ])
    return this.finish({
      schema: 'virtvault/init/1',
      ok: true,
      status: 'success',
      exit: EXIT.ok,
      store: store.location,
      store_id: store.id,
      chunk_bytes: store.chunkSize,
      encrypted: store.encrypted,
    })
  }
}
