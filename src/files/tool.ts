import { execFile } from 'node:child_process'
import { promisify } from 'node:util'

import { BackupError, messageOf } from '../base/errors.js'

/** Each program that file access may start, and the Debian package that has it. */
const PACKAGES = {
  nbdfuse: 'libnbd-bin',
  nbdkit: 'nbdkit',
  partx: 'util-linux',
  blkid: 'util-linux',
  e2fsck: 'e2fsprogs',
  fuse2fs: 'fuse2fs',
  'ntfs-3g': 'ntfs-3g',
  guestmount: 'guestmount',
  guestfish: 'guestfish',
} as const

export type Tool = keyof typeof PACKAGES

const OUTPUT_BYTES = 4 * 1024 * 1024
/** An appliance that is emulated boots in half a minute here; more means that it hangs. */
const TIMEOUT_MS = 300_000

export interface ToolResult {
  readonly exit: number
  readonly stdout: string
  readonly stderr: string
}

/** Runs a program to its end. Rejects with E_TOOL_MISSING, E_TIMEOUT, E_INTERRUPTED, E_IO where it was killed. */
export async function runTool(
  tool: Tool,
  args: readonly string[],
  where: { readonly env: NodeJS.ProcessEnv; readonly signal: AbortSignal },
): Promise<ToolResult> {
  const options = {
    env: toolEnvironment(where.env),
    signal: where.signal,
    maxBuffer: OUTPUT_BYTES,
    timeout: TIMEOUT_MS,
  }
  try {
    const { stdout, stderr } = await promisify(execFile)(tool, [...args], options)
    return { exit: 0, stdout, stderr }
  } catch (cause) {
    const { code, killed, stdout, stderr } = Object.assign(
      { code: undefined, killed: false, stdout: '', stderr: '' },
      cause,
    )
    if (typeof code === 'number') return { exit: code, stdout, stderr }
    if (code === 'ENOENT') throw toolMissing(tool)
    if (where.signal.aborted) throw new BackupError('E_INTERRUPTED', `${tool} was interrupted`, { cause })
    if (killed)
      throw new BackupError('E_TIMEOUT', `${tool} did not end within ${TIMEOUT_MS / 60_000} minutes`, { cause })
    throw new BackupError('E_IO', `${tool} failed: ${messageOf(cause)}`, { cause })
  }
}

/** Says which package to install; `also` names other ways out. */
export function toolMissing(tool: Tool, also: readonly string[] = []): BackupError {
  return new BackupError('E_TOOL_MISSING', `${tool} is not installed`, {
    hints: [`install it:   apt-get install ${PACKAGES[tool]}`, ...also],
  })
}

/** Their words are parsed, and system programs may lie outside of a user's path. */
export function toolEnvironment(env: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  return {
    ...env,
    LC_ALL: 'C.UTF-8',
    PATH: `${env['PATH'] ?? '/usr/local/bin:/usr/bin:/bin'}:/usr/sbin:/sbin`,
    // libvirt would need rights of its own for the appliance's disks.
    LIBGUESTFS_BACKEND: env['LIBGUESTFS_BACKEND'] ?? 'direct',
  }
}
