import t from 'tap'

import { isLocalUri, parseLibvirtUri } from '../../../src/model/libvirt-uri.js'

t.test('a URI is taken apart as libvirt does', async t => {
  t.match(parseLibvirtUri('qemu:///system'), { driver: 'qemu', transport: 'local', host: undefined, path: '/system' })
  t.match(parseLibvirtUri('qemu://hv1/system'), { transport: 'tls', host: 'hv1' }, 'a host alone means TLS')
  t.match(parseLibvirtUri('qemu+ssh://bob%40x@hv1:2222/session?keyfile=%2Fk&no_verify=1'), {
    transport: 'ssh',
    user: 'bob@x',
    host: 'hv1',
    port: 2222,
    path: '/session',
    parameters: new Map([
      ['keyfile', '/k'],
      ['no_verify', '1'],
    ]),
  })
  t.match(parseLibvirtUri('qemu+libssh2://[2001:db8::1]:22/system'), {
    transport: 'ssh',
    host: '2001:db8::1',
    port: 22,
  })
  t.equal(parseLibvirtUri('/etc/passwd'), undefined)
  t.equal(parseLibvirtUri('qemu+pigeon://h/system'), undefined)
})

t.test('only a URI without a host is of this machine', async t => {
  for (const uri of ['qemu:///system', 'qemu+unix:///system?socket=/x', 'qemu:///session'])
    t.equal(isLocalUri(uri), true)
  for (const uri of ['qemu://h/system', 'qemu+ssh:///system', 'qemu+ssh://localhost/system'])
    t.equal(isLocalUri(uri), false)
})
