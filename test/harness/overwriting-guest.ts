import { join } from 'node:path'

import type { Warning } from '../../src/base/errors.js'
import { LiveBackupSession } from '../../src/libvirt/backup-session.js'
import type { Hypervisor } from '../../src/libvirt/hypervisor.js'
import type { ScratchLimits, SessionRequest } from '../../src/libvirt/session-types.js'
import { MIB } from '../lab/fill.js'
import type { Lab } from '../lab/lab.js'
import type { LinuxGuest } from '../lab/linux-guest.js'

const GOES_ON = new AbortController().signal
const SUSPENDED = 3

export interface OverwritingOptions {
  readonly hypervisor: Hypervisor
  /** Where QEMU puts what the guest overwrites. */
  readonly scratchFolder: string
  /** Its disk has a checkpoint, and its file systems are frozen. */
  readonly isTracked: boolean
}

/** What came of a session during which the guest overwrote 128 MiB. */
export interface Overwritten {
  /** Why the session was left. */
  readonly reason: unknown
  readonly warnings: readonly Warning[]
  readonly kind: string
  /** How often libvirt told that the domain was paused. */
  readonly suspended: number
  /** Whether it was when the session was left. */
  readonly wasPaused: boolean
  /** Exit code of what wrote. */
  readonly status: string
  /** I/O errors that its kernel told of. */
  readonly errors: string
}

/** A Linux whose disk holds 128 MiB, overwriting which is what costs scratch. */
export class OverwritingGuest {
  readonly guest: LinuxGuest
  readonly #lab: Lab
  readonly #options: OverwritingOptions
  #count = 0

  private constructor(lab: Lab, guest: LinuxGuest, options: OverwritingOptions) {
    this.#lab = lab
    this.guest = guest
    this.#options = options
  }

  static async start(lab: Lab, options: OverwritingOptions): Promise<OverwritingGuest> {
    const disks = [{ target: 'vda', size: 256 * MIB, fileSystem: 'ext4' }] as const
    const guest = await lab.linuxGuest({ name: 'writer', disks })
    await guest.start()
    await guest.exec('dd if=/dev/urandom of=/mnt/vda/file bs=1M count=128 conv=fsync')
    return new OverwritingGuest(lab, guest, options)
  }

  async begin(scratchLimits: ScratchLimits): Promise<LiveBackupSession> {
    return await LiveBackupSession.begin(this.#options.hypervisor, this.#request(scratchLimits), GOES_ON)
  }

  /** Overwrites everything during a session, and leaves that when it is told to. */
  async overwrite(scratchLimits: ScratchLimits, whenBegun?: () => Promise<unknown>): Promise<Overwritten> {
    const { guest } = this
    const { uuid } = guest.domain
    let suspended = 0
    const listening = new AbortController()
    const events = (async () => {
      for await (const event of this.#options.hypervisor.events(listening.signal)) {
        if (event.kind === 'lifecycle' && event.uuid === uuid && event.event === SUSPENDED) suspended++
      }
    })()
    const session = await this.begin(scratchLimits)
    const { kind } = session.consistency
    await whenBegun?.()
    // In the background: a guest that is paused answers nobody who waits for it.
    const write = 'dd if=/dev/urandom of=/mnt/vda/file bs=1M count=128 conv=notrunc,fsync'
    await guest.exec(`rm -f /run/written; { ${write}; echo $? > /run/written; } > /dev/null 2>&1 &`)
    const stay = setInterval(() => undefined, 1000)
    // On a busy machine it may have failed before the guest has answered.
    if (!session.failure.aborted) {
      await new Promise(resolve => session.failure.addEventListener('abort', resolve, { once: true }))
    }
    clearInterval(stay)
    const wasPaused = (await guest.domain.state()) === 'paused'
    await session[Symbol.asyncDispose]()
    const status = await guest.exec('while [ ! -e /run/written ]; do sleep 1; done; cat /run/written')
    const errors = await guest.exec('dmesg | grep -c "I/O error" || true')
    listening.abort()
    await events
    const reason = session.failure.reason as unknown
    return { reason, warnings: session.warnings, kind, suspended, wasPaused, status, errors }
  }

  #request(scratchLimits: ScratchLimits): SessionRequest {
    const { uuid, name } = this.guest.domain
    const { scratchFolder, isTracked } = this.#options
    const number = String(++this.#count)
    const scratch = { kind: 'file', path: join(scratchFolder, number) } as const
    return {
      domain: { uuid, name },
      socket: join(this.#lab.scratchFolder, `${number}.sock`),
      checkpoint: isTracked ? `virtvault-0a1b2c3d-${number.padStart(16, '0')}` : undefined,
      disks: [{ target: 'vda', scratch, tracked: isTracked, base: undefined }],
      freeze: { mode: isTracked ? 'required' : 'off', mountpoints: [], timeoutSeconds: 20 },
      scratchLimits,
      onFreeze: () => Promise.resolve(),
    }
  }
}
