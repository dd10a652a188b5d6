import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'

import { cacheFolder } from './cache-folder.js'
import { MIB } from './fill.js'
import type { Lab } from './lab.js'
import type { LabDiskSpec } from './lab-disk.js'
import type { LabDomain } from './lab-domain.js'
import { run, type RunResult } from './run-program.js'

export interface LinuxGuestSpec {
  readonly name: string
  /** Those with `fileSystem: 'ext4'` are mounted at /mnt/TARGET. */
  readonly disks: readonly LabDiskSpec[]
  /** Bytes; default 192 MiB. */
  readonly memory?: number
  /** As of LabDomainSpec. */
  readonly devices?: string
}

const BUILDER = fileURLToPath(new URL('../../../test/lab/build-guest.sh', import.meta.url))
/** Three seconds on an idle machine; tests share theirs. */
const BOOT_TIMEOUT_MS = 120_000
const EXEC_TIMEOUT_MS = 120_000

/**
 * A domain with a real, tiny Linux in it: busybox, the disks' file systems and
 * qemu-ga, so that freezing is real and the test has a shell. Made by
 * Lab.linuxGuest(). The guest writes by itself: its disks have no shadow, and
 * a reference image is a copy made while the domain is paused.
 */
export class LinuxGuest {
  readonly domain: LabDomain
  readonly #lab: Lab

  private constructor(lab: Lab, domain: LabDomain) {
    this.#lab = lab
    this.domain = domain
  }

  /** Use Lab.linuxGuest(). */
  static async define(lab: Lab, spec: LinuxGuestSpec): Promise<LinuxGuest> {
    const folder = join(cacheFolder(), 'guest')
    await run('bash', [BUILDER, folder])
    const domain = await lab.domain({
      name: spec.name,
      disks: spec.disks,
      memory: spec.memory ?? 192 * MIB,
      agent: 'guest',
      kernel: {
        image: join(folder, 'kernel'),
        initrd: join(folder, 'initrd'),
        arguments: 'console=ttyS0 panic=-1 quiet mitigations=off random.trust_cpu=on',
      },
      ...(spec.devices === undefined ? {} : { devices: spec.devices }),
    })
    return new LinuxGuest(lab, domain)
  }

  /** Returns when the agent answers; throws with the console's text where it does not. */
  async start(): Promise<void> {
    await this.domain.start()
    await this.waitForAgent()
  }

  async waitForAgent(): Promise<void> {
    const deadline = performance.now() + BOOT_TIMEOUT_MS
    for (;;) {
      const { code } = await this.#lab.tryVirsh('qemu-agent-command', this.domain.uuid, '{"execute":"guest-ping"}')
      if (code === 0) return
      if (performance.now() > deadline) {
        throw new Error(`no agent in ${this.domain.name}\n${readFileSync(this.domain.consoleLog, 'utf8').slice(-4000)}`)
      }
      await delay(100)
    }
  }

  /** Runs a shell command in the guest and returns what it prints; throws where it fails. */
  async exec(command: string): Promise<string> {
    const { code, stdout, stderr } = await this.tryExec(command)
    if (code !== 0) throw new Error(`${command}: exit code ${code} in ${this.domain.name}\n${stderr}${stdout}`)
    return stdout.trim()
  }

  async tryExec(command: string): Promise<RunResult> {
    const { pid } = await this.#agent<{ pid: number }>('guest-exec', {
      path: '/bin/sh',
      arg: ['-c', command],
      env: ['PATH=/bin:/sbin:/usr/bin:/usr/sbin'],
      'capture-output': true,
    })
    const deadline = performance.now() + EXEC_TIMEOUT_MS
    for (;;) {
      const status = await this.#agent<ExecStatus>('guest-exec-status', { pid })
      if (status.exited) {
        return {
          code: status.exitcode ?? -1,
          stdout: decode(status['out-data']),
          stderr: decode(status['err-data']),
        }
      }
      if (performance.now() > deadline) throw new Error(`${command}: still runs in ${this.domain.name}`)
      await delay(30)
    }
  }

  /** Where the domain is paused, as for want of its disk, it must go on by itself in time. */
  async #agent<T>(command: string, args: object): Promise<T> {
    const { uuid } = this.domain
    for (;;) {
      const json = JSON.stringify({ execute: command, arguments: args })
      const { code, stdout, stderr } = await this.#lab.tryVirsh('qemu-agent-command', uuid, json)
      if (code === 0) return (JSON.parse(stdout) as { return: T }).return
      if (!stderr.includes('domain is not running')) throw new Error(`${command} in ${this.domain.name}: ${stderr}`)
      await this.domain.waitFor('running')
    }
  }
}

interface ExecStatus {
  readonly exited: boolean
  readonly exitcode?: number
  readonly 'out-data'?: string
  readonly 'err-data'?: string
}

function decode(base64: string | undefined): string {
  return Buffer.from(base64 ?? '', 'base64').toString()
}
