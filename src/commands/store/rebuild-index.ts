import { BaseCommand, type Envelope } from '../../cli/base-command.js'
import { EXIT } from '../../cli/exit-codes.js'
import { plural } from '../../cli/output.js'

export default class StoreRebuildIndexCommand extends BaseCommand {
  static override description =
    'Makes the index anew from the packs. An index that is deleted, damaged or behind is completed by itself when it is ' +
    'needed; this is for when you want to be sure. Other commands go on and wait for it. The old index stays until the ' +
    'new one is whole.'
  static override examples = [
    { command: '<%= config.bin %> store rebuild-index -t /srv/backup', description: 'Make the index anew' },
    { command: '<%= config.bin %> store rebuild-index -t nas', description: 'Of a target of the configuration' },
  ]

  override async run(): Promise<Envelope> {
    const { flags } = await this.parse(StoreRebuildIndexCommand)
    await using session = await this.session(flags)
    const { openWholeStore } = await import('../../cli/wire.js')
    await using store = await openWholeStore(session)

    const packs = await store.index.rebuild()

    session.print([`The index of ${store.location} was made anew from ${plural(packs, 'pack')}.`])
    return this.finish({
      schema: 'virtvault/store-rebuild-index/1',
      ok: true,
      status: 'success',
      exit: EXIT.ok,
      store: store.location,
      packs,
    })
  }
}
