/**
 * The guardian process: connects to libvirt, then waits. Orders come as JSON
 * lines on standard input, and empty lines as signs of life; its end without a disarming order means that the
 * pull is dead, and its traces on the hypervisor are removed. A pull that hangs is killed first: requests that
 * it has under way would hold up the end of its job, and the whole domain with it.
 */
import { createInterface } from 'node:readline'

import { systemClock } from '../base/clock.js'
import { messageOf } from '../base/errors.js'
import { cleanUpAfter, type GuardianOrders } from '../libvirt/guardian.js'
import { PullPulse } from '../libvirt/pull-pulse.js'
import { isLocalUri } from '../model/libvirt-uri.js'
import { native } from '../native/binding.js'
import type { NativeVirtConnection, VirtConnectOptions, VirtEvent } from '../native/virt.js'

/** A guest stays frozen no longer than this, even under a pull that is alive but stuck. */
const FROZEN_LIMIT_MS = 10_000
/** For two minutes or more; after that the next pull cleans up. */
const MAX_ATTEMPTS = 25
const ATTEMPT_PAUSE_MS = 5_000

async function main(): Promise<void> {
  // The terminal's signals are meant for the pull; the guardian outlives it on purpose.
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => undefined)
  standUp()
  const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]()
  const first = await lines.next()
  if (first.done === true) return
  const { stallMs, ...access } = JSON.parse(first.value) as VirtConnectOptions & { readonly stallMs: number }
  const pulse = new PullPulse(systemClock, { stallMs, isLocal: isLocalUri(access.uri) })
  const watched = { ...access, onEvent: (event: VirtEvent) => pulse.see(event) }
  let connection = await native().virtConnect(watched)
  process.stdout.write('ready\n')

  const over = new AbortController()
  void killHung(pulse, process.ppid, over.signal)
  let orders: GuardianOrders | undefined
  let thawTimer: NodeJS.Timeout | undefined
  for (let line = await lines.next(); line.done !== true; line = await lines.next()) {
    if (line.value === '') {
      pulse.beat()
      continue
    }
    const next = JSON.parse(line.value) as GuardianOrders
    pulse.beat(next)
    orders = next
    clearTimeout(thawTimer)
    if (!next.frozen) continue
    thawTimer = setTimeout(() => {
      connection.fsThaw(next.domainUuid, []).catch((error: unknown) => {
        process.stderr.write(`virtvault guardian: thaw failed: ${messageOf(error)}\n`)
      })
    }, FROZEN_LIMIT_MS)
  }
  clearTimeout(thawTimer)
  over.abort()
  if (orders !== undefined && !orders.disarmed) {
    if (!(await connection.isAlive())) connection = await reconnected(access, connection)
    for (const done of await cleanUpAfter(orders, connection, systemClock)) {
      process.stderr.write(`virtvault guardian: ${done}\n`)
    }
  }
  await connection.close()
}

/** `pid` is our parent's; once it is not any more it is dead, and nobody else is killed in its place. */
async function killHung(pulse: PullPulse, pid: number, signal: AbortSignal): Promise<void> {
  const reason = await pulse.stopped(signal)
  if (reason === undefined || process.ppid !== pid) return
  process.stderr.write(`virtvault guardian: the backup hangs (${reason}) and is ended\n`)
  process.kill(pid, 'SIGKILL')
}

/** A pull may have lowered its priority, which children inherit; a frozen guest must not wait behind other work. */
function standUp(): void {
  try {
    native().setPriority(0, 2, 4)
  } catch {
    // Only root may; what a guardian does is little either way.
  }
}

/** What ended the pull may have ended this connection too, such as a network that is away for a while. Rejects at last. */
async function reconnected(access: VirtConnectOptions, lost: NativeVirtConnection): Promise<NativeVirtConnection> {
  void lost.close()
  for (let attempt = 1; ; attempt++) {
    try {
      return await native().virtConnect(access)
    } catch (error) {
      if (attempt === MAX_ATTEMPTS) throw error
      await systemClock.sleep(ATTEMPT_PAUSE_MS)
    }
  }
}

process.stdout.on('error', () => undefined)
process.stderr.on('error', () => undefined)
main().catch((error: unknown) => {
  process.stderr.write(`virtvault guardian: ${messageOf(error)}\n`)
  process.exitCode = 1
})
