import t from 'tap'

import { parseDomainXml } from '../../../src/libvirt/domain-xml.js'
import { NO_FILES } from '../../../src/libvirt/host-files.js'
import { networkAccess } from '../../../src/libvirt/network-images.js'
import { nbdTlsConf } from '../../../src/libvirt/qemu-conf.js'

/** Of a host with this qemu.conf and these directories. */
function accessTo(source: string, conf: string | undefined, directories: readonly string[] = []) {
  const xml = `<domain type='qemu'><name>a</name><uuid>b</uuid><devices><disk type='network'><driver type='raw'/><source ${source}</source><target dev='vda'/></disk></devices></domain>`
  const [disk] = parseDomainXml(xml).disks
  const files = {
    ...NO_FILES,
    readText: () => Promise.resolve(conf),
    taken: (paths: readonly string[]) => Promise.resolve(paths.filter(path => directories.includes(path))),
  }
  if (disk?.source.kind !== 'network') throw new Error('not a network disk')
  return networkAccess({ files, uri: 'qemu:///system' }, disk.source, disk)
}

t.test('an NBD disk is opened in the open only where neither the domain nor its host wants TLS', async t => {
  const source = (tls: string) => `protocol='nbd' name='it' ${tls}><host name='h' port='7'/>`
  const clear = { image: { node: { driver: 'nbd', export: 'it' }, certificates: undefined } }
  const node = { driver: 'nbd', server: { type: 'inet', host: 'h', port: '7' }, export: 'it' }
  t.match(await accessTo(source(''), undefined), clear)
  t.match(await accessTo(source(''), 'nbd_tls = 0'), clear)
  t.match(await accessTo(source("tls='no'"), 'nbd_tls = 1'), clear)

  const conf = 'nbd_tls = 1\nnbd_tls_x509_cert_dir = "/pki"\n'
  t.match(await accessTo(source(''), conf, ['/pki']), { image: { node, certificates: '/pki' } })
  t.match(await accessTo(source("tls='yes' tlsHostname='x'"), '', ['/etc/pki/qemu']), {
    image: { node: { ...node, 'tls-hostname': 'x' }, certificates: '/etc/pki/qemu' },
  })
  t.match(await accessTo(source(''), conf), { obstacle: /without certificates in \/pki/ })
  t.match(await accessTo(source("tls='yes'"), undefined), { obstacle: /cannot read/ })
  t.match(await accessTo(source(''), `${conf}nbd_tls_x509_secret_uuid = "u"`, ['/pki']), { obstacle: /passphrase/ })
})

t.test('an iSCSI disk is opened by its portal, target and number', async t => {
  const opened = await accessTo(`protocol='iscsi' name='iqn.2026-11.a:b/3'><host name='h' port='1'/>`, '')
  t.match(opened.image, {
    node: { driver: 'iscsi', transport: 'tcp', portal: 'h:1', target: 'iqn.2026-11.a:b', lun: 3 },
  })
  const short = `protocol='iscsi' name='iqn.2026-11.a:b'><host name='fe80::1'/><initiator><iqn name='me'/></initiator>`
  t.match((await accessTo(short, '')).image, {
    node: { portal: '[fe80::1]:3260', target: 'iqn.2026-11.a:b', lun: 0, 'initiator-name': 'me' },
  })
})

t.test(
  'qemu.conf is read as libvirt reads it: comments do not count, and a directory of its own comes first',
  async t => {
    t.strictSame(nbdTlsConf('#nbd_tls = 1\n# default_tls_x509_cert_dir = "/no"\n'), {
      isDefault: false,
      certificates: ['/etc/pki/libvirt-nbd', '/etc/pki/qemu'],
      hasSecret: false,
    })
    t.strictSame(nbdTlsConf('default_tls_x509_cert_dir="/d"\nnbd_tls=1 # yes\ndefault_tls_x509_secret_uuid = "x"'), {
      isDefault: true,
      certificates: ['/etc/pki/libvirt-nbd', '/d'],
      hasSecret: true,
    })
  },
)
