import { mkdtempSync, readFileSync, rmSync, statfsSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import t from 'tap'

import { LiveBackupSession } from '../../src/libvirt/backup-session.js'
import { Hypervisor } from '../../src/libvirt/hypervisor.js'
import type { ScratchLimits, SessionRequest } from '../../src/libvirt/session-types.js'
import { requires } from '../harness/requires.js'
import { MIB } from '../lab/fill.js'
import { Lab } from '../lab/lab.js'
import { run } from '../lab/run-program.js'

// A Linux boots without KVM, on a machine that others use as well.
t.setTimeout(300_000)

const GOES_ON = new AbortController().signal
const QUOTA_BYTES = 48 * MIB

t.test('scratch under a quota that nobody sees', { ...requirements(), timeout: 300_000 }, async t => {
  // Mounted before the lab starts, so that its QEMUs see it too.
  const folder = mkdtempSync(join(tmpdir(), 'virtvault-quota-'))
  const image = join(folder, 'image')
  const mount = join(folder, 'mount')
  await run('truncate', ['--size', String(512 * MIB), image])
  await run('mkfs.btrfs', ['-q', image])
  await run('mkdir', [mount])
  await run('mount', ['-o', 'loop', image, mount])
  t.teardown(async () => {
    await run('umount', ['--lazy', mount], { check: false })
    rmSync(folder, { recursive: true })
  })
  const scratchFolder = join(mount, 'scratch')
  await run('btrfs', ['quota', 'enable', mount])
  await run('btrfs', ['subvolume', 'create', scratchFolder])
  await run('btrfs', ['qgroup', 'limit', String(QUOTA_BYTES), scratchFolder])
  const { bavail, bsize } = statfsSync(scratchFolder)
  t.ok(bavail * bsize > 4 * QUOTA_BYTES, 'statfs does not know of it')

  await using lab = await Lab.start()
  await using hypervisor = await Hypervisor.open(lab.uri, {}, GOES_ON)
  const guest = await lab.linuxGuest({
    name: 'writer',
    disks: [{ target: 'vda', size: 256 * MIB, fileSystem: 'ext4' }],
  })
  await guest.start()
  await guest.exec('dd if=/dev/urandom of=/mnt/vda/file bs=1M count=128 conv=fsync')
  const { uuid, name } = guest.domain
  let count = 0

  const requestFor = (scratchLimits: ScratchLimits): SessionRequest => ({
    domain: { uuid, name },
    socket: join(lab.scratchFolder, `${++count}.sock`),
    checkpoint: undefined,
    disks: [
      {
        target: 'vda',
        scratch: { kind: 'file', path: join(scratchFolder, String(count)) },
        tracked: false,
        base: undefined,
      },
    ],
    freeze: { mode: 'off', mountpoints: [], timeoutSeconds: 20 },
    scratchLimits,
    onFreeze: () => Promise.resolve(),
  })
  /** Overwrites everything during a session, and leaves that when it is told to. */
  const overwrite = async (scratchLimits: ScratchLimits, whenBegun = () => Promise.resolve<unknown>(undefined)) => {
    let suspended = 0
    const listening = new AbortController()
    const events = (async () => {
      for await (const event of hypervisor.events(listening.signal)) {
        if (event.kind === 'lifecycle' && event.uuid === uuid && event.event === 3) suspended++
      }
    })()
    const session = await LiveBackupSession.begin(hypervisor, requestFor(scratchLimits), GOES_ON)
    await whenBegun()
    const write = 'dd if=/dev/urandom of=/mnt/vda/file bs=1M count=128 conv=notrunc,fsync'
    await guest.exec(`rm -f /run/written; { ${write}; echo $? > /run/written; } > /dev/null 2>&1 &`)
    const stay = setInterval(() => undefined, 1000)
    if (!session.failure.aborted) {
      await new Promise(resolve => session.failure.addEventListener('abort', resolve, { once: true }))
    }
    clearInterval(stay)
    await session[Symbol.asyncDispose]()
    const status = await guest.exec('while [ ! -e /run/written ]; do sleep 1; done; cat /run/written')
    const errors = await guest.exec('dmesg | grep -c "I/O error" || true')
    listening.abort()
    await events
    return { reason: session.failure.reason as unknown, suspended, status, errors }
  }

  await t.test('--scratch-limit below it gives the backup up before the guest meets it', async t => {
    const outcome = await overwrite({ minFreeBytes: 0, maxUsedBytes: QUOTA_BYTES / 2, intervalMs: 60_000 })

    t.match(outcome, {
      reason: { code: 'E_NO_SPACE', why: /grown past 24 MiB/ },
      suspended: 0,
      status: '0',
      errors: '0',
    })
    t.equal(await guest.domain.state(), 'running')
  })

  await t.test('without it the quota is asked for, and the guest never meets it', async t => {
    const outcome = await overwrite({ minFreeBytes: MIB, maxUsedBytes: undefined, intervalMs: 60_000 })

    t.match(outcome, { reason: { code: 'E_NO_SPACE', why: /grown past/ }, suspended: 0, status: '0', errors: '0' })
    await t.rejects(
      LiveBackupSession.begin(
        hypervisor,
        requestFor({ minFreeBytes: 64 * MIB, maxUsedBytes: undefined, intervalMs: 1000 }),
        GOES_ON,
      ),
      { code: 'E_NO_SPACE', why: /a quota leaves/ },
    )
  })

  await t.test(
    'met all the same, as when others fill it, it ends the backup at once; the guest saw errors',
    async t => {
      // Set after the begin: to us it is what a quota of QEMU's user on another file system is.
      await run('btrfs', ['qgroup', 'limit', 'none', scratchFolder])
      const begun = overwrite({ minFreeBytes: 0, maxUsedBytes: undefined, intervalMs: 60_000 }, () =>
        run('btrfs', ['qgroup', 'limit', String(QUOTA_BYTES), scratchFolder]),
      )
      const outcome = await begun

      t.match(outcome, { reason: { code: 'E_IO', hints: [/check its file systems/] }, suspended: 0, status: '1' })
      t.equal(await guest.domain.state(), 'running')
      const { jobs, exports } = await guest.domain.leftovers()
      t.strictSame({ jobs, exports }, { jobs: [], exports: [] })
    },
  )
})

/** A kernel without btrfs is nothing that a package mends. */
function requirements(): { readonly skip: string | false } {
  if (!/\bbtrfs$/m.test(readFileSync('/proc/filesystems', 'utf8'))) return { skip: 'this kernel has no btrfs' }
  return requires('lab', 'mkfs.btrfs')
}
