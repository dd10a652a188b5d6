import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, watch } from 'node:fs'
import { basename, dirname, join, relative, resolve } from 'node:path'
import { promisify } from 'node:util'

import type { Test } from 'tap'

/** A real NBD server on a unix socket of its own; killed when its test ends. */
export interface Server {
  readonly socket: string
  readonly child: ChildProcess
  /** Ends it as a crash would. */
  kill(): Promise<void>
}

let serial = 0

/** A short path for a socket: longer than 107 bytes none can be bound. */
export function socketPath(dir: string): string {
  return join(relative(process.cwd(), dir), `${++serial}.sock`)
}

/** nbdkit with these arguments (filters, plugin, parameters), listening by the time it is returned. */
export function nbdkit(
  t: Test,
  dir: string,
  args: readonly string[],
  options: { readonly overTcp?: boolean } = {},
): Promise<Server> {
  const socket = socketPath(dir)
  const where = options.overTcp === true ? [] : ['-U', socket]
  return start(t, 'nbdkit', ['-f', '--exit-with-parent', ...where, '-P', `${socket}.pid`, ...args], socket)
}

/** qemu-nbd on `image`, for many connections. */
export function qemuNbd(t: Test, dir: string, args: readonly string[]): Promise<Server> {
  // QEMU takes absolute paths only.
  const socket = resolve(socketPath(dir))
  const fixed = ['--persistent', '--shared=8', `--socket=${socket}`, `--pid-file=${socket}.pid`]
  return start(t, 'qemu-nbd', [...fixed, ...args], socket)
}

async function start(t: Test, program: string, args: readonly string[], socket: string): Promise<Server> {
  const child = spawn(program, args, { stdio: ['ignore', 'ignore', 'pipe'], env: environment(program) })
  let stderr = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text))
  const exited = once(child, 'exit')
  const kill = async () => {
    child.kill('SIGKILL')
    await exited
  }
  t.teardown(kill)
  const end = new AbortController()
  const listening = appears(`${socket}.pid`, end.signal).then(() => true)
  const failed = exited.then(() => false)
  const isUp = await Promise.race([listening, failed])
  end.abort()
  if (!isUp) throw new Error(`${program} ${args.join(' ')}: ${stderr}`)
  return { socket, child, kill }
}

async function appears(path: string, signal: AbortSignal): Promise<void> {
  await new Promise<void>(settle => {
    const watcher = watch(dirname(path), { signal }, (_, name) => {
      if (name === basename(path)) done()
    })
    watcher.on('error', () => done())
    const done = () => {
      watcher.close()
      settle()
    }
    signal.addEventListener('abort', done, { once: true })
    if (existsSync(path)) done()
  })
}

/** Runs a program to its end; its standard output. */
export async function run(program: string, args: readonly string[]): Promise<string> {
  const { stdout } = await promisify(execFile)(program, args, { maxBuffer: 1 << 26, env: environment(program) })
  return stdout
}

/** A sanitizer that is loaded into Node first is for Node only: QEMU hangs under it. */
function environment(program: string): NodeJS.ProcessEnv {
  const { LD_PRELOAD: preload, ...others } = process.env
  return program === 'node' && preload !== undefined ? { ...others, LD_PRELOAD: preload } : others
}
