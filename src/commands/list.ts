import * as Args from '@oclif/core/args'
import * as Flags from '@oclif/core/flags'

import { BaseCommand, type Envelope } from '../cli/base-command.js'
import { EXIT } from '../cli/exit-codes.js'
import { formatLocalTime, plural, renderTable } from '../cli/output.js'
import { type NotedPoint, pointDocument, shortMode, sumOf, verifiedText } from '../cli/point-view.js'
import { formatAge, parseDuration } from '../model/duration.js'
import { shortId } from '../model/point-ref.js'
import type { DomainRef, RecoveryPoint } from '../model/recovery-point.js'
import { selectDomains } from '../model/selector.js'
import { formatSize } from '../model/size.js'
import type { StorePort } from '../store/store-types.js'

export default class ListCommand extends BaseCommand {
  static override description =
    'Shows what the store holds, newest last. Without a selector, all domains. Points that cannot be read are named ' +
    'and make the exit code 7: a list is never shorter than it claims.'
  static override examples = [
    { command: '<%= config.bin %> list -t /srv/backup', description: 'All points of a store' },
    { command: '<%= config.bin %> list web01 --since 7d --disks', description: 'One domain, last week, disk by disk' },
  ]
  static override args = {
    selector: Args.string({
      description: 'domains: a name, a UUID, web*, r:REGEX, !x to leave out',
      multiple: true,
      ignoreStdin: true,
    }),
  }
  static override flags = {
    since: Flags.string({ summary: 'only points younger than this', helpValue: '7d' }),
    disks: Flags.boolean({ summary: 'one line per disk' }),
    long: Flags.boolean({ char: 'l', summary: 'full ids, consistency, checkpoint and comment' }),
  }

  override async run(): Promise<Envelope> {
    const { args, flags } = await this.parse(ListCommand)
    const youngerThan = flags.since === undefined ? Infinity : parseDuration(flags.since)
    await using session = await this.session(flags)
    const { openStore } = await import('../cli/wire.js')
    await using store = await openStore(session)

    const now = session.clock.now()
    const unreadable = await store.points.unreadable()
    const found = (await choosePoints(store, args.selector ?? [])).filter(point => now - point.time <= youngerThan)
    const points = await Promise.all(found.map(async point => ({ point, notes: await store.points.notes(point) })))

    session.print(flags.disks ? diskTable(points) : pointTable(points, { now, isLong: flags.long }))
    session.print([`${plural(points.length, 'point')} on ${store.location}`])
    for (const { file, error } of unreadable) session.complain(`${file} cannot be read: ${error.message}`)
    return this.finish({
      schema: 'virtvault/list/1',
      ok: unreadable.length === 0,
      status: unreadable.length === 0 ? 'success' : 'partial',
      exit: unreadable.length === 0 ? EXIT.ok : EXIT.damage,
      store: store.location,
      points: points.map(pointDocument),
      unreadable: unreadable.map(({ file, error }) => ({ file, message: error.message })),
    })
  }
}

async function choosePoints(store: StorePort, selectors: readonly string[]): Promise<RecoveryPoint[]> {
  const all = await store.points.list()
  if (selectors.length === 0) return all
  // Every name that a domain ever had in this store finds it.
  const domains = new Map<string, DomainRef>(all.map(({ domain }) => [`${domain.uuid} ${domain.name}`, domain]))
  const selected = selectDomains([...domains.values()], { selectors }, new Map())
  const uuids = new Set(selected.domains.map(domain => domain.uuid))
  return all.filter(point => uuids.has(point.domain.uuid))
}

function pointTable(points: readonly NotedPoint[], view: { readonly now: number; readonly isLong: boolean }): string[] {
  const columns = [
    { title: 'DOMAIN' },
    { title: 'POINT' },
    { title: 'TIME' },
    { title: 'AGE', align: 'right' },
    { title: 'MODE' },
    { title: 'READ', align: 'right' },
    { title: 'STORED', align: 'right' },
    { title: 'VERIFIED' },
    { title: 'TAGS' },
    ...(view.isLong ? [{ title: 'CONSISTENCY' }, { title: 'CHECKPOINT' }, { title: 'COMMENT' }] : []),
  ] as const
  const rows = points.map(({ point, notes }) => [
    point.domain.name,
    `@${view.isLong ? point.id : shortId(point.id)}`,
    formatLocalTime(point.time),
    formatAge(view.now - point.time),
    shortMode(point),
    formatSize(sumOf(point, 'readBytes')),
    formatSize(sumOf(point, 'storedBytes')),
    verifiedText(notes),
    [...notes.tags, ...(notes.hold === undefined ? [] : ['(held)'])].join(', '),
    ...(view.isLong ? [point.consistency.kind, point.checkpoint?.name ?? '-', point.comment ?? ''] : []),
  ])
  return renderTable(columns, rows)
}

function diskTable(points: readonly NotedPoint[]): string[] {
  const columns = [
    { title: 'DOMAIN' },
    { title: 'POINT' },
    { title: 'DISK' },
    { title: 'SIZE', align: 'right' },
    { title: 'MODE' },
    { title: 'DIRTY', align: 'right' },
    { title: 'READ', align: 'right' },
    { title: 'NEW', align: 'right' },
    { title: 'STORED', align: 'right' },
  ] as const
  const rows = points.flatMap(({ point }) =>
    point.disks.map(({ target, size, mode, statistics }) => [
      point.domain.name,
      `@${shortId(point.id)}`,
      target,
      formatSize(size),
      mode === 'incremental' ? 'inc' : 'full',
      formatSize(statistics.dirtyBytes),
      formatSize(statistics.readBytes),
      formatSize(statistics.newBytes),
      formatSize(statistics.storedBytes),
    ]),
  )
  return renderTable(columns, rows)
}
