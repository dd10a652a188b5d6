import { errorCodeOf, type Warning } from '../base/errors.js'
import type { DomainRef } from '../model/recovery-point.js'
import type { StorePort } from '../store/store-types.js'
import type { PullHypervisor } from './pull-ports.js'

export interface DeadRunPorts {
  readonly store: Pick<StorePort, 'points' | 'runs'>
  readonly hypervisor: Pick<PullHypervisor, 'uri' | 'cleanUpAfter'>
}

/**
 * Finishes what runs that died on this domain left: where the point was
 * committed its checkpoint stays, otherwise it goes. Those of another
 * hypervisor are left for a pull there. The caller holds the domain's lock.
 */
export async function recoverDeadRuns({ store, hypervisor }: DeadRunPorts, domain: DomainRef): Promise<Warning[]> {
  const dead = await store.runs.dead(domain.uuid)
  if (dead.length === 0) return []
  const committed = await committedRuns(store, domain)
  const warnings: Warning[] = []
  for (const run of dead) {
    if (run.journal !== undefined) {
      if (run.journal.uri !== hypervisor.uri) {
        warnings.push({
          code: 'W_CLEANUP',
          message: `a run of this domain died on ${run.journal.uri}; pull it there once to clean up`,
        })
        continue
      }
      // A checkpoint too many costs little, one too few a full read.
      await hypervisor.cleanUpAfter(run.journal, { keepCheckpoint: committed?.has(run.id) ?? true })
      warnings.push({ code: 'W_RECOVERED', message: 'cleaned up after a run that had died' })
    }
    await run.remove()
  }
  return warnings
}

/** Names of runs that committed; undefined where that cannot be told. */
async function committedRuns(
  store: DeadRunPorts['store'],
  domain: DomainRef,
): Promise<ReadonlySet<string> | undefined> {
  try {
    return new Set((await store.points.list(domain.uuid)).map(({ runId }) => runId))
  } catch (error) {
    if (errorCodeOf(error) !== 'E_DAMAGED') throw error
    return undefined
  }
}
