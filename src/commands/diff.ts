import * as Args from '@oclif/core/args'
import * as Flags from '@oclif/core/flags'

import { BackupError } from '../base/errors.js'
import { BaseCommand, type Envelope } from '../cli/base-command.js'
import { EXIT } from '../cli/exit-codes.js'
import { plural, renderTable } from '../cli/output.js'
import { findPoint } from '../cli/points.js'
import { printable } from '../cli/printable.js'
import { changedLines } from '../model/line-diff.js'
import { shortId } from '../model/point-ref.js'
import { formatSize } from '../model/size.js'

export default class DiffCommand extends BaseCommand {
  static override description =
    'Says how two recovery points differ: bytes per disk, and the extents with --json. Takes time for the difference, ' +
    'not for the disks.'
  static override examples = [
    { command: '<%= config.bin %> diff web01@~1 web01@latest', description: 'What the last backup changed' },
    { command: '<%= config.bin %> diff @3f9c2a1 @91be7d0 --xml', description: 'Also changes of the domain’s XML' },
  ]
  static override args = {
    a: Args.string({ description: '[DOMAIN]@REF', required: true, ignoreStdin: true }),
    b: Args.string({ description: '[DOMAIN]@REF', required: true, ignoreStdin: true }),
  }
  static override flags = {
    disk: Flags.string({ summary: 'only this disk', helpValue: 'vda' }),
    xml: Flags.boolean({ summary: 'also changes of the domain’s XML' }),
  }

  override async run(): Promise<Envelope> {
    const { args, flags } = await this.parse(DiffCommand)
    await using session = await this.session(flags)
    const { diff, leaseForReading, openWholeStore } = await import('../cli/wire.js')
    await using store = await openWholeStore(session)
    await using _lease = await leaseForReading(store)
    const { point: a } = (await findPoint(store, args.a)).noted
    const { point: b } = (await findPoint(store, args.b)).noted
    const { disk } = flags
    if (disk !== undefined && ![...a.disks, ...b.disks].some(({ target }) => target === disk)) {
      throw new BackupError('E_NOT_FOUND', `neither point has a disk ${disk}`)
    }
    const disks = await diff.diffPoints(store, { a, b, disk }, session.signal)
    const [xmlA = '', xmlB = ''] = flags.xml ? [await diff.xmlOf(store, a), await diff.xmlOf(store, b)] : []
    const xml = changedLines(xmlA, xmlB)

    session.print(
      renderTable(
        [{ title: 'DISK' }, { title: 'SIZE', align: 'right' }, { title: 'DIFFERENT', align: 'right' }, { title: '' }],
        disks.map(one => [
          one.target,
          formatSize(one.sizeB ?? one.sizeA ?? 0),
          formatSize(one.differentBytes),
          one.kind === 'compared' ? plural(one.extentCount, 'extent') : one.kind,
        ]),
      ),
    )
    session.print(xml.map(({ sign, text }) => `${sign} ${printable(text)}`))
    return this.finish({
      schema: 'virtvault/diff/1',
      ok: true,
      status: 'success',
      exit: EXIT.ok,
      a: { id: a.id, name: `${a.domain.name}@${shortId(a.id)}` },
      b: { id: b.id, name: `${b.domain.name}@${shortId(b.id)}` },
      disks: disks.map(one => ({
        target: one.target,
        kind: one.kind,
        size_a: one.sizeA,
        size_b: one.sizeB,
        different_bytes: one.differentBytes,
        extent_count: one.extentCount,
        extents: one.extents,
      })),
      xml: flags.xml ? xml.map(({ sign, text }) => `${sign}${text}`) : undefined,
    })
  }
}
