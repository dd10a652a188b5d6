import { statfsSync } from 'node:fs'
import { lstat, unlink } from 'node:fs/promises'
import { dirname } from 'node:path'

import { messageOf } from '../base/errors.js'

/** What is asked and done about files of this machine, for a libvirt that runs on it. */

/**
 * Removes what a job left on this machine: the socket of a QEMU that died, a
 * scratch file after a crash of the host. Returns what could not be removed,
 * one line each.
 */
export async function removeLeftovers(paths: readonly string[]): Promise<readonly string[]> {
  const failures: string[] = []
  for (const path of paths) {
    try {
      const entry = await lstat(path)
      if (entry.isFile() || entry.isSocket()) await unlink(path)
    } catch (error) {
      const isAbsent =
        error instanceof Error && 'code' in error && (error.code === 'ENOENT' || error.code === 'ENOTDIR')
      if (!isAbsent) failures.push(`cannot remove ${path}: ${messageOf(error)}`)
    }
  }
  return failures
}

/** Whether something lies at `path` on this machine, be it a dangling link. */
export async function exists(path: string): Promise<boolean> {
  return lstat(path).then(
    () => true,
    () => false,
  )
}

/**
 * Free bytes where these files are or will be, of the fullest place; undefined where it is not on this machine. It
 * does not go through libuv's pool: a store that hangs may have taken all of that, and a guest would be paused meanwhile.
 */
export function freeSpaceFor(files: readonly string[]): Promise<number | undefined> {
  let least: number | undefined
  for (const folder of new Set(files.map(file => dirname(file)))) {
    const free = freeBytesOf(folder)
    if (free !== undefined) least = Math.min(least ?? Infinity, free)
  }
  return Promise.resolve(least)
}

function freeBytesOf(folder: string): number | undefined {
  try {
    const { bavail, bsize } = statfsSync(folder)
    return bavail * bsize
  } catch {
    return undefined
  }
}
