import { resolve } from 'node:path'
import { fileURLToPath } from 'node:url'

import { BackupError } from '../base/errors.js'
import { redactUrls } from './error-report.js'
import type { Settings } from './settings.js'

/** Where a store is. */
export interface TargetPlace {
  /** As the user named it. */
  readonly name: string
  readonly path: string
}

/**
 * The place that `-t` or VIRTVAULT_TARGET names: what holds a slash is a path
 * or a URL, anything else a name of the configuration. Throws E_USAGE where
 * nothing is named, E_NOT_FOUND for a name that is not configured,
 * E_UNSUPPORTED for a kind of URL that is not known.
 */
export function targetPlace(settings: Pick<Settings, 'target'>): TargetPlace {
  const { target } = settings
  if (target === undefined) {
    throw new BackupError('E_USAGE', 'no store was named', {
      why: 'neither -t nor VIRTVAULT_TARGET says where the store is',
      hints: ['name it: -t /srv/backup', 'or once for all: export VIRTVAULT_TARGET=/srv/backup'],
    })
  }
  const scheme = /^([a-z][a-z0-9+.-]*):\/\//i.exec(target)?.[1]?.toLowerCase()
  if (scheme === 'file') return { name: target, path: filePath(target) }
  if (scheme !== undefined) {
    throw new BackupError('E_UNSUPPORTED', `stores at ${redactUrls(target)} are not supported`, {
      hints: ['use a path of a local or mounted file system'],
    })
  }
  if (target.includes('/') || target === '.' || target === '..') return { name: target, path: resolve(target) }
  throw new BackupError('E_NOT_FOUND', `no target "${target}" is configured`, {
    why: 'a name without a slash is a target of the configuration',
    hints: [`for a directory of that name write ./${target}`],
  })
}

function filePath(url: string): string {
  try {
    return fileURLToPath(url)
  } catch (cause) {
    throw new BackupError('E_USAGE', `${url} is not the URL of a local directory`, { cause })
  }
}
