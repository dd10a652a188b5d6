import type { RunEntry } from '../daemon/history-entry.js'
import type { DaemonClient } from './daemon-client.js'
import { exitOfError, exitOfItems } from './exit-codes.js'
import type { Session } from './session.js'

const POLL_MS = 500
/** As the API gives at most. */
const LIMIT = '10000'

/** Waits until each of the daemon's tasks in `ids` has ended, retries included. Rejects with E_INTERRUPTED, E_UNREACHABLE. */
export async function awaitRuns(
  session: Session,
  client: DaemonClient,
  { ids, since }: { readonly ids: readonly string[]; readonly since: number },
): Promise<{ readonly exit: number; readonly runs: readonly RunEntry[] }> {
  for (;;) {
    const entries = await client.history({ since: new Date(since).toISOString(), limit: LIMIT })
    const last = new Map<string, RunEntry>()
    for (const entry of entries) if (entry.kind === 'run') last.set(entry.task, entry)
    const runs = ids.flatMap(id => last.get(id) ?? [])
    if (runs.length === ids.length && runs.every(({ retryAt }) => retryAt === undefined)) {
      const items = runs.map(({ status, error }) =>
        status === 'failed'
          ? ({ status, exit: exitOfError(error?.code ?? 'E_INTERNAL') } as const)
          : ({ status } as const),
      )
      return { exit: exitOfItems(items), runs }
    }
    await session.clock.sleep(POLL_MS, session.signal)
  }
}
