import { mkdtempSync, readFileSync, rmSync, statfsSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import t from 'tap'

import { Hypervisor } from '../../src/libvirt/hypervisor.js'
import { OverwritingGuest } from '../harness/overwriting-guest.js'
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
  const writer = await OverwritingGuest.start(lab, { hypervisor, scratchFolder, isTracked: false })
  const { guest } = writer

  await t.test('--scratch-limit below it gives the backup up before the guest meets it', async t => {
    const outcome = await writer.overwrite({ minFreeBytes: 0, maxUsedBytes: QUOTA_BYTES / 2, intervalMs: 60_000 })

    t.match(outcome, {
      reason: { code: 'E_NO_SPACE', why: /grown past 24 MiB/ },
      suspended: 0,
      status: '0',
      errors: '0',
    })
    t.equal(await guest.domain.state(), 'running')
  })

  await t.test('without it the quota is asked for, and the guest never meets it', async t => {
    const outcome = await writer.overwrite({ minFreeBytes: MIB, maxUsedBytes: undefined, intervalMs: 60_000 })

    t.match(outcome, { reason: { code: 'E_NO_SPACE', why: /grown past/ }, suspended: 0, status: '0', errors: '0' })
    await t.rejects(writer.begin({ minFreeBytes: 64 * MIB, maxUsedBytes: undefined, intervalMs: 1000 }), {
      code: 'E_NO_SPACE',
      why: /a quota leaves/,
    })
  })

  await t.test(
    'met all the same, as when others fill it, it ends the backup at once; the guest saw errors',
    async t => {
      // Set after the begin: to us it is what a quota of QEMU's user on another file system is.
      await run('btrfs', ['qgroup', 'limit', 'none', scratchFolder])
      const begun = writer.overwrite({ minFreeBytes: 0, maxUsedBytes: undefined, intervalMs: 60_000 }, () =>
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
