import { execFile } from 'node:child_process'
import { chmod, chown, rm, stat } from 'node:fs/promises'
import { promisify } from 'node:util'

import { BackupError, messageOf } from '../base/errors.js'
import type { FileOwner } from './image-writer.js'

export interface OverlaySpec {
  /** Must not exist. */
  readonly path: string
  /** The NBD export whose content it begins with. */
  readonly backing: { readonly socket: string; readonly exportName: string }
  readonly size: number
  /** Of the file; QEMU's user where that is not ours. */
  readonly owner?: FileOwner | undefined
}

/**
 * Creates a qcow2 image that reads from an NBD export what was not written to
 * it. Rejects with E_EXISTS, E_TOOL_MISSING, E_IO; then nothing is left.
 */
export async function createOverlay(spec: OverlaySpec): Promise<void> {
  if ((await stat(spec.path).catch(() => undefined)) !== undefined) {
    throw new BackupError('E_EXISTS', `${spec.path} exists`, { hints: ['choose another directory'] })
  }
  try {
    await promisify(execFile)('qemu-img', [...overlayArguments(spec)])
    await chmod(spec.path, 0o600)
    if (spec.owner !== undefined) await chown(spec.path, spec.owner.uid, spec.owner.gid)
  } catch (cause) {
    await rm(spec.path, { force: true })
    if (cause instanceof Error && 'code' in cause && cause.code === 'ENOENT') {
      throw new BackupError('E_TOOL_MISSING', 'qemu-img is not installed', {
        hints: ['install it:   apt-get install qemu-utils'],
        cause,
      })
    }
    throw new BackupError('E_IO', `cannot create the overlay ${spec.path}: ${messageOf(cause)}`, { cause })
  }
}

/** Of qemu-img, on whatever machine. */
export function overlayArguments({ backing, path, size }: OverlaySpec): readonly string[] {
  const { socket, exportName } = backing
  const below = JSON.stringify({
    driver: 'raw',
    file: { driver: 'nbd', export: exportName, server: { type: 'unix', path: socket } },
  })
  // -u: what is behind it is not opened; the size is known.
  return ['create', '-q', '-u', '-f', 'qcow2', '-F', 'raw', '-b', `json:${below}`, path, `${size}`]
}

/** Whether an image reads from another one what it has not itself; fine while a domain uses it. Rejects with E_IO. */
export async function isOverlay(path: string): Promise<boolean> {
  return (await imageInfo(path)).includes('"backing-filename"')
}

/** Whether it is an overlay on an export at this socket; not so where it is not there. Rejects with E_IO. */
export async function isOverlayOn(path: string, socket: string): Promise<boolean> {
  if ((await stat(path).catch(() => undefined)) === undefined) return false
  return (await imageInfo(path)).includes(socket)
}

async function imageInfo(path: string): Promise<string> {
  try {
    return (await promisify(execFile)('qemu-img', ['info', '-U', '--output=json', path])).stdout
  } catch (cause) {
    throw new BackupError('E_IO', `cannot look at ${path}: ${messageOf(cause)}`, { cause })
  }
}
