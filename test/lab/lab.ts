/**
 * A private libvirtd with real QEMU domains, for tests.
 *
 *     await using lab = await Lab.start()
 *     await using domain = await lab.domain({ name: 'web01', disks: [{ target: 'vda', size: GIB }] })
 *     await domain.start()
 *
 * Needs root that may mount (`requires('lab')`), but neither systemd nor KVM.
 * Each lab has its own daemon, sockets and directories, so any number run at
 * once. The daemon lives in its own mount namespace (LIBVIRT.md §11.2), but
 * everything under `lab.folder` has the same path inside and outside, and
 * `lab.uri` works from any process. All of it, QEMUs included, ends when the
 * lab is disposed of or when this process dies, even by SIGKILL.
 */
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, statfsSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'

import { cacheFolder } from './cache-folder.js'
import { MIB } from './fill.js'
import { LabDomain, type LabDomainSpec } from './lab-domain.js'
import { LinuxGuest, type LinuxGuestSpec } from './linux-guest.js'
import { run, type RunResult } from './run-program.js'

const SUPERVISOR = fileURLToPath(new URL('../../../test/lab/supervisor.sh', import.meta.url))
/** libvirt probes QEMU for some seconds when it meets it first, and the machine may be busy. */
const DAEMON_START_TIMEOUT_MS = 120_000
/** Below this much room in /dev/shm images go to the ordinary temporary directory. */
const MIN_RAM_DISK_BYTES = 1024 * MIB
/** Linux takes arguments up to 128 KiB. */
const MAX_SCRIPT_LENGTH = 100_000

/** Makes a lab another machine on the network. */
export interface LabNetwork {
  /** Of network namespace and interface: at most 15 letters. */
  readonly name: string
  /** Addresses of a /30. */
  readonly here: string
  readonly there: string
  /** Further lines of libvirtd.conf. */
  libvirtdConf(folder: string): string
}

export class Lab {
  /** Everything of this lab is in here; removed with it. */
  readonly folder: string
  /** For libvirt clients outside the lab, ours too. */
  readonly uri: string
  readonly #supervisor: ChildProcessWithoutNullStreams
  readonly #ended: Promise<void>
  readonly #waiting = new Map<number, (status: number) => void>()
  #lastCommand = 0
  #scripts = 0
  #trouble = ''

  private constructor(folder: string, network: LabNetwork | undefined) {
    this.folder = folder
    this.uri = `qemu+unix:///system?socket=${join(folder, 'run', 'libvirt-sock')}`
    this.#supervisor = spawn('bash', [SUPERVISOR, folder, capabilitiesFolder()], {
      // Its own session: Ctrl-C and a kill of our process group must not
      // reach it, because it is what cleans up after them.
      detached: true,
      env: {
        ...process.env,
        VVLAB_NET: network === undefined ? '' : `${network.name} ${network.here} ${network.there}`,
      },
    })
    this.#supervisor.stderr.on('data', (text: Buffer) => (this.#trouble += text.toString()))
    this.#supervisor.stdin.on('error', () => undefined)
    createInterface({ input: this.#supervisor.stdout }).on('line', line => {
      const [id, status] = line.split(' ').map(Number)
      this.#waiting.get(id ?? 0)?.(status ?? 1)
    })
    this.#ended = new Promise(done => {
      this.#supervisor.once('close', () => {
        done()
        for (const settle of this.#waiting.values()) settle(-1)
      })
    })
  }

  /** Throws with the daemon's log where it does not start. */
  static async start(network?: LabNetwork): Promise<Lab> {
    const folder = mkdtempSync(join(roomyFolder(), 'vvlab-'))
    if (network !== undefined) writeFileSync(join(folder, 'listen.conf'), network.libvirtdConf(folder))
    const lab = new Lab(folder, network)
    try {
      for (const name of ['images', 'scratch', 'shadows', 'tmp']) mkdirSync(join(lab.folder, name))
      await lab.startDaemon()
      await lab.#command('save')
    } catch (error) {
      await lab[Symbol.asyncDispose]()
      throw error
    }
    return lab
  }

  /** For scratch files and sockets of the program under test: the same path for it and for QEMU. */
  get scratchFolder(): string {
    return join(this.folder, 'scratch')
  }

  /** A new path for a file or folder of the test's own, removed with the lab. */
  path(name: string): string {
    return join(this.folder, 'tmp', name)
  }

  /** Runs virsh on this lab; throws where it fails. */
  async virsh(...args: readonly string[]): Promise<string> {
    const { stdout } = await run('virsh', ['-q', '-c', this.uri, ...args])
    return stdout.trim()
  }

  /** Runs virsh and returns what came of it, whatever that was. */
  async tryVirsh(...args: readonly string[]): Promise<RunResult> {
    return run('virsh', ['-q', '-c', this.uri, ...args], { check: false })
  }

  /** Runs many virsh commands in few processes and returns what they print; throws where any fails. */
  async virshScript(commands: readonly string[]): Promise<string> {
    let output = ''
    let batch = ''
    for (const [index, command] of commands.entries()) {
      batch += `${command};`
      if (batch.length < MAX_SCRIPT_LENGTH && index < commands.length - 1) continue
      const { stdout, stderr } = await run('virsh', ['-q', '-c', this.uri, batch])
      if (stderr.includes('error:')) throw new Error(`virsh: ${stderr}`)
      output += stdout
      batch = ''
    }
    return output
  }

  /** Defines a domain, with disks that hold what the spec says. It is not started. */
  async domain(spec: LabDomainSpec): Promise<LabDomain> {
    return LabDomain.define(this, spec)
  }

  /** Defines a domain with a real Linux and agent in it; builds that first where the cache has none. Not started. */
  async linuxGuest(spec: LinuxGuestSpec): Promise<LinuxGuest> {
    return LinuxGuest.define(this, spec)
  }

  /** Ends the daemon with `signal` and starts another. Running domains go on and are found again. */
  async restartDaemon(options: { readonly signal: 'SIGTERM' | 'SIGKILL' }): Promise<void> {
    await this.stopDaemon(options)
    await this.startDaemon()
  }

  /** SIGSTOP and SIGCONT hang the daemon for a while. */
  async signalDaemon(signal: NodeJS.Signals): Promise<void> {
    await this.#command('daemon', signal.slice(3))
  }

  /** Returns when the daemon is gone, which is SIGKILL after 20 s of no answer. Domains go on. */
  async stopDaemon(options: { readonly signal: 'SIGTERM' | 'SIGKILL' }): Promise<void> {
    await this.#command('stop', options.signal.slice(3))
  }

  /** Returns when the daemon answers. */
  async startDaemon(): Promise<void> {
    await this.#command('start')
    const deadline = performance.now() + DAEMON_START_TIMEOUT_MS
    for (;;) {
      const { code, stderr } = await this.tryVirsh('version')
      if (code === 0) return
      if (performance.now() > deadline) throw new Error(`libvirtd does not answer: ${stderr}\n${this.#daemonLog()}`)
      await delay(20)
    }
  }

  /** Sends a signal to a QEMU by the pid that libvirt's pid file has, which is one of the lab's own PID namespace. */
  async signal(pid: number, signal: NodeJS.Signals): Promise<void> {
    await this.#command('signal', pid, signal.slice(3))
  }

  /** Runs a script of bash in the namespaces of the lab; throws where it fails. */
  async inside(script: string): Promise<void> {
    const file = this.path(`inside-${++this.#scripts}.sh`)
    writeFileSync(file, script)
    await this.#command('inside', file)
  }

  /** Ends everything and removes the folder. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#supervisor.stdin.end()
    await this.#ended
  }

  async #command(...words: readonly (string | number)[]): Promise<void> {
    const id = ++this.#lastCommand
    const status = await new Promise<number>(settle => {
      this.#waiting.set(id, settle)
      if (this.#supervisor.exitCode !== null) settle(-1)
      this.#supervisor.stdin.write(`${id} ${words.join(' ')}\n`)
    })
    this.#waiting.delete(id)
    if (status !== 0)
      throw new Error(`lab: ${words.join(' ')} failed (${status})\n${this.#trouble}${this.#daemonLog()}`)
  }

  #daemonLog(): string {
    const texts = ['libvirtd.out', 'libvirtd.log', 'inside.out'].map(name => {
      try {
        return readFileSync(join(this.folder, 'log', name), 'utf8').slice(-4000)
      } catch {
        return ''
      }
    })
    return texts.join('\n')
  }
}

function capabilitiesFolder(): string {
  const folder = join(cacheFolder(), 'capabilities')
  mkdirSync(folder, { recursive: true })
  return folder
}

function roomyFolder(): string {
  try {
    const { bavail, bsize } = statfsSync('/dev/shm')
    if (bavail * bsize >= MIN_RAM_DISK_BYTES) return '/dev/shm'
  } catch {
    // No /dev/shm here.
  }
  return tmpdir()
}
