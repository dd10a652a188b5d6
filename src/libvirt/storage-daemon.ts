import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface, type Interface } from 'node:readline'

import { BackupError } from '../base/errors.js'

/** Opening an image on slow storage takes seconds; more means that it hangs. */
const ANSWER_TIMEOUT_MS = 60_000
const PROGRAM = 'qemu-storage-daemon'
/** QMP over its standard input and output: no socket, no path, nobody else. */
const ARGUMENTS = ['--chardev', 'stdio,id=qmp', '--monitor', 'chardev=qmp']

/**
 * A qemu-storage-daemon that serves images while no domain runs on them. It
 * holds QEMU's own locks on them, so it must never outlive this process: the
 * kernel ends it with us (setpriv --pdeathsig). Disposing ends it at once;
 * it only reads, so that loses nothing.
 */
export class StorageDaemon implements AsyncDisposable {
  readonly #child: ChildProcessWithoutNullStreams
  readonly #ended: Promise<unknown>
  readonly #lines: Interface
  readonly #answers: ((answer: ReadonlyMap<string, unknown> | undefined) => void)[] = []
  #complaints = ''

  private constructor(child: ChildProcessWithoutNullStreams) {
    this.#child = child
    this.#ended = once(child, 'close').then(() => {
      for (const answer of this.#answers.splice(0)) answer(undefined)
    })
    child.stdin.on('error', () => undefined)
    child.stderr.on('data', (text: Buffer) => (this.#complaints = `${this.#complaints}${text.toString()}`.slice(-2000)))
    this.#lines = createInterface({ input: child.stdout })
    this.#lines.on('line', line => this.#take(line))
  }

  /** Rejects with E_TOOL_MISSING, E_IO, E_TIMEOUT. */
  static async start(): Promise<StorageDaemon> {
    const child = (await spawned('setpriv', ['--pdeathsig', 'KILL', PROGRAM, ...ARGUMENTS])) ?? (await bareDaemon())
    const daemon = new StorageDaemon(child)
    try {
      await daemon.execute('qmp_capabilities', {})
      return daemon
    } catch (error) {
      await daemon[Symbol.asyncDispose]()
      if (child.exitCode === 127) throw missing()
      throw error
    }
  }

  /** Runs a QMP command and gives what it returns. Rejects with E_IO and QEMU's words, E_TIMEOUT. */
  async execute(command: string, args: Readonly<Record<string, unknown>>): Promise<unknown> {
    const answered = new Promise<ReadonlyMap<string, unknown> | undefined>(settle => this.#answers.push(settle))
    this.#child.stdin.write(`${JSON.stringify({ execute: command, arguments: args })}\n`)
    const late = AbortSignal.timeout(ANSWER_TIMEOUT_MS)
    const expired = once(late, 'abort').then((): never => {
      throw new BackupError('E_TIMEOUT', `${PROGRAM} did not answer ${command} within a minute`)
    })
    const answer = await Promise.race([answered, expired])
    if (answer === undefined) {
      throw new BackupError('E_IO', `${PROGRAM} ended`, { why: this.#complaints.trim() || undefined })
    }
    if (answer.has('return')) return answer.get('return')
    const said = fieldsOf(answer.get('error')).get('desc')
    throw new BackupError('E_IO', typeof said === 'string' ? said : `${PROGRAM} refused ${command}`)
  }

  /** Resolves when it has ended, by whatever. */
  get ended(): Promise<unknown> {
    return this.#ended
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.kill('SIGKILL')
    await this.#ended
  }

  /** Greeting and events come between the answers, which come in order. */
  #take(line: string): void {
    const message = fieldsOf(parseLine(line))
    if (message.has('return') || message.has('error')) this.#answers.shift()?.(message)
  }
}

/** undefined where there is no such program. */
async function spawned(program: string, args: readonly string[]): Promise<ChildProcessWithoutNullStreams | undefined> {
  const child = spawn(program, [...args])
  return await once(child, 'spawn').then(
    () => child,
    () => undefined,
  )
}

/** Where util-linux is missing: a kill -9 of this process then leaves it behind until somebody ends it. */
async function bareDaemon(): Promise<ChildProcessWithoutNullStreams> {
  const child = await spawned(PROGRAM, ARGUMENTS)
  if (child === undefined) throw missing()
  return child
}

function missing(): BackupError {
  return new BackupError('E_TOOL_MISSING', `${PROGRAM} is not installed`, {
    why: 'it reads the disks of domains that are shut off',
    hints: ['Debian and Ubuntu have it in qemu-system-common', 'or back up the domain while it runs'],
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
