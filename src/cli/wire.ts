import { systemClock } from '../base/clock.js'
import { BackupError } from '../base/errors.js'
import { LocalImages } from '../image/local-images.js'
import { RestoreJob } from '../jobs/restore-job.js'
import { planRestore } from '../jobs/restore-plan.js'
import { Store } from '../store/store.js'
import type { StorePort } from '../store/store-types.js'
import type { Session } from './session.js'
import { targetPlace } from './targets.js'

/**
 * The one place that makes the real things. Commands import it inside run(),
 * so that nothing of this is loaded for `--help`.
 */

/** Opens the store that `-t` names. Rejects with E_USAGE where none is named, E_NO_STORE, E_STORE_FORMAT, E_KEY. */
export function openStore(session: Session): Promise<StorePort> {
  const { path } = targetPlace(session.settings)
  return Store.open(path, { onNotice: warning => session.warn(warning) })
}

export { planRestore }

export interface NewStore {
  readonly chunkSize: number | undefined
  readonly level: number | undefined
}

/** Creates the store that `-t` names. Rejects with E_EXISTS, E_REFUSED, E_USAGE, E_NO_SPACE, E_IO. */
export async function createStore(session: Session, options: NewStore): Promise<StorePort> {
  const { path } = targetPlace(session.settings)
  await Store.init(path, options)
  return Store.open(path)
}

export function makeRestoreJob(session: Session, store: StorePort): RestoreJob {
  const images = new LocalImages({
    output: process.stdout,
    openExport: uri => Promise.reject(new BackupError('E_UNSUPPORTED', `cannot restore to the export ${uri}`)),
  })
  return new RestoreJob({ store, images, progress: session.progress, clock: systemClock })
}
