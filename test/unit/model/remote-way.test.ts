import t from 'tap'

import { parseLibvirtUri } from '../../../src/model/libvirt-uri.js'
import { remoteWay, type RemoteWish } from '../../../src/model/remote-way.js'

const wayOf = (uri: string, wish: RemoteWish = {}) => remoteWay(parseLibvirtUri(uri)!, wish)

t.test('ssh is tunnelled, everything else is TLS with a checked certificate', async t => {
  t.strictSame(wayOf('qemu+ssh://hv/system'), { kind: 'tunnel' })
  t.match(wayOf('qemu+ssh://hv/system', { nbd: 'tls' }), { kind: 'tcp', host: 'hv', tls: { verifyPeer: true } })
  t.match(wayOf('qemu+tcp://hv/system'), { kind: 'tcp', firstPort: 10809, lastPort: 10872, tls: { verifyPeer: true } })
  t.match(wayOf('qemu://hv/system', { host: 'hv.example', ports: '7-9' }), {
    host: 'hv.example',
    firstPort: 7,
    lastPort: 9,
  })
})

t.test('clear text is refused unless somebody says that the network is trusted', async t => {
  t.throws(() => wayOf('qemu+tcp://hv/system', { nbd: 'tcp' }), { code: 'E_REFUSED' })
  t.throws(() => wayOf('qemu+ssh://hv/system', { nbd: 'tcp', insecure: false }), { code: 'E_REFUSED' })
  t.match(wayOf('qemu+tcp://hv/system', { insecure: true }), { kind: 'tcp', tls: undefined })
  t.match(wayOf('qemu+tcp://hv/system', { nbd: 'tls', insecure: true }), { tls: { verifyPeer: true } }, 'TLS stays TLS')
})

t.test('what contradicts itself is an error of configuration', async t => {
  t.throws(() => wayOf('qemu+tls://hv/system', { nbd: 'ssh' }), { code: 'E_CONFIG' })
  for (const ports of ['', 'x', '0', '9-8', '1-70000']) {
    t.throws(() => wayOf('qemu+tls://hv/system', { ports }), { code: 'E_CONFIG' }, ports)
  }
})
