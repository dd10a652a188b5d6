import { readFileSync } from 'node:fs'

import t from 'tap'

import { parseDomainXml } from '../../../src/libvirt/domain-xml.js'
import type { DomainDisk, ImageSource } from '../../../src/model/domain.js'
import { classifyDisk } from '../../../src/model/disk-class.js'

const NO_WISHES = { readOnly: false, shareable: false }

/** As captured from libvirt 9.0. */
function fixture(name: string): string {
  return readFileSync(new URL(`../../../../fixtures/libvirt-xml/${name}`, import.meta.url), 'utf8')
}

function disk(disks: readonly DomainDisk[], target: string): DomainDisk {
  return disks.find(each => each.target === target)!
}

function domain(inner: string): string {
  return `<domain type='qemu'><name>d</name><uuid>u</uuid>${inner}</domain>`
}

t.test('a live domain is read with its names unescaped', async t => {
  const described = parseDomainXml(fixture('rich-live.xml'))

  t.match(described, {
    name: 'rich & <odd> näme',
    uuid: '8367a63a-2f39-4551-836b-8c0c359adb82',
    type: 'qemu',
    memory: 64 * 2 ** 20,
    cpus: 2,
    machine: 'pc-i440fx-7.2',
    agent: 'disconnected',
    tpm: undefined,
  })
  t.strictSame(
    described.disks.map(each => each.target),
    ['vda', 'vdb', 'vdc', 'vdd', 'vde', 'vdf', 'vdg', 'vdh', 'hda', 'hdb', 'fda'],
  )
})

t.test('every attribute of a disk that matters is read', async t => {
  const { disks } = parseDomainXml(fixture('rich-live.xml'))

  t.strictSame(disk(disks, 'vda'), {
    target: 'vda',
    device: 'disk',
    bus: 'virtio',
    source: { kind: 'file', path: '/var/lib/libvirt/images/a.qcow2' },
    format: 'qcow2',
    readOnly: false,
    shareable: false,
    transient: false,
    hasMedium: true,
    backingChain: [],
    serial: 'S-1',
    discard: 'unmap',
    detectZeroes: 'unmap',
    index: 11,
    encryption: undefined,
    dataFile: undefined,
  })
  t.strictSame(disk(disks, 'vdb').backingChain, [
    { source: { kind: 'file', path: '/var/lib/libvirt/images/base.qcow2' }, format: 'qcow2' },
  ])
  t.match(disk(disks, 'vdg').source, { kind: 'network', protocol: 'nbd', uri: 'nbd:///run/virtvault/net.sock/' })
  t.match(disk(disks, 'hdb'), { hasMedium: false, source: { kind: 'none' }, device: 'cdrom' })
})

/** Of a domain that runs libvirt says what came of it, of one that is off only what somebody wrote. */
function sayingTls(source: ImageSource): ImageSource {
  return source.kind === 'network' ? { ...source, tls: source.tls ?? { isOn: false, hostname: undefined } } : source
}

t.test('inactive XML tells the same disks and no agent state', async t => {
  const live = parseDomainXml(fixture('rich-live.xml'))
  const inactive = parseDomainXml(fixture('rich-inactive.xml'))

  const targets = (of: typeof live) => of.disks.map(each => [each.target, sayingTls(each.source)]).sort()
  t.strictSame(targets(inactive), targets(live))
  t.equal(inactive.agent, 'unknown')
})

t.test('firmware, encryption, volumes and Ceph images are read', async t => {
  const described = parseDomainXml(fixture('uefi-inactive.xml'))

  t.match(described.firmware, {
    loader: '/usr/share/OVMF/OVMF_CODE_4M.fd',
    nvram: { path: '/var/lib/libvirt/qemu/nvram/uefi_VARS.fd', template: '/usr/share/OVMF/OVMF_VARS_4M.fd' },
    kernel: '/boot/vmlinuz',
    initrd: '/boot/initrd.img',
    dtb: undefined,
  })
  t.match(disk(described.disks, 'sda'), {
    source: { kind: 'block', path: '/dev/vg0/uefi' },
    encryption: { format: 'luks', secret: '0a81f5b2-8403-7b23-c8d6-21ccc2f80d6f' },
  })
  t.strictSame(disk(described.disks, 'sdb').source, { kind: 'volume', pool: 'default', volume: 'data.qcow2' })
  t.match(disk(described.disks, 'sdc').source, { protocol: 'rbd', name: 'pool/image', uri: /^rbd:\/\/mon1:6789,mon2/ })
  t.equal(described.agent, 'absent')
})

t.test('a TPM is read with its backend', async t => {
  const tpm = `<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>`

  t.strictSame(parseDomainXml(domain(`<devices>${tpm}</devices>`)).tpm, {
    model: 'tpm-crb',
    backend: 'emulator',
    version: '2.0',
  })
})

t.test('each disk is classified as LIBVIRT.md §4 says', async t => {
  const live = parseDomainXml(fixture('rich-live.xml')).disks
  const uefi = parseDomainXml(fixture('uefi-inactive.xml')).disks
  const abilities = (disks: readonly DomainDisk[]) =>
    Object.fromEntries(
      disks.map(each => {
        const compat = each.target === 'vdd' ? '0.10' : '1.1'
        return [each.target, classifyDisk(each, NO_WISHES, { compat }).ability]
      }),
    )

  t.strictSame(abilities(live), {
    vda: 'incremental',
    vdb: 'incremental',
    vdc: 'full-only',
    vdd: 'full-only',
    vde: 'skip',
    vdf: 'skip',
    vdg: 'full-only',
    vdh: 'incremental',
    hda: 'skip',
    hdb: 'skip',
    fda: 'skip',
  })
  t.strictSame(abilities(uefi), { sda: 'full-only', sdb: 'incremental', sdc: 'full-only', sdd: 'skip' })
})

t.test('read-only and shareable disks are read in full when they are asked for', async t => {
  const { disks } = parseDomainXml(fixture('rich-live.xml'))

  t.equal(classifyDisk(disk(disks, 'vde'), { readOnly: false, shareable: true }, undefined).ability, 'full-only')
  t.equal(classifyDisk(disk(disks, 'vdf'), { readOnly: true, shareable: false }, undefined).ability, 'full-only')
})

t.test('what is no domain of libvirt is refused', async t => {
  const deep = (levels: number) => '<a>'.repeat(levels) + '</a>'.repeat(levels)
  const entity = `<!DOCTYPE domain [<!ENTITY a "b">]>`
  for (const [why, text] of [
    ['nothing', ''],
    ['another root', '<network/>'],
    ['two roots', domain('') + domain('')],
    ['torn', fixture('rich-live.xml').slice(0, 3000)],
    ['crossed tags', domain('<a><b></a></b>')],
    ['no name', `<domain type='qemu'><uuid>u</uuid></domain>`],
    ['a document type', entity + domain('')],
    ['a document type behind a comment', `<?xml version='1.0'?>\n<!-- x -->\n${entity}${domain('')}`],
    ['too deep', domain(deep(70))],
    ['too large', domain(' '.repeat(17 * 2 ** 20))],
  ] as const) {
    t.throws(() => parseDomainXml(text), { code: 'E_LIBVIRT' }, why)
  }
  t.ok(parseDomainXml(domain(deep(40))), 'forty levels are fine')
})

t.test('an entity is never expanded, only the characters of XML', async t => {
  const xml = `<domain type='qemu'><name>&amp;lt;&#65;&#x42;&unknown;&__proto__;</name><uuid>u</uuid></domain>`

  t.equal(parseDomainXml(xml).name, '&lt;AB&unknown;&__proto__;')
})
