import { type ChildProcessByStdio, spawn } from 'node:child_process'
import { once } from 'node:events'
import type { Readable, Writable } from 'node:stream'
import { fileURLToPath } from 'node:url'

import { BackupError } from '../base/errors.js'
import type { GuardianPort } from '../jobs/guardian-port.js'
import type { GuardianOrders } from '../libvirt/guardian.js'
import { parseDuration } from '../model/duration.js'
import { isLocalUri } from '../model/libvirt-uri.js'
import type { VirtConnectOptions } from '../native/virt.js'

const READY_TIMEOUT_MS = 10_000
/** Two logins by ssh, or TLS handshakes, on the way. */
const REMOTE_READY_TIMEOUT_MS = 60_000

/** How often a pull says that it is there, and how long it may hang as long as its domain is in no danger. */
const BEAT_MS = 2_000
const STALL_LIMIT_MS = 60_000

type GuardianProcess = ChildProcessByStdio<Writable, Readable, null>

/**
 * A guardian's process that runs before it is known for which pull: starting it takes as long as finding out. Where no
 * pull takes it, it ends by itself.
 */
export class SpareGuardian implements Disposable {
  #child: GuardianProcess | undefined = spawnGuardian()

  /** For one pull; undefined for those after it. */
  take(): GuardianProcess | undefined {
    const child = this.#child
    this.#child = undefined
    return child
  }

  [Symbol.dispose](): void {
    const child = this.take()
    child?.stdin.end()
    child?.stdout.destroy()
    child?.unref()
  }
}

/** How long a pull may hang until its guardian ends it. Throws E_USAGE. */
function stallLimit(): number {
  const { VIRTVAULT_STALL_LIMIT: asked } = process.env
  return asked === undefined || asked === '' ? STALL_LIMIT_MS : parseDuration(asked)
}

function spawnGuardian(): GuardianProcess {
  const path = fileURLToPath(new URL('./guardian-start.cjs', import.meta.url))
  const child = spawn(process.execPath, [path], { detached: true, stdio: ['pipe', 'pipe', 'inherit'] })
  // A guardian that is gone must not take the pull with it.
  child.stdin.on('error', () => undefined)
  return child
}

/**
 * Makes a guardian process, in a process group of its own, watch, and waits until it
 * is connected. Rejects with E_LIBVIRT_CONNECT when it cannot be made ready.
 */
export async function startGuardian(options: VirtConnectOptions, spare?: SpareGuardian): Promise<GuardianPort> {
  const child = spare?.take() ?? spawnGuardian()
  const { uri, username, passphrase } = options
  child.stdin.write(`${JSON.stringify({ uri, username, passphrase, stallMs: stallLimit() })}\n`)

  const ready = once(child.stdout, 'data').then(() => true)
  const ended = once(child, 'exit').then(() => false)
  const late = AbortSignal.timeout(isLocalUri(uri) ? READY_TIMEOUT_MS : REMOTE_READY_TIMEOUT_MS)
  const expired = once(late, 'abort').then(() => false)
  if (!(await Promise.race([ready, ended, expired]))) {
    child.kill('SIGKILL')
    throw new BackupError('E_LIBVIRT_CONNECT', 'the guardian that cleans up after a crash did not get ready', {
      hints: ['try again, or see its message above'],
    })
  }
  child.stdout.destroy()

  // An empty line says that this process still does what it should.
  const beating = setInterval(() => child.stdin.write('\n'), BEAT_MS)
  beating.unref()
  let last: GuardianOrders | undefined
  const send = (orders: GuardianOrders) => {
    last = orders
    child.stdin.write(`${JSON.stringify(orders)}\n`)
  }
  return {
    order: send,
    [Symbol.asyncDispose]: async () => {
      clearInterval(beating)
      if (last !== undefined) send({ ...last, disarmed: true })
      child.stdin.end()
      // One that goes on trying to thaw does so without us.
      if (last?.frozen === true) child.unref()
      else await ended
    },
  }
}
