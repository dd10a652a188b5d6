import { chmod, chown, mkdir, readdir, rm, rmdir } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'

import { BackupError, messageOf } from '../base/errors.js'
import type { BackupDescription } from './backup-xml.js'
import type { QemuUser } from './capabilities-xml.js'
import type { ScratchPlace, TcpPlace } from './session-types.js'

/** Where the places of all runs lie. */
export interface PlacesPolicy {
  /** Short-lived and short: a Unix socket's path has at most 107 bytes. Absolute. */
  readonly runtimeDir: string
  /** On fast local storage with room for what the guests overwrite during a backup. Absolute. */
  readonly scratchDir: string
  /** By disk target: block devices that are overwritten, instead of files in `scratchDir`. */
  readonly scratchDevices?: ReadonlyMap<string, string> | undefined
  /** QEMU serves on a TCP port instead of a socket; nothing is then in `runtimeDir`. */
  readonly tcp?: TcpPolicy | undefined
  /** Nobody can make a directory there: the scratch files go into `scratchDir` itself. */
  readonly isFlat?: boolean | undefined
}

export interface TcpPolicy extends Omit<TcpPlace, 'ports'> {
  /** Both are tried. */
  readonly firstPort: number
  readonly lastPort: number
}

/** Fresh, unique places for one run. */
export interface RunPlaces {
  /** What all their names end with. */
  readonly token: string
  readonly checkpoint: string
  /** The Unix socket of the job or, where it serves on TCP, what the names of its scratch files start with: its job is known by it. */
  readonly socket: string
  /** By disk target. */
  readonly scratch: ReadonlyMap<string, ScratchPlace>
  /** Where it serves instead of on `socket`. */
  readonly tcp?: TcpPlace | undefined
}

/** sockaddr_un.sun_path without its final zero. */
const MAX_SOCKET_PATH = 107
const SOCKET_NAME = '/nbd.sock'

/**
 * Names the places of a run: one directory for the socket, one for the scratch
 * files. Nothing is made yet, so that a journal can hold them first. `token` is
 * random, in hex. Throws E_CONFIG where the socket's path is too long.
 */
export function nameRunPlaces(
  policy: PlacesPolicy,
  names: { readonly prefix: string; readonly token: string },
  targets: readonly string[],
): RunPlaces {
  const run = join(policy.scratchDir, `run-${names.token}`)
  const { tcp } = policy
  const socket = tcp === undefined ? join(policy.runtimeDir, `run-${names.token}${SOCKET_NAME}`) : run
  if (tcp === undefined && Buffer.byteLength(socket) > MAX_SOCKET_PATH) {
    throw new BackupError('E_CONFIG', `the runtime directory ${policy.runtimeDir} has too long a name for a socket`, {
      hints: ['set a shorter one with VIRTVAULT_RUNTIME_DIR'],
    })
  }
  const between = policy.isFlat === true ? '-' : '/'
  const scratch = targets.map((target, i): [string, ScratchPlace] => {
    const device = policy.scratchDevices?.get(target)
    if (device !== undefined) return [target, { kind: 'block', path: device }]
    return [target, { kind: 'file', path: `${run}${between}disk-${i}.qcow2` }]
  })
  return {
    token: names.token,
    checkpoint: `${names.prefix}${names.token}`,
    socket,
    scratch: new Map(scratch),
    tcp: tcp === undefined ? undefined : { ...tcp, ports: portsFrom(tcp, names.token) },
  }
}

/** All ports of the range, from one that the token chooses: two runs at once seldom want the same. */
function portsFrom({ firstPort, lastPort }: TcpPolicy, token: string): readonly number[] {
  const count = lastPort - firstPort + 1
  const start = parseInt(token.slice(0, 8), 16) % count
  return Array.from({ length: count }, (_, i) => firstPort + ((start + i) % count))
}

/** What nameRunPlaces() gave as `socket` of the run whose job this is, in whatever directory; undefined where no virtvault began it. */
export function runMarkOf(job: BackupDescription): string | undefined {
  if (job.socket !== undefined) return /\/run-[0-9a-f]{16}\/nbd\.sock$/.test(job.socket) ? job.socket : undefined
  const marks = job.disks.map(({ scratch = '' }) => /^(.*\/run-[0-9a-f]{16})[/-]disk-\d+\.qcow2$/.exec(scratch)?.[1])
  return marks.find(mark => mark !== undefined)
}

/** Where the images of a domain that is off are served, never on TCP; `socket` is that of the run's RunPlaces. */
export function offlineSocket(socket: string): string {
  return socket.endsWith(SOCKET_NAME) ? socket : `${socket}${SOCKET_NAME}`
}

/** Whether `mark` is the socket that the job serves on or, on TCP, the beginning of its scratch files' names. */
export function isMarked(job: BackupDescription, mark: string): boolean {
  return job.socket === undefined ? runMarkOf(job) === mark : job.socket === mark
}

/**
 * Makes the directories of a run, closed to everybody but QEMU's user (us where
 * `qemuUser` is undefined): an NBD
 * socket that others can connect to is a disk that others can read. Rejects
 * with E_CONFIG.
 */
export async function makeRunPlaces(places: RunPlaces, qemuUser: QemuUser | undefined): Promise<void> {
  for (const dir of new Set(filesOf(places).map(file => dirname(file)))) await makeClosedDir(dir, qemuUser)
}

/** The socket, that of a domain which is off where QEMU's is a port, and the scratch files that are files. */
export function filesOf(places: RunPlaces): readonly string[] {
  const scratch = [...places.scratch.values()].filter(({ kind }) => kind === 'file')
  const socket = offlineSocket(places.socket)
  const paths = scratch.map(({ path }) => path)
  const hasFolder = places.tcp === undefined || paths.some(path => dirname(path) === dirname(socket))
  return [...(hasFolder ? [socket] : []), ...paths]
}

async function makeClosedDir(path: string, qemuUser: QemuUser | undefined): Promise<void> {
  try {
    await makePassableDirs(dirname(path))
    await mkdir(path, { mode: 0o700 })
    if (qemuUser !== undefined && process.getuid?.() === 0) await chown(path, qemuUser.uid, qemuUser.gid)
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
export async function removeRunPlaces(files: readonly string[]): Promise<void> {
  for (const file of files) {
    const dir = dirname(file)
    if (!/^run-[0-9a-f]+$/.test(basename(dir))) continue
    await rm(file, { force: true })
    // Of the images that were left out, where a run was killed.
    await rm(join(dir, 'below.sock'), { force: true })
    const left = await readdir(dir).catch(() => ['unknown'])
    if (left.length === 0) await rmdir(dir)
  }
}
