import { join } from 'node:path'

import { BackupError, errorCodeOf } from '../base/errors.js'
import type { FoundFileSystem } from '../model/file-system.js'
import type { FilesContext, ServedDisk } from './disk-view.js'
import { viewPart } from './disk-view.js'
import { FuseMount } from './fuse-mount.js'
import { runTool } from './tool.js'

const APPLIANCE_HINT = 'or read it inside the appliance of libguestfs: apt-get install guestmount'

/** A file system of the guest, mounted read-only by a program in user space. Disposing it unmounts all that is behind it. */
export interface GuestMount extends AsyncDisposable {
  readonly directory: string
  /** What parses the guest's bytes. */
  readonly tool: 'fuse2fs' | 'ntfs-3g' | 'guestmount'
  /** Resolves when it was unmounted, by whomever. */
  readonly ended: Promise<void>
}

export interface GuestMountRequest {
  /** In the order in which the appliance sees them; the first has the partition. */
  readonly disks: readonly [ServedDisk, ...ServedDisk[]]
  readonly found: FoundFileSystem
  /** An empty directory; an absolute path without links in it. */
  readonly directory: string
  /** Only in the appliance, whatever there is. */
  readonly isolate: boolean
}

/**
 * Mounts a file system of a guest, read-only; the kernel of this host never
 * sees its bytes. ext and NTFS are read by a program on this host, where that
 * is installed; all else by a virtual machine of libguestfs. Rejects with
 * E_TOOL_MISSING and as FuseMount.start(); then nothing is left.
 */
export async function mountGuest(
  context: FilesContext,
  request: GuestMountRequest,
  signal: AbortSignal,
): Promise<GuestMount> {
  const reader = request.isolate ? undefined : readerOf(request.found)
  if (reader === undefined) return await mountInAppliance(context, request, signal)
  try {
    return await mountHere(context, request, { reader, signal })
  } catch (error) {
    if (errorCodeOf(error) !== 'E_TOOL_MISSING') throw error
    try {
      return await mountInAppliance(context, request, signal)
    } catch (second) {
      if (errorCodeOf(second) !== 'E_TOOL_MISSING' || !(error instanceof BackupError)) throw second
      throw new BackupError('E_TOOL_MISSING', error.message, { hints: [...error.hints, APPLIANCE_HINT], cause: second })
    }
  }
}

/** Names of volumes that the appliance finds on these disks. Rejects with E_TOOL_MISSING, E_IO. */
export async function findVolumes(
  context: FilesContext,
  disks: readonly ServedDisk[],
  signal: AbortSignal,
): Promise<readonly FoundFileSystem[]> {
  const args = ['--ro', ...driveArguments(disks), 'run', ':', 'list-filesystems']
  const { exit, stdout, stderr } = await runTool('guestfish', args, { env: context.env, signal })
  if (exit !== 0) throw applianceFailed(stderr)
  return stdout.split('\n').flatMap(line => {
    const [, name, type] =
      /^\/dev\/(md\w+|(?:mapper\/)?[\w.+-]+\/[\w.+-]+|mapper\/[\w.+-]+): ([\w-]+)$/.exec(line) ?? []
    if (name === undefined) return []
    return [
      {
        place: { kind: 'volume', name },
        type: type === 'unknown' ? undefined : type,
        label: undefined,
        size: undefined,
      },
    ]
  })
}

type Reader = 'fuse2fs' | 'ntfs-3g'

function readerOf({ type, place }: FoundFileSystem): Reader | undefined {
  if (place.kind === 'volume') return undefined
  if (type === 'ntfs') return 'ntfs-3g'
  return type === 'ext2' || type === 'ext3' || type === 'ext4' ? 'fuse2fs' : undefined
}

async function mountHere(
  context: FilesContext,
  { disks: [disk], found: { place }, directory }: GuestMountRequest,
  { reader, signal }: { readonly reader: Reader; readonly signal: AbortSignal },
): Promise<GuestMount> {
  const behind = await context.makeDirectory('part')
  const part = place.kind === 'partition' ? place : { offset: 0, length: disk.size }
  const view = await viewPart(context, disk, { directory: behind, name: 'part', ...part }, signal)
  try {
    const file = join(behind, 'part')
    if (reader === 'fuse2fs') await replayJournal(context, file, signal)
    const args =
      reader === 'fuse2fs'
        ? // fakeroot: all files of the guest are the reader's to see, as in an image.
          ['-f', '-o', 'ro,fakeroot,use_ino,nosuid,nodev', file, directory]
        : // umask: it lets everybody in otherwise. streams_interface: a stream is no file.
          ['-o', 'ro,no_detach,umask=077,streams_interface=none,nosuid,nodev', file, directory]
    const mount = await FuseMount.start({ tool: reader, args, directory, env: context.env }, signal)
    return {
      directory,
      tool: reader,
      ended: mount.ended,
      [Symbol.asyncDispose]: async () => {
        await mount[Symbol.asyncDispose]()
        await view[Symbol.asyncDispose]()
      },
    }
  } catch (error) {
    await view[Symbol.asyncDispose]()
    throw error
  }
}

/** What a running guest had written to its journal alone is part of its files. */
async function replayJournal({ env }: FilesContext, file: string, signal: AbortSignal): Promise<void> {
  const { exit, stdout, stderr } = await runTool('e2fsck', ['-E', 'journal_only', '-p', file], { env, signal })
  // 1: it changed something.
  if (exit > 1) {
    throw new BackupError('E_IO', 'the journal of the file system could not be replayed', {
      why: `${stdout}${stderr}`.trim().split('\n').slice(-4).join('\n'),
      hints: ['--isolate lets the appliance of libguestfs try'],
    })
  }
}

async function mountInAppliance(
  context: FilesContext,
  { disks, found, directory }: GuestMountRequest,
  signal: AbortSignal,
): Promise<GuestMount> {
  const { place } = found
  const device = place.kind === 'volume' ? place.name : place.kind === 'partition' ? `sda${place.number}` : 'sda'
  const args = ['--ro', ...driveArguments(disks), '-m', `/dev/${device}`, '--no-fork', directory]
  const mount = await FuseMount.start({ tool: 'guestmount', args, directory, env: context.env }, signal).catch(
    (error: unknown) => {
      throw errorCodeOf(error) === 'E_IO' && error instanceof BackupError ? applianceFailed(error.why ?? '') : error
    },
  )
  return {
    directory,
    tool: 'guestmount',
    ended: mount.ended,
    [Symbol.asyncDispose]: () => mount[Symbol.asyncDispose](),
  }
}

function driveArguments(disks: readonly ServedDisk[]): string[] {
  return disks.flatMap(disk => ['--format=raw', '-a', applianceUri(disk)])
}

/** libguestfs knows this one scheme, with a socket in it or not. */
function applianceUri({ socket, exportName }: ServedDisk): string {
  return `nbd:///${encodeURIComponent(exportName)}?socket=${encodeURIComponent(socket)}`
}

function applianceFailed(words: string): BackupError {
  return new BackupError('E_IO', 'the appliance of libguestfs could not read it', {
    why: words.trim().split('\n').slice(-4).join('\n'),
    hints: ['see whether the appliance works at all: libguestfs-test-tool'],
  })
}
