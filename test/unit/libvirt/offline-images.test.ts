import t from 'tap'

import { type ChainImage, decodeImageInfo } from '../../../src/libvirt/image-chain.js'
import { parseDomainXml } from '../../../src/libvirt/domain-xml.js'
import type { Hypervisor } from '../../../src/libvirt/hypervisor.js'
import { LOCAL_FILES, NO_FILES } from '../../../src/libvirt/host-files.js'
import { imageToolsOf, isChainSound, soundDepth, whyUnreadable } from '../../../src/libvirt/offline-images.js'

/** One letter for each image from the top: sound, broken, none. */
function chain(letters: string): ChainImage[] {
  return Array.from(letters, (letter, i) => ({
    path: `/${i}`,
    isBlockDevice: false,
    format: 'qcow2',
    bitmaps: letter === 'n' ? [{ name: 'other', isSound: true }] : [{ name: 'c', isSound: letter === 's' }],
  }))
}

t.test('a bitmap counts only where it is sound from the top image on, without a gap', async t => {
  const depths = { s: 1, ss: 2, sn: 1, ssn: 2, n: 0, ns: 0, sns: 0, b: 0, sb: 0, bs: 0, '': 0 }
  for (const [letters, depth] of Object.entries(depths)) {
    t.equal(soundDepth(chain(letters), 'c'), depth, letters)
    t.equal(isChainSound(chain(letters), 'c'), depth > 0, letters)
  }
})

t.test('a bitmap that is in use or does not record is not sound', async t => {
  const bitmaps = [
    { name: 'good', flags: ['auto'], granularity: 65536 },
    { name: 'in use', flags: ['in-use', 'auto'] },
    { name: 'off', flags: [] },
    { name: 'strange' },
    { flags: ['auto'] },
    7,
  ]
  const info = { 'virtual-size': 512, 'format-specific': { type: 'qcow2', data: { bitmaps } } }

  t.strictSame(decodeImageInfo(JSON.stringify(info))?.bitmaps, [
    { name: 'good', isSound: true },
    { name: 'in use', isSound: false },
    { name: 'off', isSound: false },
  ])
})

t.test('what qemu-img says is checked before it is believed', async t => {
  for (const answer of ['', 'null', '[]', '{', '{"virtual-size":"1"}']) t.equal(decodeImageInfo(answer), undefined)
  t.match(decodeImageInfo('{"virtual-size":1,"full-backing-filename":"/b","backing-filename-format":"raw"}'), {
    backing: { path: '/b', format: 'raw' },
  })
  t.match(decodeImageInfo('{"virtual-size":1,"backing-filename":"/b"}'), { backing: { path: '/b', format: undefined } })
})

t.test('where only libvirt answers, nobody opens images, and the error says what helps', async t => {
  const domain = { uuid: 'u', name: 'web01' }
  const refusal = { code: 'E_DOMAIN_STATE', hints: [/qemu\+ssh/, /--start-paused/, /run virtvault/] }
  t.throws(() => imageToolsOf({ files: NO_FILES }, domain), refusal)
  t.equal(imageToolsOf({ files: LOCAL_FILES }, domain), LOCAL_FILES.images)
})

t.test('why a disk of a domain that is off cannot be read is said in words', async t => {
  const hypervisor = {
    uri: 'qemu:///system',
    files: NO_FILES,
    call: () => Promise.reject(Object.assign(new Error('private'), { code: 'E_LIBVIRT', libvirtCode: 65 })),
  } as unknown as Hypervisor
  const disks = (xml: string) =>
    parseDomainXml(`<domain type='qemu'><name>a</name><uuid>b</uuid><devices>${xml}</devices></domain>`).disks
  const why = async (xml: string, format = 'raw') => {
    const disk = `<disk type='network'><driver type='${format}'/><source ${xml}</source><target dev='vda'/></disk>`
    return await whyUnreadable(hypervisor, disks(disk)[0]!)
  }
  const unix = `<host transport='unix' socket='/x'/>`

  t.equal(await why(`protocol='nbd' name='it'>${unix}`), undefined)
  t.equal(await why(`protocol='nbd'><host name='h' port='10809'/>`), undefined)
  t.match(await why(`protocol='nbd' tls='yes'><host name='h' port='10809'/>`), /TLS.*qemu.conf/)
  t.match(await why(`protocol='rbd' name='p/i'><host name='h'/>`), /\(rbd\)/)
  t.match(await why(`protocol='iscsi' name='iqn/1'><host name='h'/><auth username='u'/>`), /password/)
  t.match(await why(`protocol='nbd'>${unix}<host name='h'/>`), /several servers/)
  t.match(await why(`protocol='nbd'>${unix}`, 'qcow2'), /not raw/)
  for (const protocol of ['rbd', 'ssh', 'http', 'gluster', 'vxhs'])
    t.match(await why(`protocol='${protocol}' name='x'>`), new RegExp(`\\(${protocol}\\)`))
  const encrypted = (inside: string) =>
    `<disk type='file'><source file='/x'><encryption ${inside}</encryption></source><target dev='vda'/></disk>`
  t.match(await whyUnreadable(hypervisor, disks(encrypted(`format='qcow'>`))[0]!), /qcow/)
  const secret = `format='luks'><secret type='passphrase' uuid='u'/>`
  t.match(await whyUnreadable(hypervisor, disks(encrypted(secret))[0]!), /secret u is private/)
})
