import { withoutAbsent } from '../config/settings.js'
import type { PullJob } from '../jobs/pull-job.js'
import type { PullRequest } from '../jobs/pull-ports.js'
import { choosePulled, commonTarget, jobForPull, parallelPulls, pullFor, type PullWishes } from './pull-requests.js'
import { Paces } from './paces.js'
import type { PriorityWords } from './priority.js'
import type { PullRun } from './pull-view.js'
import type { Session } from './session.js'
import { connectMachine, findTarget, lowerPriority, makePullJob, openStore, pullDomains } from './wire.js'

/** How a run goes about its work, whatever that is. */
export interface PullManner extends PriorityWords {
  /** Domains at once. */
  readonly parallel: number | undefined
}

/**
 * Pulls what the user asked for. The store is opened before libvirt is asked
 * for anything that changes a domain. Rejects where nothing could be begun;
 * what fails for one domain is in its outcome.
 */
export async function runPull(session: Session, asked: PullWishes, how: PullManner): Promise<PullRun> {
  const { clock, progress, signal } = session
  const wishes = { ...asked, settings: withoutAbsent(asked.settings) }
  const started = clock.now()
  const from = clock.monotonic()
  const loaded = await session.config()
  await lowerPriority({ nice: how.nice ?? loaded.config.nice, ionice: how.ionice ?? loaded.config.ionice })
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
  const place = await findTarget(session, preferred)
  await using store = await openStore(session, preferred)

  const paces = new Paces(clock)
  const jobs = new Map<PullRequest, PullJob>()
  for (const one of resolved) {
    const prepared = pullFor(one.domain, one.settings, wishes)
    const options = { ...prepared, pace: paces.ofJob(one), storePace: paces.ofTarget(place) }
    jobs.set(prepared.request, await makePullJob(session, { store, machine }, options))
  }
  const job = {
    run: (request: PullRequest, until: AbortSignal) => {
      const own = jobs.get(request)
      if (own === undefined) throw new Error('bug: a request without a job')
      return own.run(request, until)
    },
  }
  const outcomes = await pullDomains(
    { job, progress, clock },
    { requests: [...jobs.keys()], parallel: parallelPulls(how.parallel, loaded) },
    signal,
  )
  await recordPulls(session, { outcomes, jobs: resolved, target: place.name, started })
  return { outcomes, target: place.name, started, durationMs: clock.monotonic() - from, interrupted: undefined }
}
