import { BackupError, messageOf } from '../base/errors.js'
import type { Hypervisor } from './hypervisor.js'

export interface GuestProgram {
  readonly argv: readonly string[]
  readonly env: Readonly<Record<string, string>>
  readonly timeoutMs: number
}

export interface GuestExit {
  /** undefined where a signal ended it. */
  readonly exit: number | undefined
  readonly output: string
}

const AGENT_TIMEOUT_SECONDS = 10
const FIRST_POLL_MS = 50
const LONGEST_POLL_MS = 1000

/**
 * Runs a program in the guest through its agent, and waits for its end.
 * Rejects with E_AGENT where there is no agent or it may not run programs, and
 * E_TIMEOUT: the program goes on then, the agent cannot end it.
 */
export async function runInGuest(
  hypervisor: Hypervisor,
  uuid: string,
  program: GuestProgram,
  signal: AbortSignal,
): Promise<GuestExit> {
  const { clock } = hypervisor
  const [path = '', ...args] = program.argv
  const env = Object.entries(program.env).map(([name, value]) => `${name}=${value}`)
  const started = await ask(hypervisor, uuid, {
    execute: 'guest-exec',
    arguments: { path, arg: args, env, 'capture-output': true },
  })
  const pid = numberIn(started, 'pid')
  if (pid === undefined) throw new BackupError('E_AGENT', 'the guest agent did not say what it started')
  const deadline = clock.monotonic() + program.timeoutMs
  let pause = FIRST_POLL_MS
  for (;;) {
    await clock.sleep(pause, signal)
    pause = Math.min(pause * 2, LONGEST_POLL_MS)
    const status = await ask(hypervisor, uuid, { execute: 'guest-exec-status', arguments: { pid } })
    if (field(status, 'exited') === true) {
      const output = textIn(status, 'out-data') + textIn(status, 'err-data')
      return { exit: numberIn(status, 'exitcode'), output }
    }
    if (clock.monotonic() > deadline) {
      throw new BackupError(
        'E_TIMEOUT',
        `it still runs in the guest after ${Math.round(program.timeoutMs / 1000)} s (pid ${pid})`,
      )
    }
  }
}

async function ask(hypervisor: Hypervisor, uuid: string, command: object): Promise<unknown> {
  try {
    const answer = await hypervisor.connection.agentCommand(uuid, JSON.stringify(command), AGENT_TIMEOUT_SECONDS)
    return field(JSON.parse(answer), 'return')
  } catch (error) {
    throw new BackupError('E_AGENT', `the guest agent cannot run programs: ${messageOf(error)}`, { cause: error })
  }
}

function field(value: unknown, name: string): unknown {
  if (typeof value !== 'object' || value === null) return undefined
  return Object.entries(value).find(([key]) => key === name)?.[1]
}

function numberIn(value: unknown, name: string): number | undefined {
  const found = field(value, name)
  return typeof found === 'number' ? found : undefined
}

/** The agent gives output in base64. */
function textIn(value: unknown, name: string): string {
  const found = field(value, name)
  return typeof found === 'string' ? Buffer.from(found, 'base64').toString('utf8') : ''
}
