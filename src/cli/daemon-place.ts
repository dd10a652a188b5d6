import { DaemonClient } from './daemon-client.js'
import type { Session } from './session.js'

/** The daemon that the configuration names, also where that cannot be read: then the one of its usual place. */
export async function daemonClient(session: Session): Promise<DaemonClient> {
  const { apiSocket } = await import('./daemon-wire.js')
  const config = await session.config().then(
    ({ config }) => config,
    () => ({}),
  )
  return new DaemonClient(apiSocket({ config }), session.signal)
}
