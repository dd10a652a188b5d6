import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmdirSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import t from 'tap'

import { Hypervisor } from '../../src/libvirt/hypervisor.js'
import { OverwritingGuest } from '../harness/overwriting-guest.js'
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
  const writer = await OverwritingGuest.start(lab, { hypervisor, scratchFolder, isTracked: true })
  const { guest } = writer

  await t.test('a session gives up before its scratch is full, and the domain is never paused', async t => {
    const outcome = await writer.overwrite({ minFreeBytes: SCRATCH_BYTES / 2, maxUsedBytes: undefined, intervalMs: 10 })

    t.match(outcome, { reason: { code: 'E_NO_SPACE', why: /are free/ }, suspended: 0, wasPaused: false })
    t.equal(outcome.kind, 'filesystem', 'it was frozen, by a real agent')
    t.equal(await guest.domain.state(), 'running')
  })

  await t.test('a domain that full scratch paused is resumed, and its writes complete', async t => {
    const outcome = await writer.overwrite({ minFreeBytes: 0, maxUsedBytes: undefined, intervalMs: 60_000 })

    t.match(outcome, { reason: { code: 'E_NO_SPACE', why: /paused/ }, wasPaused: true })
    t.match(outcome.warnings, [{ code: 'W_SCRATCH' }])
    t.equal(await guest.domain.state(), 'running')
    t.match(outcome, { status: '0', errors: '0' }, 'the guest saw no error')
  })

  const { jobs, checkpoints, bitmaps, files } = await guest.domain.leftovers()
  t.strictSame([jobs, checkpoints, bitmaps, files], [[], [], [], []])
  await guest.domain.destroy()
})
