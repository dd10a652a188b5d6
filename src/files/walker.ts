import { basename, dirname, resolve } from 'node:path'
import { lstat, stat } from 'node:fs/promises'

import { BackupError } from '../base/errors.js'
import { type CopyOptions, type CopyReport, type CopyTally, TreeCopy } from './copy-tree.js'
import { entryOf, type GuestEntry } from './guest-entry.js'
import { locate, OpenDirectory } from './open-directory.js'

/** So many are sorted by name; more are given as they come. */
const MAX_SORTED = 100_000
const PIPE_BYTES = 1024 * 1024

/** What the walker is asked to do in the tree that is mounted at `root`. */
export type WalkOrder =
  | { readonly kind: 'list'; readonly root: string; readonly path: readonly string[] }
  /** To the standard output. */
  | { readonly kind: 'print'; readonly root: string; readonly path: readonly string[] }
  | {
      readonly kind: 'copy'
      readonly root: string
      readonly paths: readonly (readonly string[])[]
      readonly destination: string
      readonly options: CopyOptions
    }

/** What it says, one JSON line each. The last is `done` or `error`. */
export type WalkAnswer =
  | { readonly kind: 'entry'; readonly entry: GuestEntry }
  | CopyReport
  | { readonly kind: 'done'; readonly tally?: CopyTally | undefined; readonly bytes?: number | undefined }
  | {
      readonly kind: 'error'
      readonly code: string
      readonly message: string
      readonly why?: string | undefined
      readonly hints: readonly string[]
    }

/** The entries of a directory, or the one entry that a path names. Rejects with E_NOT_FOUND. */
export async function* listEntries(order: WalkOrder & { readonly kind: 'list' }): AsyncGenerator<GuestEntry> {
  await using found = await locate(order.root, order.path)
  const { parent, name } = found
  if (name !== undefined && !(await parent.stat(name)).isDirectory()) {
    yield await describe(parent, name)
    return
  }
  await using opened = name === undefined ? undefined : await parent.directory(name)
  const directory = opened ?? parent
  const names: Buffer[] = []
  for await (const each of directory.names()) {
    names.push(each)
    if (names.length < MAX_SORTED) continue
    for (const late of names.splice(0)) yield await describe(directory, late)
  }
  names.sort((a, b) => a.compare(b))
  for (const each of names) yield await describe(directory, each)
}

/** The bytes of one file. Rejects with E_NOT_FOUND, E_USAGE for what is no file. */
export async function* readBytes(order: WalkOrder & { readonly kind: 'print' }): AsyncGenerator<Buffer> {
  await using found = await locate(order.root, order.path)
  const { parent, name } = found
  if (name === undefined || !(await parent.stat(name)).isFile()) {
    throw new BackupError('E_USAGE', `/${order.path.join('/')} is no file`, {
      hints: ['only a file goes to the standard output'],
    })
  }
  const file = await parent.file(name)
  try {
    const { size } = await file.stat()
    let at = 0
    for (;;) {
      const { bytesRead, buffer } = await file.read(Buffer.allocUnsafe(PIPE_BYTES), 0, PIPE_BYTES, at)
      if (bytesRead === 0) break
      yield buffer.subarray(0, bytesRead)
      at += bytesRead
    }
    if (at !== size) throw new BackupError('E_IO', `the file gave ${at} of its ${size} bytes`)
  } finally {
    await file.close()
  }
}

/**
 * Copies files and trees as cp does: into `destination` where that is a
 * directory, else to that name. Rejects with E_NOT_FOUND, E_USAGE, E_EXISTS,
 * E_NO_SPACE, E_INTERRUPTED.
 */
export async function copyPaths(
  order: WalkOrder & { readonly kind: 'copy' },
  report: (report: CopyReport) => void,
  signal: AbortSignal,
): Promise<CopyTally> {
  const { root, paths, options } = order
  const destination = resolve(order.destination)
  const copy = new TreeCopy(options, report, signal)
  const isInto = await isDirectory(destination)
  if (!isInto && paths.length > 1) throw new BackupError('E_USAGE', `${destination} is no directory`)
  await using into = await openDestination(isInto ? destination : dirname(destination))
  for (const path of paths) {
    await using found = await locate(root, path)
    const { parent, name } = found
    const asked = path.at(-1)
    if (name === undefined) {
      // The root of the file system, or of a directory that a link named.
      if (isInto) await copy.copyContents(parent, into)
      else
        throw new BackupError('E_NOT_FOUND', `${destination} does not exist`, {
          hints: [`make it:   mkdir ${destination}`],
        })
      continue
    }
    const newName = isInto ? Buffer.from(asked ?? '') : Buffer.from(basename(destination))
    await copy.copy({ from: parent, name }, { to: into, name: newName })
  }
  return copy.tally
}

async function openDestination(path: string): Promise<OpenDirectory> {
  return await OpenDirectory.at(path).catch((cause: unknown) => {
    throw new BackupError('E_NOT_FOUND', `${path} is no directory`, { hints: [`make it:   mkdir -p ${path}`], cause })
  })
}

async function isDirectory(path: string): Promise<boolean> {
  const isThere = await lstat(path).then(
    () => true,
    () => false,
  )
  return isThere && (await stat(path).catch(() => undefined))?.isDirectory() === true
}

async function describe(directory: OpenDirectory, name: Buffer): Promise<GuestEntry> {
  const stats = await directory.stat(name)
  const target = stats.isSymbolicLink() ? await directory.link(name) : undefined
  return entryOf(name, stats, target)
}
