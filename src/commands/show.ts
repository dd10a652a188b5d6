import * as Args from '@oclif/core/args'

import { BaseCommand, type Envelope } from '../cli/base-command.js'
import { EXIT } from '../cli/exit-codes.js'
import { formatLocalTime, renderRows, renderTable } from '../cli/output.js'
import { findPoint } from '../cli/points.js'
import { leftOutLines, type NotedPoint, pointDocument, sumOf, verifiedText } from '../cli/point-view.js'
import { formatDuration } from '../model/duration.js'
import { formatSize } from '../model/size.js'

export default class ShowCommand extends BaseCommand {
  static override description =
    'Shows the disks, sizes, statistics, warnings and files of one recovery point, and what was changed about it since.'
  static override examples = [
    { command: '<%= config.bin %> show web01@latest', description: 'The newest point of a domain' },
    { command: '<%= config.bin %> show @3f9c2a1 --json', description: 'One point by its id, for programs' },
  ]
  static override args = {
    point: Args.string({
      description: '[DOMAIN]@REF, REF = latest, ~N, an id, a date or a tag',
      required: true,
      ignoreStdin: true,
    }),
  }

  override async run(): Promise<Envelope> {
    const { args, flags } = await this.parse(ShowCommand)
    await using session = await this.session(flags)
    const { openStore } = await import('../cli/wire.js')
    await using store = await openStore(session)

    const { noted } = await findPoint(store, args.point)

    session.print(describe(noted))
    return this.finish({
      schema: 'virtvault/show/1',
      ok: true,
      status: 'success',
      exit: EXIT.ok,
      store: store.location,
      point: pointDocument(noted),
    })
  }
}

function describe({ point, notes }: NotedPoint): string[] {
  const facts: (readonly [name: string, value: string | undefined])[] = [
    ['point', `@${point.id}`],
    ['domain', `${point.domain.name}  ${point.domain.uuid}`],
    ['time', `${formatLocalTime(point.time)}  (took ${formatDuration(point.durationMs)})`],
    ['mode', point.mode],
    ['based on', point.parent === undefined ? undefined : `@${point.parent}`],
    ['consistency', consistencyText(point)],
    ['read', formatSize(sumOf(point, 'readBytes'))],
    ['new', formatSize(sumOf(point, 'newBytes'))],
    ['stored', formatSize(sumOf(point, 'storedBytes'))],
    ['checkpoint', point.checkpoint?.name],
    ['tags', notes.tags.length === 0 ? undefined : notes.tags.join(', ')],
    ['comment', point.comment],
    ['held', holdText(notes.hold)],
    ['verified', notes.verified === undefined ? undefined : verifiedText(notes)],
    ['files', point.blobs.map(blob => blob.name).join(', ') || undefined],
    ['made by', `virtvault ${point.toolVersion}`],
  ]
  const shown = facts.flatMap(([name, value]) => (value === undefined ? [] : [[name, value]]))
  const disks = renderTable(
    [
      { title: 'DISK' },
      { title: 'SIZE', align: 'right' },
      { title: 'MODE' },
      { title: 'FORMAT' },
      { title: 'READ', align: 'right' },
      { title: 'NEW', align: 'right' },
      { title: 'STORED', align: 'right' },
      { title: 'SOURCE' },
    ],
    point.disks.map(disk => [
      disk.target,
      formatSize(disk.size),
      disk.mode === 'incremental' ? 'inc' : 'full',
      disk.source.format,
      formatSize(disk.statistics.readBytes),
      formatSize(disk.statistics.newBytes),
      formatSize(disk.statistics.storedBytes),
      disk.source.path,
    ]),
  )
  const lines = renderRows(shown)
  return [
    ...lines,
    '',
    ...disks,
    ...leftOutLines(point),
    ...point.skipped.map(({ target, reason }) => `skipped ${target}: ${reason}`),
    ...point.warnings.map(({ code, message }) => `! ${code} ${message}`),
  ]
}

function consistencyText(point: NotedPoint['point']): string {
  const { kind, frozenMs, reason } = point.consistency
  const frozen = frozenMs === undefined ? '' : `, frozen ${formatDuration(frozenMs)}`
  return `${kind}${frozen}${reason === undefined ? '' : ` (${reason})`}`
}

function holdText(hold: NotedPoint['notes']['hold']): string | undefined {
  if (hold === undefined) return undefined
  const until = hold.until === undefined ? 'until released' : `until ${formatLocalTime(hold.until)}`
  return hold.reason === undefined ? until : `${until}: ${hold.reason}`
}
