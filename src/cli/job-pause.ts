import { BackupError } from '../base/errors.js'
import { isJobId } from '../model/domain-job.js'
import type { Envelope } from './base-command.js'
import { EXIT } from './exit-codes.js'
import { withJob } from './job-edit.js'
import { chooseDomains, jobsAtHand, jobsOf } from './jobs-at-hand.js'
import type { Session } from './session.js'

/**
 * Pauses or resumes jobs of domains in their metadata. A job that comes from a
 * group gets an entry there with the group's name as its id, which joins it.
 * Rejects with E_NOT_FOUND where a domain has no such job.
 */
export async function setPaused(
  session: Session,
  {
    selectors,
    job,
    paused,
  }: { readonly selectors: readonly string[]; readonly job: string | undefined; readonly paused: boolean },
): Promise<Envelope> {
  const { writeJobs } = await import('./daemon-wire.js')
  await using at = await jobsAtHand(session)
  const changed: { readonly domain: string; readonly job: string }[] = []
  for (const domain of chooseDomains(at, selectors)) {
    const meant = jobsOf(at, domain).filter(({ id }) => job === undefined || id === job)
    if (meant.length === 0) {
      const what = job === undefined ? 'no job' : `no job "${job}"`
      throw new BackupError('E_NOT_FOUND', `${domain.ref.name} has ${what}`, {
        hints: ['virtvault job list shows them'],
      })
    }
    let jobs = domain.jobs
    for (const { id, group } of meant) {
      if (!isJobId(id)) throw new BackupError('E_USAGE', `the name of the group ${id} cannot be the id of a job`)
      jobs = withJob(jobs, id, { group, settings: { paused: paused ? true : undefined } })
      changed.push({ domain: domain.ref.name, job: id })
    }
    // What says nothing more than its group does is not needed.
    const left = jobs.filter(
      ({ id, group, settings }) => id !== group || Object.values(settings).some(value => value !== undefined),
    )
    await writeJobs(at.machine.hypervisor, domain.ref.uuid, left)
  }
  session.print(changed.map(one => `${one.domain}: job ${one.job} is ${paused ? 'paused' : 'resumed'}`))
  const schema = paused ? 'virtvault/job_pause/1' : 'virtvault/job_resume/1'
  return { schema, ok: true, status: 'success', exit: EXIT.ok, jobs: changed }
}
