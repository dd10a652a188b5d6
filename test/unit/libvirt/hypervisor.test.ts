import t from 'tap'

import { Hypervisor } from '../../../src/libvirt/hypervisor.js'
import { expectedFree } from '../../../src/libvirt/scratch-watch.js'

t.test('a driver other than QEMU is refused, and named', async t => {
  await t.rejects(Hypervisor.open('test:///default', {}, new AbortController().signal), {
    code: 'E_UNSUPPORTED',
    message: /^test: /,
  })
})

t.test('a daemon that is not there is refused with what to try', async t => {
  const uri = 'qemu+unix:///system?socket=/nonexistent'
  await t.rejects(Hypervisor.open(uri, {}, new AbortController().signal), {
    code: 'E_LIBVIRT_CONNECT',
    hints: [/virsh/],
  })
})

t.test('nothing is opened for a signal that is aborted', async t => {
  await t.rejects(Hypervisor.open('test:///default', {}, AbortSignal.abort()), { code: 'E_INTERRUPTED' })
})

t.test('free space is foreseen from how fast it shrinks', async t => {
  t.equal(expectedFree(undefined, { freeBytes: 100, at: 0 }, 50), 100)
  t.equal(expectedFree({ freeBytes: 120, at: 0 }, { freeBytes: 100, at: 10 }, 20), 60)
  t.equal(expectedFree({ freeBytes: 80, at: 0 }, { freeBytes: 100, at: 10 }, 20), 100, 'growing is not counted on')
  t.equal(expectedFree({ freeBytes: 120, at: 10 }, { freeBytes: 100, at: 10 }, 20), 100, 'no time has passed')
})
