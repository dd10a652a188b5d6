import { chmod, chown, mkdir, readdir, rm, rmdir } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'

import { BackupError, messageOf } from '../base/errors.js'
import type { ScratchPlace } from './session-types.js'

/** Where the places of all runs lie, and who must be able to write there. */
export interface PlacesPolicy {
  /** Short-lived and short: a Unix socket's path has at most 107 bytes. Absolute. */
  readonly runtimeDir: string
  /** On fast local storage with room for what the guests overwrite during a backup. Absolute. */
  readonly scratchDir: string
  /** The user that QEMU runs as; undefined where that is us. */
  readonly qemuUser: { readonly uid: number; readonly gid: number } | undefined
}

/** Fresh, unique places for one run. */
export interface RunPlaces {
  readonly checkpoint: string
  readonly socket: string
  /** By disk target. */
  readonly scratch: ReadonlyMap<string, ScratchPlace>
}

/** sockaddr_un.sun_path without its final zero. */
const MAX_SOCKET_PATH = 107

/**
 * Makes one directory for the socket and one for the scratch files of a run,
 * both closed to everybody but QEMU's user: an NBD socket that others can
 * connect to is a disk that others can read. `token` is random, in hex.
 * Rejects with E_CONFIG where a directory cannot be made or is too long.
 */
export async function makeRunPlaces(
  policy: PlacesPolicy,
  names: { readonly prefix: string; readonly token: string },
  targets: readonly string[],
): Promise<RunPlaces> {
  const socketDir = join(policy.runtimeDir, `run-${names.token}`)
  const scratchDir = join(policy.scratchDir, `run-${names.token}`)
  const socket = join(socketDir, 'nbd.sock')
  if (Buffer.byteLength(socket) > MAX_SOCKET_PATH) {
    throw new BackupError('E_CONFIG', `the runtime directory ${policy.runtimeDir} has too long a name for a socket`, {
      hints: ['set a shorter one with VIRTVAULT_RUNTIME_DIR'],
    })
  }
  await makeClosedDir(socketDir, policy)
  await makeClosedDir(scratchDir, policy)
  const scratch = targets.map(
    (target, i) => [target, { kind: 'file', path: join(scratchDir, `disk-${i}.qcow2`) }] as const,
  )
  return { checkpoint: `${names.prefix}${names.token}`, socket, scratch: new Map(scratch) }
}

async function makeClosedDir(path: string, policy: PlacesPolicy): Promise<void> {
  try {
    await makePassableDirs(dirname(path))
    await mkdir(path, { mode: 0o700 })
    if (policy.qemuUser !== undefined && process.getuid?.() === 0) {
      await chown(path, policy.qemuUser.uid, policy.qemuUser.gid)
    }
  } catch (error) {
    throw new BackupError('E_CONFIG', `${path} cannot be made for the backup's socket and scratch files`, {
      why: messageOf(error),
      hints: ['choose other places with VIRTVAULT_RUNTIME_DIR and VIRTVAULT_SCRATCH_DIR'],
      cause: error,
    })
  }
}

/** QEMU must pass through what is made here, where every name is random, but need not list it. */
async function makePassableDirs(path: string): Promise<void> {
  const first = await mkdir(path, { recursive: true })
  if (first === undefined) return
  for (let dir = path; dir.length >= first.length; dir = dirname(dir)) await chmod(dir, 0o711)
}

/**
 * Removes what a run made: socket and scratch files by their own names, then
 * the directories, if they carry a run's name and are empty. Missing is fine.
 */
export async function removeRunPlaces(socket: string, scratch: readonly string[]): Promise<void> {
  for (const file of [socket, ...scratch]) {
    const dir = dirname(file)
    if (!/^run-[0-9a-f]+$/.test(basename(dir))) continue
    await rm(file, { force: true })
    const left = await readdir(dir).catch(() => ['unknown'])
    if (left.length === 0) await rmdir(dir)
  }
}
