import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface, type Interface } from 'node:readline'
import type { Readable, Writable } from 'node:stream'

import { BackupError } from '../base/errors.js'

/** Opening an image on slow storage takes seconds; more means that it hangs. */
const ANSWER_TIMEOUT_MS = 60_000
const PROGRAM = 'qemu-storage-daemon'
/** QMP over its standard input and output: no socket, no path, nobody else. */
export const DAEMON_WORDS: readonly string[] = [PROGRAM, '--chardev', 'stdio,id=qmp', '--monitor', 'chardev=qmp']
const NO_SUCH_PROGRAM = 127

/** A running qemu-storage-daemon, here or elsewhere; disposing ends it and waits for that. */
export interface DaemonProcess extends AsyncDisposable {
  readonly stdin: Writable
  readonly stdout: Readable
  readonly stderr: Readable
  /** Its exit code. */
  readonly ended: Promise<number>
}

/** A daemon on another machine. */
export interface RemoteDaemon {
  readonly process: DaemonProcess
  readonly host: string
  /** What an exit code means that is not the daemon's own. */
  readonly explain: (code: number) => BackupError | undefined
}

/**
 * A qemu-storage-daemon that serves images while no domain runs on them. It
 * holds QEMU's own locks on them, so it must never outlive this process: the
 * kernel ends it with us (setpriv --pdeathsig), or its keeper does over there.
 * Disposing ends it at once; it only reads, so that loses nothing.
 */
export class StorageDaemon implements AsyncDisposable {
  readonly #process: DaemonProcess
  readonly #remote: RemoteDaemon | undefined
  readonly #ended: Promise<BackupError>
  readonly #lines: Interface
  readonly #answers: ((answer: ReadonlyMap<string, unknown> | undefined) => void)[] = []
  #complaints = ''

  private constructor(process: DaemonProcess, remote: RemoteDaemon | undefined) {
    this.#process = process
    this.#remote = remote
    process.stderr.on(
      'data',
      (text: Buffer) => (this.#complaints = `${this.#complaints}${text.toString()}`.slice(-2000)),
    )
    this.#lines = createInterface({ input: process.stdout })
    this.#lines.on('line', line => this.#take(line))
    this.#ended = process.ended.then(code => {
      for (const answer of this.#answers.splice(0)) answer(undefined)
      return this.#whyEnded(code)
    })
  }

  /** One of this machine unless it is given. Rejects with E_TOOL_MISSING, E_IO, E_TIMEOUT, E_UNREACHABLE. */
  static async start(remote?: RemoteDaemon): Promise<StorageDaemon> {
    const daemon = new StorageDaemon(remote?.process ?? (await localDaemon()), remote)
    try {
      await daemon.execute('qmp_capabilities', {})
      return daemon
    } catch (error) {
      await daemon[Symbol.asyncDispose]()
      throw error
    }
  }

  /** Runs a QMP command and gives what it returns. Rejects with E_IO and QEMU's words, E_TIMEOUT, and with what ended it. */
  async execute(command: string, args: Readonly<Record<string, unknown>>): Promise<unknown> {
    const answered = new Promise<ReadonlyMap<string, unknown> | undefined>(settle => this.#answers.push(settle))
    this.#process.stdin.write(`${JSON.stringify({ execute: command, arguments: args })}\n`)
    const late = AbortSignal.timeout(ANSWER_TIMEOUT_MS)
    const expired = once(late, 'abort').then((): never => {
      throw new BackupError('E_TIMEOUT', `${PROGRAM} did not answer ${command} within a minute`)
    })
    const answer = await Promise.race([answered, expired])
    if (answer === undefined) throw await this.#ended
    if (answer.has('return')) return answer.get('return')
    const said = fieldsOf(answer.get('error')).get('desc')
    throw new BackupError('E_IO', typeof said === 'string' ? said : `${PROGRAM} refused ${command}`)
  }

  /** Resolves when it has ended, with why: E_TOOL_MISSING, E_UNREACHABLE, E_IO. */
  get ended(): Promise<BackupError> {
    return this.#ended
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#process[Symbol.asyncDispose]()
    await this.#ended
  }

  #whyEnded(code: number): BackupError {
    if (code === NO_SUCH_PROGRAM) return missing(this.#remote?.host)
    const why = this.#complaints.trim() || undefined
    return this.#remote?.explain(code) ?? new BackupError('E_IO', `${PROGRAM} ended`, { why })
  }

  /** Greeting and events come between the answers, which come in order. */
  #take(line: string): void {
    const message = fieldsOf(parseLine(line))
    if (message.has('return') || message.has('error')) this.#answers.shift()?.(message)
  }
}

/** Rejects with E_TOOL_MISSING. */
async function localDaemon(): Promise<DaemonProcess> {
  // Where util-linux is missing, a kill -9 of this process leaves it behind until somebody ends it.
  const child = (await spawned(['setpriv', '--pdeathsig', 'KILL', ...DAEMON_WORDS])) ?? (await spawned(DAEMON_WORDS))
  if (child === undefined) throw missing(undefined)
  const { stdin, stdout, stderr } = child
  stdin.on('error', () => undefined)
  const ended = once(child, 'close').then(([code]: unknown[]) => (typeof code === 'number' ? code : -1))
  return {
    stdin,
    stdout,
    stderr,
    ended,
    [Symbol.asyncDispose]: async () => {
      child.kill('SIGKILL')
      await ended
    },
  }
}

/** undefined where there is no such program. */
async function spawned([program = '', ...args]: readonly string[]): Promise<
  ChildProcessWithoutNullStreams | undefined
> {
  const child = spawn(program, args)
  return await once(child, 'spawn').then(
    () => child,
    () => undefined,
  )
}

function missing(host: string | undefined): BackupError {
  return new BackupError('E_TOOL_MISSING', `${PROGRAM} is not installed${host === undefined ? '' : ` on ${host}`}`, {
    why: 'it reads the disks of domains that are shut off',
    hints: [
      'Debian and Ubuntu have it in qemu-system-common, Fedora and RHEL in qemu-kvm-tools or qemu-kvm-core',
      'or back up the domain while it runs, or with --start-paused',
    ],
  })
}

function parseLine(line: string): unknown {
  try {
    return JSON.parse(line)
  } catch {
    return undefined
  }
}

function fieldsOf(value: unknown): ReadonlyMap<string, unknown> {
  return new Map(typeof value === 'object' && value !== null ? Object.entries(value) : [])
}
