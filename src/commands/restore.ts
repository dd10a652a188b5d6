import * as Args from '@oclif/core/args'
import * as Flags from '@oclif/core/flags'

import { backingFlag } from '../cli/backing-flag.js'
import { BaseCommand, type Envelope } from '../cli/base-command.js'
import type { InstantWish } from '../cli/instant-wire.js'
import { PRIORITY_FLAGS } from '../cli/priority.js'
import type { RestoreState } from '../format/restore-state.js'
import type { Resuming } from '../cli/restore-run.js'
import { restoreRunDocument, restoreRunSummary } from '../cli/restore-view.js'
import {
  inPlaceWishes,
  type InPlaceWishes,
  type RestoreFlags,
  type RestoreWishes,
  restoreWishes,
  restoreWords,
} from '../cli/restore-wishes.js'
import { rollbackDocument, rollbackSummary } from '../cli/rollback-view.js'
import type { GlobalFlagValues } from '../cli/settings.js'
import { parseSize } from '../model/size.js'

export default class RestoreCommand extends BaseCommand {
  static override description =
    'Writes the disks of recovery points as images, and the domain’s XML, UEFI variables and TPM state beside them. All ' +
    'or nothing: images get their names when every disk is complete and sound. With --define the domain is made known ' +
    'to libvirt with its new disks, with --start it runs; one that exists is never changed, but for --in-place, which ' +
    'writes back into the disks of a shut-off domain what differs from the point. Of several points each gets a ' +
    'directory of its own. A restore to plain images that is interrupted or killed keeps what it has written under ' +
    'hidden names, and --resume goes on with it: what is there is compared with the point, and only what is missing or ' +
    'wrong is written. With a URI of another machine, through ssh, images of a domain that is defined are made over there. Any other one leaves nothing behind, but for --instant, which can be resumed as well.'
  static override examples = [
    { command: '<%= config.bin %> restore web01@latest --to /srv/restored', description: 'All disks as qcow2 images' },
    {
      command: '<%= config.bin %> restore web01@latest --to-pool default --start --name web01-test --network none',
      description: 'A copy that runs beside the original, without a network',
    },
    {
      command: '<%= config.bin %> restore @3f9c2a1:vda --to . --format raw',
      description: 'One disk of one point, raw and sparse',
    },
    {
      command: '<%= config.bin %> restore web01@latest --to /srv/archive --compression zstd',
      description: 'As small images, to be kept or sent away',
    },
    {
      command: '<%= config.bin %> restore @3f9c2a1 --to-device vda=/dev/vg/web01 --to-device vdb=/dev/vg/data',
      description: 'Onto logical volumes',
    },
    {
      command: '<%= config.bin %> restore --all --to /var/lib/libvirt/images --define -t /mnt/backup',
      description: 'On a new host: the newest point of every domain in the store',
    },
    {
      command: '<%= config.bin %> restore web01@latest --instant --to /var/lib/libvirt/images',
      description: 'Running again in seconds; the data follows',
    },
    {
      command:
        '<%= config.bin %> restore web01@latest --to /var/lib/libvirt/images --start -c qemu+ssh://root@hv2/system',
      description: 'On another machine, through ssh',
    },
    {
      command: '<%= config.bin %> restore web01@latest --to /srv/restored --backing vda=/srv/images/base.qcow2',
      description: 'Of a point that leaves out a shared image: an overlay on that image',
    },
    { command: '<%= config.bin %> restore web01@~1 --in-place', description: 'Roll a shut-off domain back' },
    { command: '<%= config.bin %> restore web01@~1 --to /srv/restored -n', description: 'Only say what would be done' },
  ]
  static override args = {
    point: Args.string({
      description: '[DOMAIN]@REF[:DISK], REF = latest, ~N, an id, a date or a tag',
      multiple: true,
      ignoreStdin: true,
    }),
  }
  static override flags = {
    all: Flags.boolean({ summary: 'the newest point of every domain in the store' }),
    to: Flags.string({ summary: 'directory for the images; made where it is absent', helpValue: 'DIR' }),
    'to-pool': Flags.string({ summary: 'storage pool for the images', helpValue: 'POOL' }),
    'to-device': Flags.string({
      summary: 'block device for a disk (repeatable)',
      helpValue: '[vda=]/dev/X',
      multiple: true,
      multipleNonGreedy: true,
    }),
    'to-nbd': Flags.string({
      summary: 'NBD export for a disk, overwritten (repeatable)',
      helpValue: '[vda=]URI',
      multiple: true,
      multipleNonGreedy: true,
    }),
    stdout: Flags.boolean({ summary: 'one disk, raw, to the standard output' }),
    disk: Flags.string({
      summary: 'only this disk (repeatable)',
      helpValue: 'vda',
      multiple: true,
      multipleNonGreedy: true,
    }),
    format: Flags.option({ summary: 'of the images', options: ['qcow2', 'raw'] as const, default: 'qcow2' })(),
    sparse: Flags.boolean({ summary: 'images take room for data alone (default)', exclusive: ['preallocate'] }),
    preallocate: Flags.option({
      summary: 'tables for all of the disk, all space reserved, or all of it written',
      options: ['off', 'metadata', 'falloc', 'full'] as const,
    })(),
    'cluster-size': Flags.string({ summary: 'of qcow2 images; as the original by default', helpValue: '64KiB' }),
    compat: Flags.option({
      summary: 'version of qcow2 images; as the original by default',
      options: ['0.10', '1.1'] as const,
    })(),
    'lazy-refcounts': Flags.boolean({ summary: 'of qcow2 images; as the original by default', allowNo: true }),
    'extended-l2': Flags.boolean({
      summary: 'subclusters in qcow2 images; as the original by default',
      allowNo: true,
    }),
    compression: Flags.option({
      summary: 'of the clusters of qcow2 images; original: by the method that its header names',
      options: ['none', 'zlib', 'zstd', 'original'] as const,
    })(),
    'data-file': Flags.boolean({ summary: 'data of qcow2 images in a raw file beside them' }),
    owner: Flags.string({ summary: 'of the images; of a defined domain, QEMU’s user', helpValue: 'USER[:GROUP]' }),
    mode: Flags.string({ summary: 'permissions of the images (0600)', helpValue: '0640' }),
    backing: backingFlag,
    flatten: Flags.boolean({ summary: 'of such a disk: an image that holds everything, not one on top of the other' }),
    'trust-backing': Flags.boolean({ summary: 'take an image for the one left out though it holds something else' }),
    force: Flags.boolean({ summary: 'replace images that are there, overwrite devices that hold something' }),
    'allow-damaged': Flags.boolean({
      summary: 'keep what can be read of a damaged point; lost ranges are listed beside the image',
    }),
    define: Flags.boolean({ summary: 'define the domain on its restored disks' }),
    start: Flags.boolean({ summary: 'define and start it' }),
    name: Flags.string({ summary: 'define it under this name; a copy has its own UUID and MACs', helpValue: 'NAME' }),
    'new-uuid': Flags.boolean({ summary: 'with a new UUID, and new MACs', exclusive: ['keep-uuid'] }),
    'keep-uuid': Flags.boolean({ summary: 'with the UUID and MACs of the original (default, but for a new name)' }),
    network: Flags.string({
      summary: 'keep the interfaces, have none, or put all of them on a network of libvirt',
      helpValue: 'keep|none|NAME',
    }),
    instant: Flags.boolean({
      summary: 'start the domain at once, on overlays in --to DIR, and fill its disks in while it runs',
      exclusive: ['in-place', 'all', 'dry-run', 'force', 'allow-damaged'],
    }),
    hydrate: Flags.boolean({
      summary: 'with --instant or --resume; --no-hydrate only serves, for a look',
      allowNo: true,
      default: true,
    }),
    resume: Flags.string({
      summary: 'go on with a restore to files, or with an instant one, that was broken off',
      helpValue: 'ID',
      exclusive: ['instant', 'in-place', 'all', 'to', 'name', 'disk'],
    }),
    'in-place': Flags.boolean({ summary: 'write what differs back into the disks of the shut-off domain' }),
    'dry-run': Flags.boolean({ char: 'n', summary: 'say what would be written, and how much' }),
    bwlimit: Flags.string({
      summary: 'read at most this much from the store in a second; with --instant, of filling each disk in',
      helpValue: '200MiB',
    }),
    ...PRIORITY_FLAGS,
  }

  override async run(): Promise<Envelope> {
    const { args, flags } = await this.parse(RestoreCommand)
    const { lowerPriority } = await import('../cli/wire.js')
    await lowerPriority(flags)
    if (flags['in-place']) return await this.#inPlace(inPlaceWishes(args.point ?? [], flags), flags)
    const { hydrate, resume } = flags
    const bwlimit = flags.bwlimit === undefined ? 0 : parseSize(flags.bwlimit)
    if (resume !== undefined) {
      const { loadRestoreState } = await import('../cli/resume-wire.js')
      const state = await loadRestoreState(resume)
      if (state !== undefined) return await this.#resume(state, flags)
    }
    if (resume !== undefined) return await this.#instant({ kind: 'resume', id: resume, hydrate, bwlimit }, flags)
    const given = flags.instant ? { ...flags, start: true } : flags
    const wishes = restoreWishes(args.point ?? [], given, this.jsonEnabled())
    if (flags.instant) return await this.#instant({ kind: 'start', wishes, hydrate, bwlimit }, flags)
    return await this.#restore(wishes, { kind: 'new', words: restoreWords(flags) }, flags)
  }

  /** As it was begun, but for what is said anew. */
  async #resume(state: RestoreState, flags: GlobalFlagValues & Pick<RestoreFlags, 'force' | 'bwlimit'>) {
    const { args, flags: begun } = await this.parse(RestoreCommand, [...state.words, `@${state.pointId}`])
    const given = { ...begun, force: flags.force ?? begun.force, bwlimit: flags.bwlimit ?? begun.bwlimit }
    const wishes = restoreWishes(args.point ?? [], given, this.jsonEnabled())
    return await this.#restore(wishes, { kind: 'old', state }, flags)
  }

  async #restore(wishes: RestoreWishes, resuming: Resuming, flags: GlobalFlagValues): Promise<Envelope> {
    await using session = await this.session(flags)
    const { runRestore } = await import('../cli/restore-run.js')
    const run = await runRestore(session, wishes, resuming)
    await session.endProgress()
    const lines = restoreRunSummary(run)
    // The standard output is the disk.
    if (wishes.destination.kind === 'stream' && !wishes.dryRun) for (const line of lines) session.note(line)
    else session.print(lines)
    return this.finish(restoreRunDocument(run, wishes.points === 'all' || wishes.points.length > 1))
  }

  async #instant(wish: InstantWish, flags: GlobalFlagValues): Promise<Envelope> {
    await using session = await this.session(flags)
    const { runInstant } = await import('../cli/instant-wire.js')
    return this.finish(await runInstant(session, wish))
  }

  async #inPlace(wishes: InPlaceWishes, flags: GlobalFlagValues): Promise<Envelope> {
    await using session = await this.session(flags)
    const { runInPlace } = await import('../cli/in-place-run.js')
    const run = await runInPlace(session, wishes)
    await session.endProgress()
    session.print(rollbackSummary(run))
    return this.finish(rollbackDocument(run))
  }
}
