import type { TaskDocument } from '../daemon/daemon-status.js'
import { daemonClient } from './daemon-place.js'
import { jobsAtHand, offlineTasks } from './jobs-at-hand.js'
import type { Session } from './session.js'

export interface KnownTasks {
  readonly tasks: readonly TaskDocument[]
  readonly source: 'daemon' | 'offline'
}

/** All scheduled tasks, from the daemon, or from configuration, libvirt and history where none runs. */
export async function knownTasks(session: Session): Promise<KnownTasks> {
  const status = await (await daemonClient(session)).statusIfThere()
  if (status !== undefined) return { tasks: status.jobs, source: 'daemon' }
  const { openHistory } = await import('./daemon-wire.js')
  await using at = await jobsAtHand(session)
  await using history = await openHistory(at.loaded)
  const now = session.clock.now()
  return { tasks: offlineTasks(at, await history.read(), { env: process.env, now }), source: 'offline' }
}
