import { join } from 'node:path'

import { BackupError } from '../base/errors.js'
import type { FoundFileSystem } from '../model/file-system.js'
import { FuseMount } from './fuse-mount.js'
import { runTool } from './tool.js'

/** One disk as our own NBD server has it. */
export interface ServedDisk {
  readonly target: string
  readonly size: number
  readonly socket: string
  readonly exportName: string
}

export interface FilesContext {
  /** A directory that only this user can enter; mounts are made in it. */
  readonly folder: string
  readonly env: NodeJS.ProcessEnv
  /** Makes an empty directory in `folder`, or takes it away again. */
  readonly makeDirectory: (name: string) => Promise<string>
}

/** Partitions that hold others. */
const EXTENDED = new Set(['0x5', '0xf', '0x85'])
const SECTOR_BYTES = 512
const MAX_PARTITIONS = 256

/**
 * A disk as a file, read-only: `nbdfuse` for programs that know files alone.
 * Rejects as FuseMount.start().
 */
export async function viewDisk(
  context: FilesContext,
  disk: ServedDisk,
  place: { readonly directory: string; readonly name: string },
  signal: AbortSignal,
): Promise<FuseMount> {
  const { directory, name } = place
  const args = ['--readonly', join(directory, name), exportUri(disk)]
  return await FuseMount.start({ tool: 'nbdfuse', args, directory, env: context.env }, signal)
}

/**
 * A part of a disk as a file that can be written to, for the replay of a
 * journal. What is written goes to a temporary file and vanishes with it.
 * Rejects as FuseMount.start().
 */
export async function viewPart(
  context: FilesContext,
  disk: ServedDisk,
  place: { readonly directory: string; readonly name: string; readonly offset: number; readonly length: number },
  signal: AbortSignal,
): Promise<FuseMount> {
  const { directory, name, offset, length } = place
  const server = ['nbdkit', '--exit-with-parent', '--filter=cow', '--filter=offset', 'nbd']
  const source = [`socket=${disk.socket}`, `export=${disk.exportName}`, `offset=${offset}`, `range=${length}`]
  const args = [join(directory, name), '[', ...server, ...source, ']']
  return await FuseMount.start({ tool: 'nbdfuse', args, directory, env: context.env }, signal)
}

/** As libnbd reads it. */
function exportUri({ socket, exportName }: ServedDisk): string {
  return `nbd+unix:///${encodeURIComponent(exportName)}?socket=${encodeURIComponent(socket)}`
}

/**
 * The file systems on a disk, by its partition table if it has one. Bytes of
 * the guest are parsed by partx and blkid. Rejects as runTool(), E_IO.
 */
export async function findFileSystems(
  context: FilesContext,
  file: { readonly path: string; readonly size: number },
  signal: AbortSignal,
): Promise<readonly FoundFileSystem[]> {
  const { env } = context
  const whole = await probe(context, file.path, undefined, signal)
  const found: FoundFileSystem[] = []
  if (whole.type !== undefined) {
    found.push({ place: { kind: 'disk' }, type: whole.type, label: whole.label, size: file.size })
  }
  if (!whole.hasPartitions) return found
  const columns = 'NR,START,SECTORS,TYPE'
  const { exit, stdout, stderr } = await runTool('partx', ['-g', '-r', '-o', columns, file.path], { env, signal })
  if (exit !== 0) throw new BackupError('E_IO', 'the partition table could not be read', { why: stderr.trim() })
  for (const line of stdout.split('\n').slice(0, MAX_PARTITIONS)) {
    const [nr, start, sectors, kind = ''] = line.split(' ')
    const number = Number(nr)
    const [offset, length] = [Number(start) * SECTOR_BYTES, Number(sectors) * SECTOR_BYTES]
    if (line === '' || !Number.isSafeInteger(number) || !(length > 0) || EXTENDED.has(kind)) continue
    // What the table claims to lie beyond the disk is not there.
    const isThere = offset <= file.size && length <= file.size - offset
    const { type, label } = isThere ? await probe(context, file.path, { offset, length }, signal) : NOTHING
    found.push({ place: { kind: 'partition', number, offset, length }, type, label, size: length })
  }
  return found
}

interface Probed {
  readonly type: string | undefined
  readonly label: string | undefined
  readonly hasPartitions: boolean
}

const NOTHING: Probed = { type: undefined, label: undefined, hasPartitions: false }
/** blkid's answers for "nothing known" and "could be several things". */
const NOTHING_FOUND = 2
const AMBIVALENT = 8

async function probe(
  { env }: FilesContext,
  path: string,
  part: { readonly offset: number; readonly length: number } | undefined,
  signal: AbortSignal,
): Promise<Probed> {
  const where = part === undefined ? [] : ['-O', `${part.offset}`, '-S', `${part.length}`]
  // This form escapes what a hostile label could hold, newlines above all.
  const { exit, stdout, stderr } = await runTool('blkid', ['-p', '-o', 'udev', ...where, path], { env, signal })
  if (exit === NOTHING_FOUND || exit === AMBIVALENT) return NOTHING
  if (exit !== 0) throw new BackupError('E_IO', 'blkid could not look at the disk', { why: stderr.trim() })
  const fields = new Map(
    stdout.split('\n').map(line => [line.slice(0, line.indexOf('=')), line.slice(line.indexOf('=') + 1)]),
  )
  return {
    type: fields.get('ID_FS_TYPE'),
    label: decodeLabel(fields.get('ID_FS_LABEL_ENC')),
    hasPartitions: fields.has('ID_PART_TABLE_TYPE'),
  }
}

function decodeLabel(text: string | undefined): string | undefined {
  if (text === undefined) return undefined
  const bytes = text.replace(/\\x([0-9a-f]{2})/g, (_, digits: string) =>
    String.fromCharCode(Number.parseInt(digits, 16)),
  )
  // blkid escapes bytes, so what is above 0x7f is UTF-8 taken apart, or not escaped at all.
  return /[^\0-\xff]/.test(bytes) ? bytes : Buffer.from(bytes, 'latin1').toString()
}
