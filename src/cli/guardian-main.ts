/**
 * The guardian process: connects to libvirt, then waits. Orders come as JSON
 * lines on standard input, and empty lines as signs of life; its end without a disarming order means that the
 * pull is dead, and its traces on the hypervisor are removed. A pull that hangs is killed first: requests that
 * it has under way would hold up the end of its job, and the whole domain with it.
 */
import { closeSync, openSync } from 'node:fs'
import { createInterface } from 'node:readline'

import { systemClock } from '../base/clock.js'
import { messageOf } from '../base/errors.js'
import { cleanUpAfter, type GuardianOrders } from '../libvirt/guardian.js'
import { isDomainGone } from '../libvirt/hypervisor.js'
import { PullPulse } from '../libvirt/pull-pulse.js'
import { isLocalUri } from '../model/libvirt-uri.js'
import { native } from '../native/binding.js'
import type { NativeVirtConnection, VirtConnectOptions, VirtEvent } from '../native/virt.js'

/** An agent that hangs is asked again; after that nobody can help but its administrator. */
const THAW_TRIES = 60
const THAW_PAUSE_MS = 5_000
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
    const { domainUuid } = next
    thawTimer = setTimeout(() => void thaw(connection, domainUuid, over.signal), FROZEN_LIMIT_MS)
  }
  clearTimeout(thawTimer)
  over.abort()
  if (orders?.disarmed === true && orders.frozen) {
    // The pull has ended, and could not thaw: what it froze, or an agent that hung freezes yet.
    letGoOfOutput()
    await thaw(connection, orders.domainUuid, new AbortController().signal)
  }
  if (orders !== undefined && !orders.disarmed) {
    if (!(await connection.isAlive())) connection = await reconnected(access, connection)
    for (const done of await cleanUpAfter(orders, connection, systemClock)) {
      process.stderr.write(`virtvault guardian: ${done}\n`)
    }
  }
  await connection.close()
}

/** Until it has thawed something, or `signal` aborts, or it is no use to go on. Never rejects. */
async function thaw(connection: NativeVirtConnection, domainUuid: string, signal: AbortSignal): Promise<void> {
  for (let tries = 1; tries <= THAW_TRIES && !signal.aborted; tries++) {
    try {
      const thawed = await connection.fsThaw(domainUuid, [])
      if (thawed > 0) process.stderr.write(`virtvault guardian: thawed ${domainUuid}\n`)
      return
    } catch (error) {
      if (isDomainGone(error)) return
      if (tries === 1) process.stderr.write(`virtvault guardian: thaw failed: ${messageOf(error)}; trying on\n`)
    }
    await systemClock.sleep(THAW_PAUSE_MS, signal).catch(() => undefined)
  }
}

/** Whoever waits for the end of what the pull says must not wait for us. What libvirt prints goes nowhere then. */
function letGoOfOutput(): void {
  for (const fd of [1, 2]) {
    try {
      closeSync(fd)
    } catch {
      // It was closed before.
    }
  }
  while (openSync('/dev/null', 'r+') < 2);
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
