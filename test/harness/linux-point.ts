import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import { cliEnvironment } from '../demo/virtvault-cli.js'
import type { Lab } from '../lab/lab.js'
import type { LinuxGuest, LinuxGuestSpec } from '../lab/linux-guest.js'

const MAIN = fileURLToPath(new URL('../../src/cli/main.cjs', import.meta.url))

export interface Ended {
  readonly code: number | null
  readonly stdout: string
  readonly stderr: string
}

/** The program as users run it, on one lab and one store. Disposing it kills what of it still runs. */
export class LabProgram implements AsyncDisposable {
  readonly store: string
  readonly runtimeDir: string
  readonly stateDir: string
  readonly #env: NodeJS.ProcessEnv
  readonly #started: RunningProgram[] = []

  constructor(lab: Lab) {
    this.store = lab.path('store')
    this.runtimeDir = lab.path('r')
    this.stateDir = lab.path('s')
    this.#env = {
      ...process.env,
      ...cliEnvironment(lab),
      VIRTVAULT_TARGET: this.store,
      VIRTVAULT_CONNECT: lab.uri,
      VIRTVAULT_RUNTIME_DIR: this.runtimeDir,
      VIRTVAULT_STATE_DIR: this.stateDir,
      // As its libvirtd has them, which sees its own /var/lib/libvirt.
      VIRTVAULT_NVRAM_DIR: join(lab.folder, 'lib', 'qemu', 'nvram'),
      VIRTVAULT_SWTPM_DIR: join(lab.folder, 'lib', 'swtpm'),
    }
  }

  /** To its end, whatever that is. */
  async run(...args: readonly string[]): Promise<Ended> {
    return await this.start(...args).ended
  }

  start(...args: readonly string[]): RunningProgram {
    const running = new RunningProgram(spawn(MAIN, args, { env: this.#env, stdio: ['ignore', 'pipe', 'pipe'] }))
    this.#started.push(running)
    return running
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#started.map(running => running.kill('SIGKILL')))
  }
}

export class RunningProgram {
  readonly ended: Promise<Ended>
  readonly #child: ChildProcess
  #stdout = ''
  #stderr = ''

  constructor(child: ChildProcess) {
    this.#child = child
    child.stdout?.on('data', (part: Buffer) => (this.#stdout += part.toString()))
    child.stderr?.on('data', (part: Buffer) => (this.#stderr += part.toString()))
    this.ended = once(child, 'close').then(([code]) => ({
      code: code as number | null,
      stdout: this.#stdout,
      stderr: this.#stderr,
    }))
  }

  /** Resolves with the match when it has said so on stdout or stderr; throws where it ends without. */
  async says(pattern: RegExp): Promise<RegExpExecArray> {
    for (;;) {
      const found = pattern.exec(this.#stdout) ?? pattern.exec(this.#stderr)
      if (found !== null) return found
      const more = Promise.race([
        ...[this.#child.stdout, this.#child.stderr].flatMap(stream => (stream === null ? [] : [once(stream, 'data')])),
        this.ended.then(() => 'ended' as const),
      ])
      if ((await more) !== 'ended') continue
      const late = pattern.exec(this.#stdout) ?? pattern.exec(this.#stderr)
      if (late !== null) return late
      throw new Error(`it ended without saying ${pattern}:\n${this.#stdout}${this.#stderr}`)
    }
  }

  /** Returns when it is gone. */
  async kill(signal: NodeJS.Signals): Promise<Ended> {
    this.#child.kill(signal)
    return await this.ended
  }
}

/** A booted Linux that has run `command`, and the newest recovery point of it as it is then. */
export async function linuxPoint(
  lab: Lab,
  program: LabProgram,
  spec: Omit<LinuxGuestSpec, 'name'> & { readonly command: string },
): Promise<LinuxGuest> {
  const guest = await lab.linuxGuest({ ...spec, name: 'linux' })
  await guest.start()
  await guest.exec(`${spec.command}; sync`)
  for (const args of [
    ['init', program.store],
    ['backup', 'pull', 'linux'],
  ]) {
    const { code, stderr } = await program.run(...args)
    if (code !== 0) throw new Error(`${args.join(' ')}: ${stderr}`)
  }
  return guest
}
