import t from 'tap'

import { BackupError } from '../../../src/base/errors.js'
import { refuseOtherDrivers } from '../../../src/libvirt/drivers.js'

t.test(
  'drivers without pull-mode backup are refused with a reason and a way out, before anything is connected',
  async t => {
    for (const uri of [
      'test:///default',
      'xen:///',
      'xen+ssh://root@h/',
      'lxc:///',
      'esx://root@vc/?no_verify=1',
      'VPX://v/d/e',
    ]) {
      try {
        refuseOtherDrivers(uri)
        t.fail(uri)
      } catch (error) {
        if (!(error instanceof BackupError)) throw error
        t.equal(error.code, 'E_UNSUPPORTED', uri)
        t.ok(error.why, uri)
        t.ok(error.hints.length > 0, uri)
      }
    }
  },
)

t.test('a transport through a program of the user hides the machine, so it is refused', async t => {
  t.throws(() => refuseOtherDrivers('qemu+ext:///system?command=x'), { code: 'E_UNSUPPORTED' })
})

t.test('QEMU passes however it is reached, and so does what libvirt itself must judge', async t => {
  for (const uri of ['qemu:///system', 'qemu+ssh://h/system', 'qemu://h/system', 'qemu+tcp://h/', 'nonsense', '']) {
    t.doesNotThrow(() => refuseOtherDrivers(uri), uri)
  }
})
