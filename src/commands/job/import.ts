import * as Args from '@oclif/core/args'
import * as Flags from '@oclif/core/flags'

import { BackupError } from '../../base/errors.js'
import { BaseCommand, type Envelope } from '../../cli/base-command.js'
import { EXIT } from '../../cli/exit-codes.js'
import type { DomainJob } from '../../model/domain-job.js'

export default class JobImportCommand extends BaseCommand {
  static override description =
    'Takes over the jobs that virt-dup left in the metadata of domains. Its metadata stays; ours is written beside it. ' +
    'What has no equal here is named, with what to do instead.'
  static override examples = [
    { command: '<%= config.bin %> job import --dry-run', description: 'What would be taken over' },
    { command: '<%= config.bin %> job import db01', description: 'One domain' },
  ]
  static override args = {
    domain: Args.string({ description: 'domains; all without one', multiple: true, ignoreStdin: true }),
  }
  static override flags = { 'dry-run': Flags.boolean({ char: 'n', summary: 'write nothing' }) }

  override async run(): Promise<Envelope> {
    const { args, flags } = await this.parse(JobImportCommand)
    await using session = await this.session(flags)
    const { chooseDomains, jobsAtHand } = await import('../../cli/jobs-at-hand.js')
    const { readVirtDupJobs, writeJobs } = await import('../../cli/daemon-wire.js')
    await using at = await jobsAtHand(session)
    const imported: { domain: string; jobs: readonly string[]; remarks: readonly string[] }[] = []
    for (const { ref, jobs } of chooseDomains(at, args.domain ?? [])) {
      const found = await readVirtDupJobs(at.machine.hypervisor, ref.uuid)
      if (found === undefined) continue
      if (!flags['dry-run']) await writeJobs(at.machine.hypervisor, ref.uuid, merged(jobs, found.jobs))
      imported.push({ domain: ref.name, jobs: found.jobs.map(({ id }) => id), remarks: found.remarks })
    }
    if (imported.length === 0) throw new BackupError('E_NOT_FOUND', 'no domain has jobs of virt-dup')
    for (const { domain, jobs, remarks } of imported) {
      session.print([`${domain}: ${jobs.map(id => `job ${id}`).join(', ')}`, ...remarks.map(remark => `  ! ${remark}`)])
    }
    if (flags['dry-run']) session.print(['Nothing was written (--dry-run).'])
    return this.finish({
      schema: 'virtvault/job_import/1',
      ok: true,
      status: 'success',
      exit: EXIT.ok,
      domains: imported,
    })
  }
}

/** Ours stay; of the same id, the imported one is the newer. */
function merged(own: readonly DomainJob[], imported: readonly DomainJob[]): readonly DomainJob[] {
  const ids = new Set(imported.map(({ id }) => id))
  return [...own.filter(({ id }) => !ids.has(id)), ...imported]
}
