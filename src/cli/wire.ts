import { BackupError } from '../base/errors.js'
import type { StorePort } from '../store/store-types.js'
import type { Settings } from './settings.js'

/**
 * The one place that makes the real things. Commands import it inside run(),
 * so that nothing of this is loaded for `--help`.
 */

/**
 * The store that `settings` name: a target of the configuration, a path or a
 * URL. Rejects with E_USAGE where none is named, E_NO_STORE, E_KEY, E_LOCKED.
 */
export function openStore(settings: Settings): Promise<StorePort> {
  return Promise.reject(new BackupError('E_UNSUPPORTED', `cannot open ${targetName(settings)} yet`))
}

/** The target as named by flag or variable. Throws E_USAGE where none is. */
export function targetName(settings: Settings): string {
  if (settings.target !== undefined) return settings.target
  throw new BackupError('E_USAGE', 'no store was named', {
    why: 'neither -t nor VIRTVAULT_TARGET says where the store is, and the configuration has no default target',
    hints: ['name it: virtvault list -t /srv/backup', 'or set it once: export VIRTVAULT_TARGET=/srv/backup'],
  })
}
