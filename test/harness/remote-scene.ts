import { type ChildProcess, spawn } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'

import type { Test } from 'tap'

import { cliEnvironment } from '../demo/virtvault-cli.js'
import { imageDamage, imageDifference } from '../lab/images.js'
import type { Lab } from '../lab/lab.js'
import { RemoteLab } from '../lab/remote-lab.js'
import { type Ended, MAIN, runCli } from './run-cli.js'

/** A directory that only the other machine has. */
export const THERE = '/var/lib/virtvault/images'

/** Of the program, with the lab's store, and its hypervisor through ssh: scratch files are there, the tunnel's sockets here. */
export function sshEnvironment(remote: RemoteLab): NodeJS.ProcessEnv {
  return {
    ...process.env,
    ...cliEnvironment(remote.lab),
    VIRTVAULT_SCRATCH_DIR: '',
    VIRTVAULT_RUNTIME_DIR: join(remote.home, 'run'),
    VIRTVAULT_TARGET: remote.lab.path('store'),
    VIRTVAULT_CONNECT: remote.sshUri(),
  }
}

/** The program, with a store here and a hypervisor on another machine that it reaches through ssh. */
export class RemoteScene implements AsyncDisposable {
  readonly remote: RemoteLab
  readonly lab: Lab
  readonly env: NodeJS.ProcessEnv

  private constructor(remote: RemoteLab) {
    this.remote = remote
    this.lab = remote.lab
    this.env = sshEnvironment(remote)
  }

  /** With an empty store. */
  static async start(): Promise<RemoteScene> {
    const scene = new RemoteScene(await RemoteLab.start())
    await scene.lab.inside(`mkdir ${THERE}`)
    await scene.must('init', scene.lab.path('store'))
    return scene
  }

  async run(...args: readonly string[]): Promise<Ended> {
    return await runCli(args, this.env)
  }

  /** Throws where it fails. */
  async must(...args: readonly string[]): Promise<Ended> {
    const ended = await this.run(...args)
    if (ended.code !== 0) throw new Error(`${args.join(' ')}: ${ended.stderr}${ended.stdout}`)
    return ended
  }

  /** Starts it, and resolves when it has said so on either stream. */
  async caught(saying: RegExp, ...args: readonly string[]): Promise<CaughtProgram> {
    const child = spawn(MAIN, args, { env: this.env, stdio: ['ignore', 'pipe', 'pipe'] })
    let said = ''
    const ended = new Promise<{ code: number | string; said: string }>(done =>
      child.once('close', (code, signal) => done({ code: code ?? signal ?? 'nothing', said })),
    )
    const [, id = ''] = await new Promise<RegExpExecArray>((done, fail) => {
      void ended.then(end => fail(new Error(`ended too early with ${end.code}:\n${end.said}`)))
      for (const stream of [child.stdout, child.stderr]) {
        stream.on('data', (part: Buffer) => {
          said += part.toString()
          const found = saying.exec(said)
          if (found !== null) done(found)
        })
      }
    })
    return { child, ended, id }
  }

  /** Whether an image over there holds the same as a raw reference here, and is sound. */
  async isSame(t: Test, path: string, format: string, reference: string): Promise<void> {
    const here = this.lab.path(`fetched-${Math.random()}`)
    await this.lab.inside(`cp --sparse=always ${path} ${here}`)
    t.equal(await imageDifference({ path: here, format }, { path: reference, format: 'raw' }), undefined)
    if (format === 'qcow2') t.equal(await imageDamage(here), undefined)
  }

  /** But for what is named: in THERE, among processes, in the place for sockets. */
  async nothingLeft(t: Test, ...names: readonly string[]): Promise<void> {
    const list = this.lab.path(`list-${Math.random()}`)
    await this.lab.inside(`
      for i in $(seq 600); do [ -z "$(pgrep qemu-nbd; ls /run/virtvault)" ] && break; sleep 0.1; done
      { ls -A ${THERE}; pgrep -a qemu-nbd; find /run/virtvault -mindepth 1; } >${list}`)
    const found = readFileSync(list, 'utf8').split('\n').filter(Boolean)
    t.strictSame(found.sort(), [...names].sort(), 'nothing else is there')
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.remote[Symbol.asyncDispose]()
  }
}

export interface CaughtProgram {
  readonly child: ChildProcess
  readonly ended: Promise<{ readonly code: number | string; readonly said: string }>
  /** What the first group of the pattern matched. */
  readonly id: string
}
