import { type ChildProcess, spawn } from 'node:child_process'
import { rm, stat } from 'node:fs/promises'

import { throwIfAborted } from '../base/async.js'
import { type Clock, systemClock } from '../base/clock.js'
import { BackupError, messageOf } from '../base/errors.js'

/** An image of this machine to be served. */
export interface ServedImage {
  readonly path: string
  /** Never probed: a guest could write any header into a raw disk. */
  readonly format: string
  readonly isBlockDevice: boolean
  readonly exportName: string
  /** A dirty bitmap in the image, as `qemu:dirty-bitmap:NAME`. */
  readonly bitmap?: string | undefined
  readonly writable: boolean
  /** Absolute, at most 107 bytes, in a directory that only we may enter. What is there is replaced. */
  readonly socket: string
}

const MAX_CLIENTS = 16
const POLL_MS = 10
const START_TIMEOUT_MS = 30_000
/** A qemu-nbd whose client was killed a moment ago still saves its bitmaps. */
const LOCK_PATIENCE_MS = 5_000
const LOCK_RETRY_MS = 100
const STOP_TIMEOUT_MS = 60_000
const MAX_STDERR_CHARS = 4_000

/**
 * A qemu-nbd that serves one image, as long as somebody is connected.
 *
 * It ends by itself when the last connection does, and by SIGTERM when this
 * process dies, in both cases in order: what was written is in the image, and
 * dirty bitmaps are saved. QEMU's image lock keeps a domain from starting meanwhile.
 */
export class QemuNbd implements AsyncDisposable {
  readonly socket: string
  readonly #child: ChildProcess
  readonly #ended: Promise<number | undefined>
  readonly #clock: Clock
  #stderr = ''

  private constructor(image: ServedImage, clock: Clock) {
    this.socket = image.socket
    this.#clock = clock
    // Between our start and the first connection only the parent-death signal ends it.
    this.#child = spawn('setpriv', ['--pdeathsig', 'TERM', '--', 'qemu-nbd', ...argumentsFor(image)], {
      stdio: ['ignore', 'ignore', 'pipe'],
    })
    this.#child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      if (this.#stderr.length < MAX_STDERR_CHARS) this.#stderr += text
    })
    this.#ended = new Promise(done => {
      this.#child.once('error', error => {
        this.#stderr += messageOf(error)
        done(undefined)
      })
      this.#child.once('close', code => done(code ?? undefined))
    })
  }

  /**
   * Resolves when it can be connected to. Rejects with E_DOMAIN_BUSY where
   * another process has the image in use, E_TOOL_MISSING, E_NBD (no such
   * bitmap, image that cannot be opened), E_TIMEOUT.
   */
  static async start(image: ServedImage, signal: AbortSignal, clock: Clock = systemClock): Promise<QemuNbd> {
    const patience = clock.monotonic() + LOCK_PATIENCE_MS
    for (;;) {
      throwIfAborted(signal)
      await rm(`${image.socket}.pid`, { force: true })
      const server = new QemuNbd(image, clock)
      try {
        await server.#listening(signal)
        return server
      } catch (error) {
        await server[Symbol.asyncDispose]()
        throwIfAborted(signal)
        if (!/\block\b/i.test(server.#stderr)) throw error
        if (clock.monotonic() > patience) throw inUse(image.path, server.#stderr)
        await clock.sleep(LOCK_RETRY_MS, signal)
      }
    }
  }

  /** Ends it and waits until the image is closed. Rejects with E_IO where it did not end in order: then writes may be lost. */
  async stop(): Promise<void> {
    this.#child.kill('SIGTERM')
    const enough = new AbortController()
    const late = this.#clock.sleep(STOP_TIMEOUT_MS, enough.signal).then(
      () => 'late' as const,
      () => undefined,
    )
    const code = await Promise.race([this.#ended, late])
    enough.abort()
    if (code === 0) return
    throw new BackupError('E_IO', 'qemu-nbd did not close the image in order', {
      why: code === 'late' ? `it still runs after ${STOP_TIMEOUT_MS / 1000} s` : this.#stderr.trim(),
    })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.kill('SIGTERM')
    await this.#ended
    await rm(this.socket, { force: true })
    await rm(`${this.socket}.pid`, { force: true })
  }

  /** The pid file is written once it listens. */
  async #listening(signal: AbortSignal): Promise<void> {
    const deadline = this.#clock.monotonic() + START_TIMEOUT_MS
    let isOver = false
    void this.#ended.then(() => (isOver = true))
    for (;;) {
      if (isDone(isOver)) throw didNotStart(this.#stderr)
      if ((await stat(`${this.socket}.pid`).catch(() => undefined)) !== undefined) return
      if (this.#clock.monotonic() > deadline) throw new BackupError('E_TIMEOUT', 'qemu-nbd does not listen')
      await this.#clock.sleep(POLL_MS, signal)
    }
  }
}

/** Changed behind the compiler's back. */
function isDone(flag: boolean): boolean {
  return flag
}

function argumentsFor(image: ServedImage): readonly string[] {
  return [`--socket=${image.socket}`, `--pid-file=${image.socket}.pid`, ...servingArguments(image)]
}

/** Of qemu-nbd, on whatever machine: all but where it listens. */
export function servingArguments(image: Omit<ServedImage, 'socket'>): readonly string[] {
  return [
    `--shared=${MAX_CLIENTS}`,
    `--export-name=${image.exportName}`,
    '--discard=unmap',
    ...(image.writable ? [] : ['--read-only']),
    ...(image.bitmap === undefined ? [] : [`--bitmap=${image.bitmap}`]),
    '--image-opts',
    // Options, not a name: a path with a colon would be taken for a protocol.
    [
      `driver=${escaped(image.format)}`,
      `file.driver=${image.isBlockDevice ? 'host_device' : 'file'}`,
      `file.filename=${escaped(image.path)}`,
      ...(image.writable ? ['discard=unmap', 'file.discard=unmap'] : []),
    ].join(','),
  ]
}

function escaped(value: string): string {
  return value.replaceAll(',', ',,')
}

function didNotStart(stderr: string): BackupError {
  const isMissing = /ENOENT|No such file or directory/.test(stderr) && /setpriv/.test(stderr)
  if (isMissing) {
    const tool = /qemu-nbd/.test(stderr) ? 'qemu-nbd' : 'setpriv'
    return new BackupError('E_TOOL_MISSING', `${tool} is not installed`, {
      hints: [`apt install ${tool === 'qemu-nbd' ? 'qemu-utils' : 'util-linux'}`],
    })
  }
  return new BackupError('E_NBD', 'qemu-nbd cannot serve the image', { why: stderr.trim() })
}

function inUse(path: string, stderr: string): BackupError {
  return new BackupError('E_DOMAIN_BUSY', `${path} is in use`, {
    why: stderr.trim(),
    hints: [`see by whom:   fuser -v ${path}`],
  })
}
