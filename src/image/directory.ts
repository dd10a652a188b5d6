import { mkdir, stat } from 'node:fs/promises'
import { dirname, resolve } from 'node:path'

import { BackupError, messageOf } from '../base/errors.js'
import { isErrno } from './image-file.js'

/**
 * Makes a directory with its parents; fine where it exists. Resolves to those
 * that were made, outermost first. Rejects with E_REFUSED where something that
 * is no directory is in the way, E_IO.
 *
 * By hand, since `mkdir` of Node 20 with `recursive` never ends where the
 * kernel says ENOENT for a directory that cannot be made, as in /proc.
 */
export async function makeDirectory(path: string): Promise<readonly string[]> {
  const missing: string[] = []
  for (let at = resolve(path); !(await isDirectory(at)); at = dirname(at)) missing.unshift(at)
  const made: string[] = []
  for (const one of missing) {
    try {
      await mkdir(one)
      made.push(one)
    } catch (error) {
      // Somebody else was faster.
      if (isErrno(error, 'EEXIST') && (await isDirectory(one))) continue
      throw new BackupError('E_IO', `cannot make the directory ${one}: ${messageOf(error)}`, {
        hints: ['Restore to another directory with --to.'],
        cause: error,
      })
    }
  }
  return made
}

/** Whether it is there. Rejects with E_REFUSED where something else has the name. */
async function isDirectory(path: string): Promise<boolean> {
  try {
    if ((await stat(path)).isDirectory()) return true
  } catch (error) {
    // What is in the way above is found on the way up.
    if (isErrno(error, 'ENOENT') || isErrno(error, 'ENOTDIR')) return false
    throw new BackupError('E_IO', `cannot look at ${path}: ${messageOf(error)}`, { cause: error })
  }
  throw new BackupError('E_REFUSED', `${path} is not a directory`, {
    hints: ['Images go into a directory: name another one with --to.', 'Block devices are named with --to-device.'],
  })
}
