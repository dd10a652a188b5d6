import { BackupError } from '../base/errors.js'
import { LocalImages } from '../image/local-images.js'
import { RestoreJob } from '../jobs/restore-job.js'
import { planRestore } from '../jobs/restore-plan.js'
import { Store } from '../store/store.js'
import type { StorePort } from '../store/store-types.js'
import type { Session } from './session.js'
import { isPlace, type TargetPlace, targetPlace } from './targets.js'

/**
 * The one place that makes the real things. Commands import it inside run(),
 * so that nothing of this is loaded for `--help`.
 */

export { planRestore }

/** Where the store of this run is; reads the configuration only where it must. Rejects as targetPlace(). */
export async function findTarget(session: Session): Promise<TargetPlace> {
  const { target } = session.settings
  if (target !== undefined && isPlace(target)) return targetPlace(target, {})
  const { config } = await session.config()
  return targetPlace(target, config)
}

/** Opens the store that `-t` names. Rejects with E_USAGE where none is named, E_NO_STORE, E_STORE_FORMAT, E_KEY. */
export async function openStore(session: Session): Promise<StorePort> {
  const { path, indexDirectory } = await findTarget(session)
  return await Store.open(path, { indexDirectory, onNotice: warning => session.warn(warning) })
}

export interface NewStore {
  readonly chunkSize: number | undefined
  readonly level: number | undefined
}

/** Creates the store that `-t` names. Rejects with E_EXISTS, E_REFUSED, E_USAGE, E_NO_SPACE, E_IO. */
export async function createStore(session: Session, options: NewStore): Promise<StorePort> {
  const { name, path, wantsEncryption } = await findTarget(session)
  if (wantsEncryption) {
    throw new BackupError(
      'E_UNSUPPORTED',
      `the configuration wants ${name} to be encrypted, which is not possible yet`,
      {
        hints: ['nothing was created; take `encryption` out of the target if a plain store will do'],
      },
    )
  }
  await Store.init(path, options)
  return await Store.open(path)
}

export function makeRestoreJob(session: Session, store: StorePort): RestoreJob {
  const images = new LocalImages({
    output: process.stdout,
    openExport: uri => Promise.reject(new BackupError('E_UNSUPPORTED', `cannot restore to the export ${uri}`)),
  })
  return new RestoreJob({ store, images, progress: session.progress, clock: session.clock })
}
