import * as Args from '@oclif/core/args'
import * as Flags from '@oclif/core/flags'

import { BackupError } from '../../base/errors.js'
import { BaseCommand, type Envelope } from '../../cli/base-command.js'
import { EXIT } from '../../cli/exit-codes.js'

const many = { multiple: true, multipleNonGreedy: true } as const

export default class JobSetCommand extends BaseCommand {
  static override description =
    'Writes a job into the metadata of a domain, live and persistent, so that it moves with it; read it without us: ' +
    'virsh metadata DOMAIN https://virtvault.example.org/xmlns/job/1. What is not given stays as it is. A job may ' +
    'name a group of the configuration and then says only what differs from it.'
  static override examples = [
    { command: "<%= config.bin %> job set db01 --schedule '0 2 * * *' -t nas", description: 'Each night' },
    { command: '<%= config.bin %> job set db01 --group prod --quiesce required', description: 'As its group, but' },
    { command: "<%= config.bin %> job set db01 --keep daily=7 --keep 'yearly=*'", description: 'What is kept' },
  ]
  static override args = { domain: Args.string({ description: 'a name or a UUID', required: true, ignoreStdin: true }) }
  static override flags = {
    job: Flags.string({ summary: 'which of its jobs; a new id makes a new one', helpValue: 'ID' }),
    group: Flags.string({ char: 'g', summary: 'group of the configuration that it inherits from', helpValue: 'GROUP' }),
    description: Flags.string({ summary: 'a line for people' }),
    schedule: Flags.string({ summary: "cron, @daily, or systemd's form", helpValue: "'0 2 * * *'" }),
    timezone: Flags.string({ summary: 'of the schedule', helpValue: 'Europe/Berlin' }),
    jitter: Flags.string({ summary: 'put the start off by up to this', helpValue: '10m' }),
    window: Flags.string({ summary: 'start only within', helpValue: '22:00-06:00' }),
    'catch-up': Flags.boolean({ summary: 'run once after downtime if runs were missed', allowNo: true }),
    priority: Flags.integer({ summary: 'higher runs first' }),
    to: Flags.string({ summary: 'target by name (repeatable); -t says the same', helpValue: 'TARGET', ...many }),
    disk: Flags.string({ summary: 'only this disk (repeatable)', helpValue: 'vda', ...many }),
    'exclude-disk': Flags.string({ summary: 'all disks but this (repeatable)', helpValue: 'vdb', ...many }),
    quiesce: Flags.option({ summary: 'freeze file systems', options: ['yes', 'no', 'required'] as const })(),
    'freeze-mount': Flags.string({ summary: 'freeze only this mount point (repeatable)', ...many }),
    depth: Flags.integer({ summary: 'images of a backing chain to read: 0 all, -1 all but the base' }),
    'disable-if-powered-off': Flags.boolean({ summary: 'skip it while it is shut off', allowNo: true }),
    keep: Flags.string({ summary: 'a rule of retention (repeatable)', helpValue: 'daily=7', ...many }),
    tag: Flags.string({ summary: 'put on each point (repeatable)', ...many }),
    bwlimit: Flags.string({ summary: 'bytes per second', helpValue: '40MiB' }),
    prune: Flags.boolean({ summary: 'prune after each pull', allowNo: true }),
  }

  override async run(): Promise<Envelope> {
    const { args, flags } = await this.parse(JobSetCommand)
    const { jobIdOf, settingsOfFlags, withJob } = await import('../../cli/job-edit.js')
    const { job, group, description, to, target, ...rest } = flags
    const targets = to ?? (target === undefined ? undefined : [target])
    const settings = settingsOfFlags({ ...rest, target: targets })
    if (Object.keys(settings).length === 0 && group === undefined && description === undefined) {
      throw new BackupError('E_USAGE', 'nothing was given to be set')
    }
    await using session = await this.session(flags)
    const { jobsAtHand, oneDomain } = await import('../../cli/jobs-at-hand.js')
    const { writeJobs } = await import('../../cli/daemon-wire.js')
    await using at = await jobsAtHand(session)
    const domain = oneDomain(at, args.domain)
    const id = job ?? (group !== undefined && domain.jobs.length === 0 ? group : jobIdOf(domain.jobs, undefined))
    await writeJobs(at.machine.hypervisor, domain.ref.uuid, withJob(domain.jobs, id, { group, description, settings }))
    session.print([`${domain.ref.name}: job ${id} is written`])
    return this.finish({
      schema: 'virtvault/job_set/1',
      ok: true,
      status: 'success',
      exit: EXIT.ok,
      domain: domain.ref.name,
      job: id,
    })
  }
}
