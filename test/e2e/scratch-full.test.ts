import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmdirSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import t from 'tap'

import { LiveBackupSession } from '../../src/libvirt/backup-session.js'
import { Hypervisor } from '../../src/libvirt/hypervisor.js'
import type { ScratchLimits, SessionRequest } from '../../src/libvirt/session-types.js'
import { requires } from '../harness/requires.js'
import { MIB } from '../lab/fill.js'
import { Lab } from '../lab/lab.js'

// A Linux boots without KVM, on a machine that others use as well.
t.setTimeout(300_000)

const GOES_ON = new AbortController().signal
const SCRATCH_BYTES = 48 * MIB

t.test('scratch that fills under a guest that writes', requires('lab'), async t => {
  // Mounted before the lab starts, so that its QEMUs see it too.
  const scratchFolder = mkdtempSync(join(tmpdir(), 'virtvault-scratch-'))
  execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${SCRATCH_BYTES}`, 'tmpfs', scratchFolder])
  t.teardown(() => {
    execFileSync('umount', ['--lazy', scratchFolder])
    rmdirSync(scratchFolder)
  })
  await using lab = await Lab.start()
  await using hypervisor = await Hypervisor.open(lab.uri, {}, GOES_ON)
  const guest = await lab.linuxGuest({
    name: 'writer',
    disks: [{ target: 'vda', size: 256 * MIB, fileSystem: 'ext4' }],
  })
  await guest.start()
  // Blocks that hold something: overwriting them is what costs scratch.
  await guest.exec('dd if=/dev/urandom of=/mnt/vda/file bs=1M count=128 conv=fsync')
  const { uuid, name } = guest.domain
  let count = 0

  const requestFor = (scratchLimits: ScratchLimits): SessionRequest => ({
    domain: { uuid, name },
    socket: join(lab.scratchFolder, `${++count}.sock`),
    checkpoint: `virtvault-0a1b2c3d-${String(count).padStart(16, '0')}`,
    disks: [
      {
        target: 'vda',
        scratch: { kind: 'file', path: join(scratchFolder, String(count)) },
        tracked: true,
        base: undefined,
      },
    ],
    freeze: { mode: 'required', mountpoints: [], timeoutSeconds: 20 },
    scratchLimits,
    onFreeze: () => Promise.resolve(),
  })
  /** Overwrites everything during a session, and leaves that when it is told to. */
  const overwrite = async (scratchLimits: ScratchLimits) => {
    let suspended = 0
    const listening = new AbortController()
    const events = (async () => {
      for await (const event of hypervisor.events(listening.signal)) {
        if (event.kind === 'lifecycle' && event.uuid === uuid && event.event === 3) suspended++
      }
    })()
    const session = await LiveBackupSession.begin(hypervisor, requestFor(scratchLimits), GOES_ON)
    const kind = session.consistency.kind
    // In the background: a guest that is paused answers nobody who waits for it.
    const write = 'dd if=/dev/urandom of=/mnt/vda/file bs=1M count=128 conv=notrunc,fsync'
    await guest.exec(`rm -f /run/written; { ${write} && touch /run/written; } > /dev/null 2>&1 &`)
    const stay = setInterval(() => undefined, 1000)
    // On a busy machine it may have failed before the guest has answered.
    if (!session.failure.aborted) {
      await new Promise(resolve => session.failure.addEventListener('abort', resolve, { once: true }))
    }
    clearInterval(stay)
    const wasPaused = (await guest.domain.state()) === 'paused'
    await session[Symbol.asyncDispose]()
    await guest.exec('while [ ! -e /run/written ]; do sleep 1; done')
    listening.abort()
    await events
    return { reason: session.failure.reason as unknown, warnings: session.warnings, suspended, wasPaused, kind }
  }

  await t.test('a session gives up before its scratch is full, and the domain is never paused', async t => {
    const outcome = await overwrite({ minFreeBytes: SCRATCH_BYTES / 2, maxUsedBytes: undefined, intervalMs: 10 })

    t.match(outcome, { reason: { code: 'E_NO_SPACE', why: /are free/ }, suspended: 0, wasPaused: false })
    t.equal(outcome.kind, 'filesystem', 'it was frozen, by a real agent')
    t.equal(await guest.domain.state(), 'running')
  })

  await t.test('a domain that full scratch paused is resumed, and its writes complete', async t => {
    const outcome = await overwrite({ minFreeBytes: 0, maxUsedBytes: undefined, intervalMs: 60_000 })

    t.match(outcome, { reason: { code: 'E_NO_SPACE', why: /paused/ }, wasPaused: true })
    t.match(outcome.warnings, [{ code: 'W_SCRATCH' }])
    t.equal(await guest.domain.state(), 'running')
    t.equal(await guest.exec('dmesg | grep -c "I/O error" || true'), '0', 'the guest saw no error')
  })

  const { jobs, checkpoints, bitmaps, files } = await guest.domain.leftovers()
  t.strictSame([jobs, checkpoints, bitmaps, files], [[], [], [], []])
  await guest.domain.destroy()
})
