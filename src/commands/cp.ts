import { resolve } from 'node:path'

import * as Args from '@oclif/core/args'
import * as Flags from '@oclif/core/flags'

import { BackupError } from '../base/errors.js'
import { backingFlag, parseBacking } from '../cli/backing-flag.js'
import { BaseCommand, type Envelope } from '../cli/base-command.js'
import { EXIT, exitOfError } from '../cli/exit-codes.js'
import { plural } from '../cli/output.js'
import { printable } from '../cli/printable.js'
import { findPoint } from '../cli/points.js'
import type { CopyReport, CopyTally } from '../files/copy-tree.js'
import { parseGuestPath } from '../model/guest-path.js'
import { formatSize } from '../model/size.js'
import { formatPointRef } from '../model/point-ref.js'

export default class CpCommand extends BaseCommand {
  static override description =
    'Copies files and whole directories out of a recovery point: into DEST where that is a directory, else to that name; ' +
    '- prints one file. Nothing is written outside of DEST: links are copied as links and never followed, devices, pipes ' +
    'and sockets are left out and named. What is copied belongs to this user alone, unless --preserve says otherwise. ' +
    'Extended attributes, ACLs and hard links (each name becomes a file) are not kept.'
  static override examples = [
    { command: '<%= config.bin %> cp web01@latest:vda/etc/fstab .', description: 'One file' },
    {
      command: '<%= config.bin %> cp web01@~1:vda/etc/nginx /srv/restored',
      description: 'A directory and all below it',
    },
    { command: '<%= config.bin %> cp web01@latest:vdb/dump.sql - | psql', description: 'To a program' },
    {
      command: '<%= config.bin %> cp web01@latest/srv/www --volume vg0/srv --preserve /srv',
      description: 'From a logical volume, with owners and permissions, as root',
    },
  ]
  static override args = {
    paths: Args.string({
      description: '[DOMAIN]@REF[:DISK]/PATH, of one recovery point and disk, and at last DEST',
      required: true,
      multiple: true,
      ignoreStdin: true,
    }),
  }
  static override flags = {
    preserve: Flags.boolean({ summary: 'keep permissions; as root also owner, group and set-id bits' }),
    force: Flags.boolean({ char: 'f', summary: 'replace files that are there' }),
    partition: Flags.integer({
      summary: 'the file system of this partition',
      helpValue: 'N',
      exclusive: ['volume'],
      min: 1,
    }),
    volume: Flags.string({ summary: 'the file system of this logical volume', helpValue: 'VG/LV' }),
    isolate: Flags.boolean({ summary: 'read it in the virtual machine of libguestfs, whatever it is' }),
    backing: backingFlag,
  }

  override async run(): Promise<Envelope> {
    const { args, flags } = await this.parse(CpCommand)
    await using session = await this.session(flags)
    const destination = args.paths.at(-1)
    const texts = args.paths.slice(0, -1)
    const [first] = texts
    if (first === undefined || destination === undefined) {
      throw new BackupError('E_USAGE', 'cp needs what to copy and where to', { hints: ['POINT:DISK/PATH... DEST'] })
    }
    if (destination === '-' && (texts.length > 1 || session.settings.json)) {
      throw new BackupError('E_USAGE', 'only one file goes to the standard output, and no document beside it')
    }
    const { openStore } = await import('../cli/wire.js')
    const { GuestDisks } = await import('../cli/files-wire.js')
    const { walk } = await import('../cli/walk.js')
    await using store = await openStore(session)
    const asked = await Promise.all(texts.map(text => findPoint(store, text)))
    const places = new Set(asked.map(({ noted, ref }) => `${noted.point.id} ${ref.disk ?? ''}`))
    const { noted, ref } = asked[0] ?? (await findPoint(store, first))
    if (places.size > 1) throw new BackupError('E_USAGE', 'one cp copies from one disk of one recovery point')
    const paths = asked.map(each => {
      if (each.ref.path !== undefined) return parseGuestPath(each.ref.path)
      throw new BackupError('E_USAGE', `${formatPointRef(each.ref)} has no path`, {
        hints: [`all of it is:   ${formatPointRef(each.ref)}/`],
      })
    })
    const { point } = noted
    const { partition, volume, isolate, preserve, force } = flags
    const wish = { point, disk: ref.disk, partition, volume, isolate, backing: parseBacking(flags.backing) }
    await using disks = await GuestDisks.serve(session, store, wish)
    const { directory: root } = await disks.mount(wish)

    const left: CopyReport[] = []
    let tally: CopyTally | undefined
    const order =
      destination === '-'
        ? ({ kind: 'print', root, path: paths[0] ?? [] } as const)
        : ({ kind: 'copy', root, paths, destination: resolve(destination), options: { preserve, force } } as const)
    for await (const news of walk(order, session.signal)) {
      if (news.kind === 'skipped' || news.kind === 'failed') left.push(news)
      if (news.kind === 'skipped') session.complain(`${news.path}: left out, it is a device, pipe or socket`)
      if (news.kind === 'failed') session.complain(`${news.path}: ${news.message}  [${news.code}]`)
      if (news.kind === 'done') tally = news.tally
    }
    if (tally !== undefined) session.print([summary(tally)])
    return this.finish({
      schema: 'virtvault/cp/1',
      ...outcome(tally, left, disks.failedReads),
      domain: point.domain.name,
      uuid: point.domain.uuid,
      point: point.id,
      failed_reads: disks.failedReads,
      totals: tally ?? null,
      left_out: left.map(report => ({ ...report })),
    })
  }
}

/** Success is all that was asked for; nothing at all is a failure with the code of what was in the way. */
function outcome(tally: CopyTally | undefined, left: readonly CopyReport[], failedReads: number) {
  if (failedReads > 0) return { ok: false, status: 'partial', exit: EXIT.damage } as const
  if (left.length === 0) return { ok: true, status: 'success', exit: EXIT.ok } as const
  const isNothing = tally !== undefined && tally.files + tally.directories + tally.links === 0
  const [first] = left
  if (!isNothing || first === undefined) return { ok: false, status: 'partial', exit: EXIT.partial } as const
  const exit = first.kind === 'failed' ? exitOfError(first.code) : EXIT.failed
  return { ok: false, status: 'failed', exit } as const
}

function summary({ files, directories, links, skipped, failed, bytes }: CopyTally): string {
  const parts = [
    plural(files, 'file'),
    ...(directories === 0 ? [] : [directories === 1 ? '1 directory' : `${directories} directories`]),
    ...(links === 0 ? [] : [plural(links, 'link')]),
    formatSize(bytes),
    ...(skipped === 0 ? [] : [`${skipped} left out`]),
    ...(failed === 0 ? [] : [`${failed} failed`]),
  ]
  return printable(`Copied ${parts.join(', ')}.`)
}
