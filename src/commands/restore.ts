import { mkdir } from 'node:fs/promises'

import * as Args from '@oclif/core/args'
import * as Flags from '@oclif/core/flags'

import { BackupError } from '../base/errors.js'
import { BaseCommand, type Envelope } from '../cli/base-command.js'
import { EXIT } from '../cli/exit-codes.js'
import { findPoint } from '../cli/points.js'
import { restoreDocument, restorePlanDocument, restorePlanLines, restoreSummary } from '../cli/restore-view.js'

const PREALLOCATIONS = ['metadata', 'full'] as const

export default class RestoreCommand extends BaseCommand {
  static override description =
    'Writes the disks of a recovery point as images, and the domain’s XML beside them. All or nothing: images get their ' +
    'names when every disk is complete and sound. Nothing is defined or started.'
  static override examples = [
    { command: '<%= config.bin %> restore web01@latest --to /srv/restored', description: 'All disks as qcow2 images' },
    {
      command: '<%= config.bin %> restore @3f9c2a1:vda --to . --format raw',
      description: 'One disk of one point, raw and sparse',
    },
    { command: '<%= config.bin %> restore web01@~1 --to /srv/restored -n', description: 'Only say what would be done' },
  ]
  static override args = {
    point: Args.string({
      description: '[DOMAIN]@REF[:DISK], REF = latest, ~N, an id, a date or a tag',
      required: true,
      ignoreStdin: true,
    }),
  }
  static override flags = {
    to: Flags.string({
      summary: 'directory for the images; made where it is absent',
      helpValue: 'DIR',
      required: true,
    }),
    disk: Flags.string({
      summary: 'only this disk (repeatable)',
      helpValue: 'vda',
      multiple: true,
      multipleNonGreedy: true,
    }),
    format: Flags.option({ summary: 'of the images', options: ['qcow2', 'raw'] as const, default: 'qcow2' })(),
    preallocate: Flags.option({
      summary: 'reserve or fill all space of the images',
      options: PREALLOCATIONS,
    })(),
    force: Flags.boolean({ summary: 'replace images that are there' }),
    'allow-damaged': Flags.boolean({
      summary: 'keep what can be read of a damaged point; lost ranges are listed beside the image',
    }),
    'dry-run': Flags.boolean({ char: 'n', summary: 'say what would be written, and how much' }),
  }

  override async run(): Promise<Envelope> {
    const { args, flags } = await this.parse(RestoreCommand)
    await using session = await this.session(flags)
    const { makeRestoreJob, openStore, planRestore } = await import('../cli/wire.js')
    await using store = await openStore(session)
    const { noted, ref } = await findPoint(store, args.point)
    if (ref.path !== undefined) {
      throw new BackupError('E_USAGE', 'restore gives back whole disks, not files within them', {
        hints: [`leave out ${ref.path}`],
      })
    }
    const disks = [...(flags.disk ?? []), ...(ref.disk === undefined ? [] : [ref.disk])]
    const plan = planRestore({
      point: noted.point,
      disks: disks.length === 0 ? undefined : disks,
      destination: { kind: 'directory', path: flags.to, format: flags.format, preallocation: flags.preallocate },
      force: flags.force,
      onDamage: flags['allow-damaged'] ? 'keep' : 'stop',
    })
    const job = await makeRestoreJob(session, store)

    if (flags['dry-run']) {
      const measured = await job.measure(plan, session.signal)
      session.print(restorePlanLines(plan, measured))
      return this.finish(restorePlanDocument(plan, measured))
    }
    await mkdir(flags.to, { recursive: true })
    const result = await job.run(plan, session.signal)
    await session.endProgress()
    session.print(restoreSummary(plan, result))
    return this.finish({ ...restoreDocument(plan, result), exit: result.status === 'complete' ? EXIT.ok : EXIT.damage })
  }
}
