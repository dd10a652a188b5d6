import { BaseCommand, type Envelope } from '../../cli/base-command.js'
import { EXIT } from '../../cli/exit-codes.js'
import { slotDocument } from '../../cli/key-view.js'
import { formatLocalTime, renderTable } from '../../cli/output.js'

export default class KeyListCommand extends BaseCommand {
  static override description =
    'Shows the key slots of a store: each holds the key of the store, wrapped with one passphrase. Needs no passphrase; ' +
    'what a slot says of itself is sure only once its passphrase opened it.'
  static override examples = [
    { command: '<%= config.bin %> key list -t /srv/backup', description: 'Who can open this store' },
    { command: '<%= config.bin %> key list -t nas --json', description: 'Of a configured target, for a script' },
  ]

  override async run(): Promise<Envelope> {
    const { flags } = await this.parse(KeyListCommand)
    await using session = await this.session(flags)
    const { openKeyRing } = await import('../../cli/wire.js')
    const { ring } = await openKeyRing(session)
    await using _ring = ring

    const { slots, unreadable } = await ring.list()
    session.print(
      renderTable(
        [{ title: 'SLOT' }, { title: 'LABEL' }, { title: 'CREATED' }, { title: 'SCRYPT' }],
        slots.map(({ id, label, created, cost }) => [
          id.slice(0, 8),
          label,
          formatLocalTime(created),
          `N=${cost.cost} r=${cost.blockSize} p=${cost.parallelism}`,
        ]),
      ),
    )
    for (const { file, error } of unreadable) session.complain(`${file} cannot be read: ${error.message}`)
    const isWhole = unreadable.length === 0
    return this.finish({
      schema: 'virtvault/key-list/1',
      ok: isWhole,
      status: isWhole ? 'success' : 'partial',
      exit: isWhole ? EXIT.ok : EXIT.damage,
      store_id: ring.storeId,
      slots: slots.map(slotDocument),
      unreadable: unreadable.map(({ file, error }) => ({ file, message: error.message })),
    })
  }
}
