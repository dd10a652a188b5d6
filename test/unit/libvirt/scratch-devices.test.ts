import t from 'tap'

import type { Hypervisor } from '../../../src/libvirt/hypervisor.js'
import { NO_FILES } from '../../../src/libvirt/host-files.js'
import { blockDeviceSize, ScratchDevices } from '../../../src/libvirt/scratch-devices.js'
import { parseScratchDevices } from '../../../src/model/scratch-device.js'

t.test('a block device of another machine is refused before it is looked at', async t => {
  const elsewhere = { uri: 'qemu+tls://hv/system', files: NO_FILES } as unknown as Hypervisor

  await t.rejects(ScratchDevices.claim(elsewhere, [{ kind: 'block', path: '/dev/null' }]), { code: 'E_UNSUPPORTED' })
  const none = await ScratchDevices.claim(elsewhere, [{ kind: 'file', path: '/s/x' }])
  await none[Symbol.asyncDispose]()
})

t.test('a file has no size as a block device', async t => {
  t.equal(await blockDeviceSize('/dev/null'), undefined)
  t.equal(await blockDeviceSize('/nowhere'), undefined)
})

t.test('each disk has one device of its own', async t => {
  t.strictSame(
    [...parseScratchDevices(['vda=/dev/a', 'sdb=/dev/b=c'])],
    [
      ['vda', '/dev/a'],
      ['sdb', '/dev/b=c'],
    ],
  )
  for (const wrong of [['vda'], ['vda=b'], ['=/dev/a'], ['vda=/dev/a', 'vda=/dev/b'], ['vda=/dev/a', 'vdb=/dev/a']]) {
    t.throws(() => parseScratchDevices(wrong), { code: 'E_USAGE' })
  }
})
