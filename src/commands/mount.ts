import * as Args from '@oclif/core/args'
import * as Flags from '@oclif/core/flags'

import { BackupError } from '../base/errors.js'
import { backingFlag, parseBacking } from '../cli/backing-flag.js'
import { BaseCommand, type Envelope } from '../cli/base-command.js'
import { EXIT } from '../cli/exit-codes.js'
import { inSeconds } from '../cli/output.js'
import { findPoint } from '../cli/points.js'
import { printable } from '../cli/printable.js'
import { writeErr } from '../cli/streams.js'

export default class MountCommand extends BaseCommand {
  static override description =
    'Mounts a file system of a recovery point, read-only, through FUSE, until Ctrl-C or virtvault umount. What is ' +
    'mounted is for this user alone, devices and set-id programs are off, and it is safe from gc meanwhile. --raw gives ' +
    'the whole disk as a file. Links in it are the guest’s and may point to files of this host: copy with virtvault cp.'
  static override examples = [
    { command: '<%= config.bin %> mount web01@latest:vda /mnt', description: 'The only file system of a disk' },
    { command: '<%= config.bin %> mount web01@~1 /mnt --volume vg0/home', description: 'A logical volume' },
    { command: '<%= config.bin %> mount web01@latest:vda /mnt --raw', description: 'The disk as /mnt/vda' },
  ]
  static override args = {
    point: Args.string({ description: '[DOMAIN]@REF[:DISK]', required: true, ignoreStdin: true }),
    directory: Args.string({ description: 'an empty directory', required: true, ignoreStdin: true }),
  }
  static override flags = {
    partition: Flags.integer({
      summary: 'the file system of this partition',
      helpValue: 'N',
      exclusive: ['volume'],
      min: 1,
    }),
    volume: Flags.string({ summary: 'the file system of this logical volume', helpValue: 'VG/LV' }),
    raw: Flags.boolean({ summary: 'the disk as a file', exclusive: ['partition', 'volume', 'isolate'] }),
    isolate: Flags.boolean({ summary: 'read it in the virtual machine of libguestfs, whatever it is' }),
    backing: backingFlag,
  }

  override async run(): Promise<Envelope> {
    const { args, flags } = await this.parse(MountCommand)
    await using session = await this.session(flags)
    const { openStore } = await import('../cli/wire.js')
    const { GuestDisks, mountPoint } = await import('../cli/files-wire.js')
    await using store = await openStore(session)
    const { noted, ref } = await findPoint(store, args.point)
    if (ref.path !== undefined) {
      throw new BackupError('E_USAGE', 'mount mounts whole file systems', { hints: [`leave out ${ref.path}`] })
    }
    const { point } = noted
    const { partition, volume, isolate } = flags
    const wish = { point, disk: ref.disk, partition, volume, isolate, backing: parseBacking(flags.backing) }
    const directory = await mountPoint(args.directory)
    const started = session.clock.monotonic()
    await using disks = await GuestDisks.serve(session, store, wish)
    const { ended } = flags.raw ? await disks.mountRaw(directory) : await disks.mount(wish, directory)
    await disks.noteMount(directory)
    if (session.settings.json) writeErr([JSON.stringify({ event: 'mounted', point: point.id, directory })])
    session.print([printable(`Mounted read-only at ${directory}, until Ctrl-C or: virtvault umount ${directory}`)])

    await Promise.race([ended, aborted(session.signal)])
    const isSound = disks.failedReads === 0
    return this.finish({
      schema: 'virtvault/mount/1',
      ok: isSound,
      status: isSound ? 'success' : 'partial',
      exit: isSound ? EXIT.ok : EXIT.damage,
      domain: point.domain.name,
      uuid: point.domain.uuid,
      point: point.id,
      directory,
      seconds: inSeconds(session.clock.monotonic() - started),
      failed_reads: disks.failedReads,
    })
  }
}

/** Ctrl-C is how a mount ends. */
async function aborted(signal: AbortSignal): Promise<void> {
  await new Promise<void>(resolve => {
    if (signal.aborted) resolve()
    signal.addEventListener('abort', () => resolve(), { once: true })
  })
}
