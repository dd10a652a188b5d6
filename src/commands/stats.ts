import * as Flags from '@oclif/core/flags'

import { BaseCommand, type Envelope } from '../cli/base-command.js'
import { STORED_DOMAINS, STORED_GROUPS } from '../cli/domain-flags.js'
import { EXIT } from '../cli/exit-codes.js'
import { plural, renderTable } from '../cli/output.js'
import { selectStored } from '../cli/points.js'
import type { RecoveryPoint } from '../model/recovery-point.js'
import { formatSize } from '../model/size.js'
import { groupPoints } from '../model/usage-groups.js'

export default class StatsCommand extends BaseCommand {
  static override description =
    'Says what the store holds and for whom: how large the disks are, and what deleting a domain, a group or a point ' +
    'would free, exactly. What several share belongs to none of them alone.'
  static override examples = [
    { command: '<%= config.bin %> stats', description: 'By domain' },
    { command: '<%= config.bin %> stats web01 --by point', description: 'What each point of one domain holds alone' },
  ]
  static override args = {
    selector: STORED_DOMAINS,
  }
  static override flags = {
    group: STORED_GROUPS,
    by: Flags.option({
      summary: 'what to account for',
      options: ['domain', 'group', 'point'] as const,
      default: 'domain',
    })(),
  }

  override async run(): Promise<Envelope> {
    const { args, flags } = await this.parse(StatsCommand)
    await using session = await this.session(flags)
    const { leaseForReading, openWholeStore, retentionRules } = await import('../cli/wire.js')
    await using store = await openWholeStore(session)
    await using _lease = await leaseForReading(store)
    const points = await store.points.list()
    const { policyOf, groups } = await retentionRules(session, undefined)
    const meant = selectStored(points, { selectors: args.selector ?? [], groups: flags.group ?? [] }, groups)
    const all = groupPoints(points, flags.by, domain => policyOf(domain).group)
    const roots = all.flatMap((group, label) => group.points.map(point => ({ point, label })))
    const usage = await store.usage(roots, session.signal)

    const shown = all.flatMap((group, label) => {
      const own = group.points.filter(({ domain }) => meant.has(domain.uuid))
      if (own.length === 0) return []
      const alone = usage.alone.get(label) ?? { storedBytes: 0, plainBytes: 0 }
      return [{ name: group.name, points: own.length, logicalBytes: logicalBytes(own), ...alone }]
    })
    const factor = usage.storedBytes === 0 ? 1 : usage.referencedBytes / usage.storedBytes
    session.print(
      renderTable(
        [
          { title: flags.by.toUpperCase() },
          { title: 'POINTS', align: 'right' },
          { title: 'DISKS', align: 'right' },
          { title: 'FREED IF DELETED', align: 'right' },
        ],
        shown.map(row => [row.name, String(row.points), formatSize(row.logicalBytes), formatSize(row.storedBytes)]),
      ),
    )
    session.print([
      `${plural(points.length, 'point')} hold ${formatSize(usage.referencedBytes)} of data, ` +
        `${formatSize(usage.plainBytes)} of it different, ${formatSize(usage.storedBytes)} stored (x${factor.toFixed(1)})`,
      `${formatSize(usage.packBytes)} in packs, garbage included`,
      ...(usage.missing > 0 ? [`! ${usage.missing} records are missing: run verify`] : []),
    ])
    return this.finish({
      schema: 'virtvault/stats/1',
      ok: usage.missing === 0,
      status: usage.missing === 0 ? 'success' : 'partial',
      exit: usage.missing === 0 ? EXIT.ok : EXIT.damage,
      by: flags.by,
      rows: shown.map(row => ({
        name: row.name,
        points: row.points,
        virtual_bytes: row.logicalBytes,
        freed_if_deleted_bytes: row.storedBytes,
        alone_plain_bytes: row.plainBytes,
      })),
      totals: {
        points: points.length,
        data_bytes: usage.referencedBytes,
        unique_bytes: usage.plainBytes,
        stored_bytes: usage.storedBytes,
        pack_bytes: usage.packBytes,
        dedup_factor: factor,
        missing_records: usage.missing,
      },
    })
  }
}

/** Virtual sizes of all disks of all points. */
function logicalBytes(points: readonly RecoveryPoint[]): number {
  return points.reduce((sum, { disks }) => sum + disks.reduce((own, { size }) => own + size, 0), 0)
}
