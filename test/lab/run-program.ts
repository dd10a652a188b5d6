import { spawn } from 'node:child_process'

export interface RunOptions {
  readonly input?: string
  /** false: a failure is returned, not thrown. */
  readonly check?: boolean
  readonly env?: NodeJS.ProcessEnv
  readonly cwd?: string
  readonly signal?: AbortSignal
}

export interface RunResult {
  /** -1 where a signal ended it. */
  readonly code: number
  readonly stdout: string
  readonly stderr: string
}

/** Runs a program to its end; throws with its stderr where it fails. */
export async function run(program: string, args: readonly string[], options: RunOptions = {}): Promise<RunResult> {
  const child = spawn(program, args, {
    env: { ...process.env, LC_ALL: 'C', ...options.env },
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    ...(options.signal === undefined ? {} : { signal: options.signal }),
  })
  const out: Buffer[] = []
  const err: Buffer[] = []
  child.stdout.on('data', (part: Buffer) => out.push(part))
  child.stderr.on('data', (part: Buffer) => err.push(part))
  child.stdin.on('error', () => undefined)
  child.stdin.end(options.input ?? '')
  const code = await new Promise<number>((done, fail) => {
    child.once('error', fail)
    child.once('close', status => done(status ?? -1))
  })
  const result = { code, stdout: Buffer.concat(out).toString(), stderr: Buffer.concat(err).toString() }
  if (code !== 0 && options.check !== false) {
    throw new Error(`${program} ${args.join(' ')}: exit code ${code}\n${result.stderr}${result.stdout}`)
  }
  return result
}
