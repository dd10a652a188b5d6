import { withoutAbsent } from '../config/settings.js'
import type { PullJob } from '../jobs/pull-job.js'
import type { PullRequest } from '../jobs/pull-ports.js'
import { choosePulled, commonTarget, jobForPull, parallelPulls, pullFor, type PullWishes } from './pull-requests.js'
import type { PullRun } from './pull-view.js'
import type { Session } from './session.js'
import { connectMachine, findTarget, makePullJob, openStore, pullDomains } from './wire.js'

/**
 * Pulls what the user asked for. The store is opened before libvirt is asked
 * for anything that changes a domain. Rejects where nothing could be begun;
 * what fails for one domain is in its outcome.
 */
export async function runPull(session: Session, asked: PullWishes, parallel: number | undefined): Promise<PullRun> {
  const { clock, progress, signal } = session
  const wishes = { ...asked, settings: withoutAbsent(asked.settings) }
  const started = clock.now()
  const from = clock.monotonic()
  const loaded = await session.config()
  await using machine = await connectMachine(session)
  const found = await machine.hypervisor.listDomains()
  const { domains, idleExclusions } = choosePulled(
    found.map(({ uuid, name }) => ({ uuid, name })).sort((a, b) => (a.name < b.name ? -1 : 1)),
    wishes,
    loaded,
  )
  for (const text of idleExclusions) session.note(`"${text}" leaves nothing out`)
  const { metadataOf, recordPulls } = await import('./daemon-wire.js')
  const metadata = await metadataOf(session, machine, domains)
  const resolved = domains.map(domain => {
    const own = metadata.get(domain.uuid) ?? []
    return jobForPull(domain, wishes, { loaded, metadata: own })
  })
  const preferred = session.settings.target ?? commonTarget(resolved)
  const { name: target } = await findTarget(session, preferred)
  await using store = await openStore(session, preferred)

  const prepared = resolved.map(({ domain, settings }) => pullFor(domain, settings, wishes))
  const jobs = new Map<PullRequest, PullJob>()
  for (const one of prepared) jobs.set(one.request, await makePullJob(session, { store, machine }, one))
  const job = {
    run: (request: PullRequest, until: AbortSignal) => {
      const own = jobs.get(request)
      if (own === undefined) throw new Error('bug: a request without a job')
      return own.run(request, until)
    },
  }
  const outcomes = await pullDomains(
    { job, progress, clock },
    { requests: [...jobs.keys()], parallel: parallelPulls(parallel, loaded) },
    signal,
  )
  await recordPulls(session, { outcomes, jobs: resolved, target, started })
  return { outcomes, target, started, durationMs: clock.monotonic() - from, interrupted: undefined }
}
