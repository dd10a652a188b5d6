import { BackupError } from '../base/errors.js'

/**
 * The names of a path within a guest, from its root on. Throws E_USAGE for
 * `..`: what it means depends on links that only the guest may follow.
 */
export function parseGuestPath(path: string): readonly string[] {
  const names = path.split('/').filter(name => name !== '' && name !== '.')
  if (names.includes('..') || path.includes('\0')) {
    throw new BackupError('E_USAGE', `${JSON.stringify(path)} is no path within a disk`, {
      hints: ['write it without ..'],
    })
  }
  return names
}
