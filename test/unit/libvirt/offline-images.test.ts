import t from 'tap'

import { type ChainImage, decodeImageInfo } from '../../../src/libvirt/image-chain.js'
import { isChainSound, requireLocalImages, soundDepth } from '../../../src/libvirt/offline-images.js'
import { isLocalUri } from '../../../src/model/libvirt-uri.js'

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

t.test('images of a domain on another machine are not looked for on this one', async t => {
  const domain = { uuid: 'u', name: 'web01' }
  for (const uri of ['qemu+ssh://host/system', 'qemu+tls://host/system', 'qemu+tcp://127.0.0.1/system']) {
    t.equal(isLocalUri(uri), false)
    t.throws(() => requireLocalImages({ uri }, domain), { code: 'E_DOMAIN_STATE' })
  }
  for (const uri of ['qemu:///system', 'qemu+unix:///session?socket=/s']) {
    t.doesNotThrow(() => requireLocalImages({ uri }, domain))
  }
})
