import { execFile } from 'node:child_process'
import { stat } from 'node:fs/promises'
import { promisify } from 'node:util'

import { BackupError, messageOf } from '../base/errors.js'
import type { SshLink } from './ssh-link.js'
import { DAEMON_WORDS, StorageDaemon } from './storage-daemon.js'

const TOOL_TIMEOUT_MS = 60_000
const MAX_ANSWER_BYTES = 16 * 1024 * 1024
/** What a shell ends with where there is no such program, and what ssh ends with where it does not get through. */
const NO_SUCH_PROGRAM = 127
const NOT_CONNECTED = 255
/** A keeper whose connection was cut looks every second; see remote-program.ts. */
const CUT_OFF_LINGER_MS = 5_000

/** QEMU's own programs for images, on the machine where the images are. */
export interface ImageTools {
  /**
   * Runs qemu-img on the image at `path` and gives its standard output. Rejects
   * with E_DOMAIN_BUSY where the image is in use, E_TOOL_MISSING, E_IO,
   * E_UNREACHABLE.
   */
  qemuImg(path: string, args: readonly string[], signal?: AbortSignal): Promise<string>
  /** Rejects with E_IO where nothing is there. */
  isBlockDevice(path: string): Promise<boolean>
  /** Starts a qemu-storage-daemon, which ends with us. Rejects with E_TOOL_MISSING, E_IO, E_TIMEOUT, E_UNREACHABLE. */
  startDaemon(): Promise<StorageDaemon>
  /** For how long a daemon of ours that died with its process or connection may hold its locks. */
  readonly lingerMs: number
}

/** Of this machine. */
export const LOCAL_IMAGES: ImageTools = {
  qemuImg: async (path, args, signal) => {
    try {
      const limits = { timeout: TOOL_TIMEOUT_MS, maxBuffer: MAX_ANSWER_BYTES }
      const options = signal === undefined ? limits : { ...limits, signal }
      return (await promisify(execFile)('qemu-img', [...args], options)).stdout
    } catch (error) {
      signal?.throwIfAborted()
      if (error instanceof Error && 'code' in error && error.code === 'ENOENT') throw noQemuImg(undefined, error)
      throw toolFailure(path, error instanceof Error && 'stderr' in error ? String(error.stderr) : messageOf(error))
    }
  },
  isBlockDevice: async path => {
    try {
      return (await stat(path)).isBlockDevice()
    } catch (error) {
      throw new BackupError('E_IO', `${path} cannot be looked at: ${messageOf(error)}`, { cause: error })
    }
  },
  startDaemon: () => StorageDaemon.start(),
  lingerMs: 0,
}

const QEMU_IMG = 'exec qemu-img "$@"'

/** Of the machine at the other end of `link`, as the user who logs in there. */
export function sshImages(link: SshLink): ImageTools {
  return {
    qemuImg: async (path, args, signal) => {
      const { code, stdout, stderr } = await link.run(QEMU_IMG, args, signal)
      signal?.throwIfAborted()
      if (code === 0) return stdout.toString()
      throw code === NO_SUCH_PROGRAM ? noQemuImg(link.host, undefined) : toolFailure(path, stderr)
    },
    isBlockDevice: async path => {
      const { code } = await link.run('[ -b "$1" ] && exit 0; [ -e "$1" ] && exit 1; exit 2', [path])
      if (code < 2) return code === 0
      throw new BackupError('E_IO', `${path} cannot be looked at on ${link.host}: there is nothing, or nothing for us`)
    },
    startDaemon: async () =>
      await StorageDaemon.start({
        process: await link.start(DAEMON_WORDS),
        host: link.host,
        explain: code =>
          code === NOT_CONNECTED
            ? new BackupError('E_UNREACHABLE', `${link.host}: the ssh connection was lost`, {
                why: 'what served the disks over there ended with it',
              })
            : undefined,
      }),
    lingerMs: CUT_OFF_LINGER_MS,
  }
}

function noQemuImg(host: string | undefined, cause: unknown): BackupError {
  return new BackupError('E_TOOL_MISSING', `qemu-img is not installed${host === undefined ? '' : ` on ${host}`}`, {
    hints: [`Debian and Ubuntu have it in qemu-utils, Fedora and RHEL in qemu-img`],
    cause,
  })
}

/** QEMU's tools have one exit code, and speak English in every locale. */
function toolFailure(path: string, text: string): BackupError {
  const said = text.trim()
  const busy = inUse(path, said, undefined)
  if (busy !== undefined) return busy
  const hints = [
    'images of a domain that is off are opened as the user of virtvault, or of its ssh connection: let that be root',
    'or let the domain be started, paused, for the pull:   --start-paused',
  ]
  const isDenied = said.includes('Permission denied')
  return new BackupError('E_IO', `qemu-img cannot work on ${path}`, { why: said, hints: isDenied ? hints : [] })
}

/** What QEMU's words mean where another process has the image open; undefined where they say something else. */
export function inUse(path: string, said: string, cause: unknown): BackupError | undefined {
  if (!/Failed to get .* lock/.test(said)) return undefined
  return new BackupError('E_DOMAIN_BUSY', `${path} is in use`, {
    why: said.split('\n')[0] ?? said,
    hints: ['a domain runs on it, or another program has it open'],
    cause,
  })
}
