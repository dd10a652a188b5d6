import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { setTimeout as delay } from 'node:timers/promises'
import { promisify } from 'node:util'

import { throwIfAborted } from '../base/async.js'
import { BackupError } from '../base/errors.js'
import { mountedAt } from './mount-table.js'
import { type Tool, toolEnvironment, toolMissing } from './tool.js'

const LOOK_AGAIN_MS = 20
/** Booting an emulated appliance takes half a minute. */
const MOUNT_TIMEOUT_MS = 300_000
/** A file system that is no longer used ends at once. */
const END_TIMEOUT_MS = 10_000
const KEPT_COMPLAINTS = 4000

export interface FuseCommand {
  readonly tool: Tool
  readonly args: readonly string[]
  /** Where it will mount; an absolute path without links in it. */
  readonly directory: string
  readonly env: NodeJS.ProcessEnv
}

/**
 * A FUSE file system served by a program of its own, which parses what the
 * guest wrote. It is in a session of its own, so that Ctrl-C is ours alone, and
 * ends with this process however that ends (setpriv --pdeathsig). Disposing it
 * unmounts, also where somebody still looks.
 *
 * Nobody in this process may look into `directory`: the answer could need the
 * thread that waits for it.
 */
export class FuseMount implements AsyncDisposable {
  readonly directory: string
  /** Resolves when the program has ended: unmounted by us or by somebody else. */
  readonly ended: Promise<void>
  readonly #child: ChildProcess
  #complaints = ''

  private constructor(child: ChildProcess, directory: string) {
    this.#child = child
    this.directory = directory
    this.ended = once(child, 'exit').then(() => undefined)
    const keep = (text: Buffer) => (this.#complaints = `${this.#complaints}${text.toString()}`.slice(-KEPT_COMPLAINTS))
    child.stderr?.on('data', keep)
    child.stdout?.on('data', keep)
  }

  /**
   * Mounted, and closed to devices and set-id programs, when it resolves.
   * Rejects with E_TOOL_MISSING, E_UNSUPPORTED where there is no FUSE, E_IO
   * with the program's words, E_TIMEOUT; then nothing is left.
   */
  static async start(command: FuseCommand, signal: AbortSignal): Promise<FuseMount> {
    const { tool, args, directory } = command
    throwIfAborted(signal)
    const child = spawn('setpriv', ['--pdeathsig', 'TERM', tool, ...args], {
      detached: true,
      stdio: ['ignore', 'pipe', 'pipe'],
      env: toolEnvironment(command.env),
    })
    const mount = new FuseMount(child, directory)
    try {
      await once(child, 'spawn').catch(() => {
        throw new BackupError('E_TOOL_MISSING', 'setpriv is not installed', { hints: ['it is in util-linux'] })
      })
      await mount.#untilMounted(tool, signal)
      return mount
    } catch (error) {
      await mount[Symbol.asyncDispose]()
      throw error
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const isMounted = (await mountedAt(this.directory)) !== undefined
    if (isMounted) await unmount(this.directory, { lazily: true }).catch(() => undefined)
    else this.#child.kill('SIGTERM')
    if (await this.#endsWithin(END_TIMEOUT_MS)) return
    this.#child.kill('SIGKILL')
    await this.ended
    if ((await mountedAt(this.directory)) !== undefined) await unmount(this.directory, { lazily: true })
  }

  async #untilMounted(tool: Tool, signal: AbortSignal): Promise<void> {
    const late = AbortSignal.timeout(MOUNT_TIMEOUT_MS)
    for (;;) {
      const entry = await mountedAt(this.directory)
      if (entry !== undefined) {
        if (entry.options.has('nodev') && entry.options.has('nosuid')) return
        throw new BackupError('E_UNSUPPORTED', `${tool} mounts with devices and set-id programs: refused`)
      }
      if (this.#hasEnded()) throw this.#failure(tool)
      throwIfAborted(signal)
      if (late.aborted)
        throw new BackupError('E_TIMEOUT', `${tool} did not mount within ${MOUNT_TIMEOUT_MS / 60_000} minutes`)
      await Promise.race([delay(LOOK_AGAIN_MS), this.ended])
    }
  }

  #failure(tool: Tool): BackupError {
    if (this.#child.exitCode === 127) return toolMissing(tool)
    const why = this.#complaints.trim().split('\n').slice(-6).join('\n')
    if (/\/dev\/fuse|fuse: device not found|fusermount/.test(why)) {
      return new BackupError('E_UNSUPPORTED', 'this machine does not let us use FUSE', {
        why,
        hints: [
          'it needs /dev/fuse, and for other users than root the package fuse3',
          'a container needs the device /dev/fuse and the capability SYS_ADMIN',
        ],
      })
    }
    return new BackupError('E_IO', `${tool} could not mount it`, { why: why === '' ? undefined : why })
  }

  #hasEnded(): boolean {
    return this.#child.exitCode !== null || this.#child.signalCode !== null
  }

  async #endsWithin(milliseconds: number): Promise<boolean> {
    if (this.#hasEnded() || this.#child.pid === undefined) return true
    const timer = new AbortController()
    const late = delay(milliseconds, false, { signal: timer.signal }).catch(() => false)
    const isOver = await Promise.race([this.ended.then(() => true), late])
    timer.abort()
    return isOver
  }
}

/**
 * Unmounts a FUSE file system. Rejects with E_REFUSED where it is in use,
 * unless `lazily`, and E_IO.
 */
export async function unmount(directory: string, { lazily }: { readonly lazily: boolean }): Promise<void> {
  const ways: readonly (readonly [string, ...string[]])[] = [
    ['fusermount3', '-u', ...(lazily ? ['-z'] : []), directory],
    ['fusermount', '-u', ...(lazily ? ['-z'] : []), directory],
    ['umount', ...(lazily ? ['-l'] : []), directory],
  ]
  let words = ''
  for (const [program, ...args] of ways) {
    try {
      await promisify(execFile)(program, args)
      return
    } catch (cause) {
      const { code, stderr } = Object.assign({ code: undefined, stderr: '' }, cause)
      if (code !== 'ENOENT') words = stderr.trim()
    }
    // Somebody was faster.
    if ((await mountedAt(directory)) === undefined) return
  }
  if (/busy/i.test(words)) {
    throw new BackupError('E_REFUSED', `${directory} is in use`, { hints: [`see by whom: fuser -vm ${directory}`] })
  }
  throw new BackupError('E_IO', `cannot unmount ${directory}`, { why: words === '' ? undefined : words })
}
