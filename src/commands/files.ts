import * as Args from '@oclif/core/args'
import * as Flags from '@oclif/core/flags'

import { backingFlag, parseBacking } from '../cli/backing-flag.js'
import { BaseCommand, type Envelope } from '../cli/base-command.js'
import { EXIT } from '../cli/exit-codes.js'
import { entryDocument, entryLines, fileSystemDocument, fileSystemLines } from '../cli/files-view.js'
import { findPoint } from '../cli/points.js'
import type { GuestEntry } from '../files/guest-entry.js'
import { parseGuestPath } from '../model/guest-path.js'

export default class FilesCommand extends BaseCommand {
  static override description =
    'Without a path: the file systems on the disks of a recovery point. With one: a directory, or one file. Nothing is ' +
    'restored; only what is looked at is read. ext2/3/4 and NTFS are read by programs in user space (fuse2fs, ntfs-3g), ' +
    'everything else, LVM and RAID included, by the virtual machine of libguestfs (guestmount). The kernel of this host ' +
    'never mounts what a guest wrote.'
  static override examples = [
    { command: '<%= config.bin %> files web01@latest', description: 'What is on its disks' },
    {
      command: '<%= config.bin %> files web01@latest:vda/etc --long',
      description: 'A directory of the only file system',
    },
    {
      command: '<%= config.bin %> files web01@~1:vda/var/log --partition 3',
      description: 'Where a disk has several',
    },
    { command: '<%= config.bin %> files web01@latest/home --volume vg0/home', description: 'On a logical volume' },
  ]
  static override args = {
    point: Args.string({ description: '[DOMAIN]@REF[:DISK][/PATH]', required: true, ignoreStdin: true }),
  }
  static override flags = {
    long: Flags.boolean({ char: 'l', summary: 'permissions, owner, size and time too' }),
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
    const { args, flags } = await this.parse(FilesCommand)
    await using session = await this.session(flags)
    const { openStore } = await import('../cli/wire.js')
    const { GuestDisks } = await import('../cli/files-wire.js')
    const { walk } = await import('../cli/walk.js')
    await using store = await openStore(session)
    const { noted, ref } = await findPoint(store, args.point)
    const { point } = noted
    const { partition, volume, isolate } = flags
    const wish = { point, disk: ref.disk, partition, volume, isolate, backing: parseBacking(flags.backing) }
    const about = { domain: point.domain.name, uuid: point.domain.uuid, point: point.id }
    await using disks = await GuestDisks.serve(session, store, wish)

    if (ref.path === undefined) {
      const found = await disks.fileSystems()
      session.print(fileSystemLines(found))
      return this.finish({ ...sound(disks.failedReads), ...about, file_systems: found.map(fileSystemDocument) })
    }
    const path = parseGuestPath(ref.path)
    const { directory: root } = await disks.mount(wish)
    const entries: GuestEntry[] = []
    for await (const news of walk({ kind: 'list', root, path }, session.signal)) {
      if (news.kind === 'entry') entries.push(news.entry)
    }
    session.print(entryLines(entries, flags.long))
    return this.finish({ ...sound(disks.failedReads), ...about, path: ref.path, entries: entries.map(entryDocument) })
  }
}

/** What was read from damaged chunks may be incomplete, whatever the reader of the file system made of it. */
function sound(failedReads: number): Envelope & { readonly failed_reads: number } {
  const isSound = failedReads === 0
  return {
    schema: 'virtvault/files/1',
    ok: isSound,
    status: isSound ? 'success' : 'partial',
    exit: isSound ? EXIT.ok : EXIT.damage,
    failed_reads: failedReads,
  }
}
