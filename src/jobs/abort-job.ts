import { BackupError, errorCodeOf, messageOf, type Warning } from '../base/errors.js'
import type { DomainRef } from '../model/recovery-point.js'
import type { StorePort } from '../store/store-types.js'
import { type DeadRunPorts, recoverDeadRuns } from './dead-runs.js'

export interface AbortPorts extends DeadRunPorts {
  readonly store: Pick<StorePort, 'points' | 'runs'>
  readonly hypervisor: DeadRunPorts['hypervisor'] & {
    /** Whether a job runs whose places were made by a virtvault on this host, of whichever store. */
    hasOurJob(domain: DomainRef): Promise<boolean>
    /** Thaws, ends such a job, removes its socket. false where there is none. */
    endOurJob(domain: DomainRef): Promise<boolean>
  }
}

/** How it went for one domain. */
export interface AbortOutcome {
  readonly domain: DomainRef
  /** clean: nothing was there. cleaned: nothing is left. busy: a pull that lives has it. left: see `warnings`. */
  readonly status: 'clean' | 'cleaned' | 'busy' | 'left'
  readonly warnings: readonly Warning[]
}

/**
 * Ends what dead runs left on a domain: its backup job, frozen file systems,
 * the checkpoint that was not committed, socket and scratch. What a live pull
 * has is left alone. `force` also ends a job of virtvault that no journal of
 * this store knows; it may be another store's pull, which then fails. Jobs of
 * other tools are never touched. Never rejects for the domain's sake.
 */
export async function abortLeftovers(
  ports: AbortPorts,
  domain: DomainRef,
  options: { readonly force: boolean },
): Promise<AbortOutcome> {
  try {
    await using _lock = await ports.store.runs.lockDomain(domain.uuid)
    const warnings = await recoverDeadRuns(ports, domain)
    if (options.force && (await ports.hypervisor.endOurJob(domain))) {
      warnings.push({ code: 'W_RECOVERED', message: 'ended a backup job that no run of this store knows' })
    }
    if (await ports.hypervisor.hasOurJob(domain)) {
      const message = 'a backup job of virtvault runs that no run of this store knows; --force ends it'
      return { domain, status: 'left', warnings: [...warnings, { code: 'W_CLEANUP', message }] }
    }
    const isLeft = warnings.some(({ code }) => code === 'W_CLEANUP')
    return { domain, status: isLeft ? 'left' : warnings.length > 0 ? 'cleaned' : 'clean', warnings }
  } catch (error) {
    if (errorCodeOf(error) === 'E_LOCKED') return { domain, status: 'busy', warnings: [] }
    const why = error instanceof BackupError && error.why !== undefined ? ` (${error.why})` : ''
    return { domain, status: 'left', warnings: [{ code: 'W_CLEANUP', message: `${messageOf(error)}${why}` }] }
  }
}
