import { lstat, mkdir, mkdtemp, readdir, readFile, realpath, rmdir, rm, writeFile } from 'node:fs/promises'
import { basename, join } from 'node:path'

import { BackupError, errorCodeOf, messageOf } from '../base/errors.js'
import { type FilesContext, findFileSystems, type ServedDisk, viewDisk } from '../files/disk-view.js'
import { findVolumes, type GuestMount, mountGuest } from '../files/guest-mount.js'
import { mountedAt, mounts } from '../files/mount-table.js'
import { unmount } from '../files/fuse-mount.js'
import { ServeJob } from '../jobs/serve-job.js'
import {
  chooseFileSystem,
  type FileSystemWish,
  type FoundFileSystem,
  holdsVolumes,
  placeName,
} from '../model/file-system.js'
import type { RecoveryPoint } from '../model/recovery-point.js'
import { ExportServer } from '../nbd/export-server.js'
import type { StorePort } from '../store/store-types.js'
import type { BackingFile } from './backing-flag.js'
import { runtimeDir } from './places.js'
import type { Session } from './session.js'

/** Makes what `files`, `cp`, `mount` and `umount` need; a part of wire.ts. */

const CACHE_BYTES = 64 * 1024 * 1024
/** What the folders of runs are called; the number is the process. */
const FOLDER = /^files-(\d+)-/
const MOUNT_NOTE = 'mounted-at'

export interface GuestWish extends FileSystemWish {
  readonly point: RecoveryPoint
  /** undefined: the only disk, or for volumes all of them. */
  readonly disk: string | undefined
  readonly isolate: boolean
  /** Where images are that the point leaves out. */
  readonly backing: readonly BackingFile[]
}

/**
 * The disks of a point, served to programs of this user alone, in a folder
 * that goes with it. Disposing unmounts, stops serving and removes the folder.
 */
export class GuestDisks implements AsyncDisposable {
  readonly #session: Session
  readonly #job: ServeJob
  readonly #folder: string
  readonly #disks: readonly ServedDisk[]
  readonly #mounted: AsyncDisposable[] = []
  readonly #context: FilesContext

  private constructor(parts: {
    readonly session: Session
    readonly job: ServeJob
    readonly folder: string
    readonly disks: readonly ServedDisk[]
  }) {
    this.#session = parts.session
    this.#job = parts.job
    this.#folder = parts.folder
    this.#disks = parts.disks
    this.#context = { folder: parts.folder, env: process.env, makeDirectory: name => this.#makeDirectory(name) }
  }

  /** Serves when it resolves. Rejects as ServeJob.start(). */
  static async serve(session: Session, store: StorePort, wish: GuestWish): Promise<GuestDisks> {
    const parent = runtimeDir()
    await mkdir(parent, { recursive: true, mode: 0o700 })
    await clearDeadRuns(parent)
    // Mounts are told by their real path.
    const folder = await realpath(await mkdtemp(join(parent, `files-${process.pid}-`)))
    const socket = join(folder, 'nbd')
    const wanted = wish.disk === undefined ? undefined : [wish.disk]
    const { servedBelow } = await import('./backing-wire.js')
    try {
      const job = await ServeJob.start(
        {
          store,
          // Names of domains are for people; these are for command lines.
          listen: (exports, onReadFailure) =>
            ExportServer.listen(
              { kind: 'unix', path: socket },
              { exports: exports.map((served, number) => ({ ...served, name: `disk${number}` })), onReadFailure },
            ),
          onDamage: error => session.complain(`${error.message}  [${error.code}]`),
        },
        {
          point: wish.point,
          disks: wanted,
          below: await servedBelow(session, wish.point, { disks: wanted, files: wish.backing }),
          cacheBytes: CACHE_BYTES,
        },
      )
      const disks = job.disks.map(({ target, size }, number) => ({ target, size, socket, exportName: `disk${number}` }))
      return new GuestDisks({ session, job, folder, disks })
    } catch (error) {
      await rmdir(folder)
      throw error
    }
  }

  /** Reads that the store could not answer so far. */
  get failedReads(): number {
    return this.#job.failedReads
  }

  get targets(): readonly string[] {
    return this.#disks.map(({ target }) => target)
  }

  /** What is on each disk; volumes too where there are any and guestfish is installed. */
  async fileSystems(): Promise<readonly (FoundFileSystem & { readonly disk: string | undefined })[]> {
    const found: (FoundFileSystem & { readonly disk: string | undefined })[] = []
    for (const disk of this.#disks) {
      for (const one of await this.#look(disk)) found.push({ ...one, disk: disk.target })
    }
    if (!found.some(({ type }) => holdsVolumes(type))) return found
    try {
      const volumes = await findVolumes(this.#context, this.#disks, this.#session.signal)
      return [...found, ...volumes.map(volume => ({ ...volume, disk: undefined }))]
    } catch (error) {
      if (errorCodeOf(error) !== 'E_TOOL_MISSING') throw error
      this.#session.note(
        `Volumes are not listed: ${messageOf(error)}. Install it: apt-get install guestfish guestmount`,
      )
      return found
    }
  }

  /** Mounts the file system that is meant, at `directory` or in a place of its own. Rejects as chooseFileSystem() and mountGuest(). */
  async mount(wish: GuestWish, directory?: string): Promise<GuestMount> {
    const { signal } = this.#session
    const disks = wish.volume === undefined ? [this.#onlyDisk()] : this.#disks
    const [first, ...rest] = disks
    if (first === undefined) throw new BackupError('E_NO_DISK', 'the recovery point has no disks')
    const found =
      wish.volume === undefined
        ? chooseFileSystem(await this.#look(first), wish)
        : ({
            place: { kind: 'volume', name: wish.volume },
            type: 'unknown',
            label: undefined,
            size: undefined,
          } as const)
    const where = directory ?? (await this.#makeDirectory('root'))
    this.#session.progress.report({
      kind: 'log',
      level: 'info',
      message: `reading ${placeName(found.place)} (${found.type ?? 'unknown'})`,
    })
    const request = { disks: [first, ...rest] as const, found, directory: where, isolate: wish.isolate }
    const mount = await mountGuest(this.#context, request, signal)
    this.#mounted.push(mount)
    return mount
  }

  /** The one disk as a file in `directory`. */
  async mountRaw(directory: string): Promise<{ readonly path: string; readonly ended: Promise<void> }> {
    const disk = this.#onlyDisk()
    const view = await viewDisk(this.#context, disk, { directory, name: disk.target }, this.#session.signal)
    this.#mounted.push(view)
    return { path: join(directory, disk.target), ended: view.ended }
  }

  /** So that `umount` knows that what is mounted there is ours. */
  async noteMount(directory: string): Promise<void> {
    await writeFile(join(this.#folder, MOUNT_NOTE), directory)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const mount of this.#mounted.toReversed()) await mount[Symbol.asyncDispose]()
    await this.#job[Symbol.asyncDispose]()
    await clearFolder(this.#folder)
  }

  async #look(disk: ServedDisk): Promise<readonly FoundFileSystem[]> {
    const directory = await this.#makeDirectory('disk')
    const place = { directory, name: 'disk' }
    await using _view = await viewDisk(this.#context, disk, place, this.#session.signal)
    return await findFileSystems(
      this.#context,
      { path: join(directory, 'disk'), size: disk.size },
      this.#session.signal,
    )
  }

  #onlyDisk(): ServedDisk {
    const [disk, ...others] = this.#disks
    if (disk === undefined) throw new BackupError('E_NO_DISK', 'the recovery point has no disks')
    if (others.length > 0) {
      throw new BackupError('E_USAGE', 'the recovery point has several disks', {
        hints: [`say which: POINT:${this.targets.join(', POINT:')}`],
      })
    }
    return disk
  }

  async #makeDirectory(name: string): Promise<string> {
    return await realpath(await mkdtemp(join(this.#folder, `${name}-`)))
  }
}

/**
 * An empty directory of this user to mount upon, by its real path. Rejects
 * with E_NOT_FOUND, E_USAGE, E_REFUSED.
 */
export async function mountPoint(directory: string): Promise<string> {
  const path = await realpath(directory).catch((cause: unknown) => {
    throw new BackupError('E_NOT_FOUND', `${directory} does not exist`, {
      hints: [`make it:   mkdir ${directory}`],
      cause,
    })
  })
  if (!(await lstat(path)).isDirectory()) throw new BackupError('E_USAGE', `${directory} is no directory`)
  const isEmpty = (await readdir(path)).length === 0
  if (isEmpty && (await mountedAt(path)) === undefined) return path
  throw new BackupError('E_REFUSED', `${directory} is not empty`, { hints: ['choose an empty directory'] })
}

/** Unmounts what `mount` has mounted. Rejects with E_NOT_FOUND where it is nothing of ours, E_REFUSED, E_IO. */
export async function unmountOurs(directory: string): Promise<string> {
  // A dead mount cannot be looked at; then the path is taken as it is.
  const path = await realpath(directory).catch(() => directory)
  const parent = runtimeDir()
  const names = await readdir(parent).catch(() => [])
  const notes = await Promise.all(
    names
      .filter(name => FOLDER.test(name))
      .map(name => readFile(join(parent, name, MOUNT_NOTE), 'utf8').catch(() => undefined)),
  )
  const entry = await mountedAt(path)
  if (!notes.includes(path) || entry === undefined || !entry.type.startsWith('fuse')) {
    throw new BackupError('E_NOT_FOUND', `nothing of virtvault is mounted at ${directory}`)
  }
  await unmount(path, { lazily: false })
  return path
}

/** What runs left that were killed: their mounts, then their folders. */
async function clearDeadRuns(parent: string): Promise<void> {
  for (const name of await readdir(parent)) {
    const pid = FOLDER.exec(name)?.[1]
    if (pid === undefined || isAlive(Number(pid))) continue
    const folder = join(parent, name)
    const noted = await readFile(join(folder, MOUNT_NOTE), 'utf8').catch(() => undefined)
    const left = (await mounts()).filter(({ directory, type }) => {
      return type.startsWith('fuse') && (directory.startsWith(`${folder}/`) || directory === noted)
    })
    for (const { directory } of left.toReversed()) await unmount(directory, { lazily: true }).catch(() => undefined)
    await clearFolder(folder).catch(() => undefined)
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return !(error instanceof Error && 'code' in error && error.code === 'ESRCH')
  }
}

/** Never goes into directories: one could still be a guest's file system. */
async function clearFolder(folder: string): Promise<void> {
  for (const entry of await readdir(folder, { withFileTypes: true })) {
    const path = join(folder, basename(entry.name))
    await (entry.isDirectory() ? rmdir(path) : rm(path, { force: true }))
  }
  await rmdir(folder)
}
