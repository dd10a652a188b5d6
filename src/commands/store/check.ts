import { BaseCommand, type Envelope } from '../../cli/base-command.js'
import { EXIT } from '../../cli/exit-codes.js'
import { plural } from '../../cli/output.js'
import type { IndexReport } from '../../store/index-check.js'

export default class StoreCheckCommand extends BaseCommand {
  static override description =
    'Compares every entry of the index with the packs, and the list of every pack with the index. Reads no payload: that ' +
    'what is stored is whole is for verify to say. An index that differs makes the exit code 7; nothing is lost by it, ' +
    'and `store rebuild-index` makes a new one. A backup or gc meanwhile can show as a difference.'
  static override examples = [
    { command: '<%= config.bin %> store check -t /srv/backup', description: 'Compare index and packs' },
    { command: '<%= config.bin %> store check --json', description: 'All figures, for programs' },
  ]

  override async run(): Promise<Envelope> {
    const { flags } = await this.parse(StoreCheckCommand)
    await using session = await this.session(flags)
    const { checkIndexOf, openWholeStore } = await import('../../cli/wire.js')
    await using store = await openWholeStore(session)

    const report = await checkIndexOf(store, session.signal)

    const faults = faultsOf(report)
    session.print([
      `${plural(report.packs, 'pack')}, ${report.openPacks} of them not sealed; index entries: ${report.entries}.`,
    ])
    for (const fault of faults) session.complain(fault)
    if (faults.length === 0) session.print(['The index says what the packs say.'])
    else session.note('Make it anew: virtvault store rebuild-index')
    return this.finish({
      schema: 'virtvault/store-check/1',
      ok: faults.length === 0,
      status: faults.length === 0 ? 'success' : 'failed',
      exit: faults.length === 0 ? EXIT.ok : EXIT.damage,
      store: store.location,
      packs: report.packs,
      open_packs: report.openPacks,
      entries: report.entries,
      unknown_packs: report.unknownPacks,
      stale_packs: report.stalePacks,
      bad_entries: report.badEntries,
      missing_entries: report.missingEntries,
    })
  }
}

function faultsOf(report: IndexReport): string[] {
  const counted: readonly (readonly [count: number, what: string])[] = [
    [report.unknownPacks, 'packs are not in the index'],
    [report.stalePacks, 'packs in the index are gone or have another size'],
    [report.badEntries, 'entries are damaged or name no place in a pack'],
    [report.missingEntries, 'records of packs are not in the index'],
  ]
  return counted.filter(([count]) => count > 0).map(([count, what]) => `${count} ${what}`)
}
