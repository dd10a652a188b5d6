import { readFileSync } from 'node:fs'

import t from 'tap'

import { type RestoreXmlOptions, rewriteDomainXml } from '../../../src/libvirt/restore-xml.js'
import { childOf, childrenOf, parseXml, textOfChild } from '../../../src/libvirt/tree-xml.js'

const fixture = (name: string) =>
  readFileSync(new URL(`../../../../fixtures/libvirt-xml/${name}.xml`, import.meta.url), 'utf8')

const COPY: RestoreXmlOptions = {
  name: 'copy',
  uuid: '00000000-1111-4222-8333-444444444444',
  macs: 'new',
  network: { kind: 'keep' },
  disks: new Map([
    ['vda', { kind: 'file', path: '/new/vda.qcow2', format: 'qcow2' }],
    ['vdc', { kind: 'block', path: '/dev/vg/c', format: 'raw' }],
  ]),
  nvram: undefined,
  ownNamespaces: ['https://example.org/app/1'],
}

const original = (uuid: string, name: string): RestoreXmlOptions => ({ ...COPY, uuid, name, macs: 'keep' })

t.test('restored disks get their new places, the others are gone, drives are empty', async t => {
  const { xml, notes } = rewriteDomainXml(fixture('rich-inactive'), COPY)

  const devices = childOf(parseXml(xml, 'domain'), 'devices')
  const disks = childrenOf(devices, 'disk').map(disk => ({
    target: childOf(disk, 'target')?.attributes.get('dev'),
    type: disk.attributes.get('type'),
    format: childOf(disk, 'driver')?.attributes.get('type'),
    source: childOf(disk, 'source') && Object.fromEntries(childOf(disk, 'source')!.attributes),
  }))
  t.strictSame(disks, [
    { target: 'vda', type: 'file', format: 'qcow2', source: { file: '/new/vda.qcow2' } },
    { target: 'vdc', type: 'block', format: 'raw', source: { dev: '/dev/vg/c' } },
    { target: 'hda', type: 'file', format: undefined, source: undefined },
    { target: 'hdb', type: 'file', format: undefined, source: undefined },
    { target: 'fda', type: 'file', format: undefined, source: undefined },
  ])
  t.match(notes, [/Disk vdb was not restored/])
})

t.test('what belongs to the device of the guest stays: serial, address, discard', async t => {
  const { xml } = rewriteDomainXml(fixture('rich-inactive'), COPY)

  const [vda] = childrenOf(childOf(parseXml(xml, 'domain'), 'devices'), 'disk')
  t.equal(textOfChild(vda, 'serial'), 'S-1')
  t.equal(childOf(vda, 'address')?.attributes.get('slot'), '0x03')
  t.equal(childOf(vda, 'driver')?.attributes.get('discard'), 'unmap')
})

t.test('live XML loses its run: id, chains, indexes, aliases and labels', async t => {
  const { xml } = rewriteDomainXml(fixture('rich-live'), COPY)

  t.notMatch(xml, /<domain[^>]* id=/)
  t.notMatch(xml, /backingStore|<source[^>]* index=|<alias |seclabel|state="/)
})

t.test('a copy has a name and UUID of its own and not our jobs', async t => {
  const { xml } = rewriteDomainXml(fixture('rich-inactive'), COPY)

  const domain = parseXml(xml, 'domain')
  t.equal(textOfChild(domain, 'name'), 'copy')
  t.equal(textOfChild(domain, 'uuid'), COPY.uuid)
  t.strictSame(childOf(domain, 'metadata')?.children, [])
})

t.test('the domain itself keeps its odd name and its jobs', async t => {
  const name = 'rich & <odd> näme'
  const { xml } = rewriteDomainXml(fixture('rich-inactive'), original('8367a63a-2f39-4551-836b-8c0c359adb82', name))

  const domain = parseXml(xml, 'domain')
  t.equal(childOf(domain, 'name')?.text, name)
  t.equal(childOf(domain, 'metadata')?.children[0]?.attributes.get('xmlns:app'), 'https://example.org/app/1')
})

t.test('UEFI variables go to the restored file, or to fresh ones, never to the original', async t => {
  const rewritten = (nvram: string | undefined) =>
    childOf(
      childOf(parseXml(rewriteDomainXml(fixture('uefi-inactive'), { ...COPY, nvram }).xml, 'domain'), 'os'),
      'nvram',
    )

  t.equal(rewritten('/nv/copy_VARS.fd')?.text, '/nv/copy_VARS.fd')
  t.equal(rewritten(undefined)?.text, '')
  t.equal(rewritten(undefined)?.attributes.get('template'), '/usr/share/OVMF/OVMF_VARS_4M.fd')
})

t.test('network disks, volumes and encrypted devices become plain files', async t => {
  const disks = new Map(
    ['sda', 'sdb', 'sdc', 'sdd'].map(
      target => [target, { kind: 'file', path: `/new/${target}.raw`, format: 'raw' }] as const,
    ),
  )
  const { xml } = rewriteDomainXml(fixture('uefi-inactive'), { ...COPY, disks })

  for (const disk of childrenOf(childOf(parseXml(xml, 'domain'), 'devices'), 'disk')) {
    t.equal(disk.attributes.get('type'), 'file')
    t.equal(childOf(disk, 'source')?.children.length, 0)
    t.strictSame([...(childOf(disk, 'source')?.attributes.keys() ?? [])], ['file'])
  }
})

const GUEST = `<domain type='kvm' id='3' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web</name><description>two\n\tlines &amp; more</description><uuid>11111111-2222-4333-8444-555555555555</uuid>
  <genid>aaaaaaaa-2222-4333-8444-555555555555</genid>
  <sysinfo type='smbios'><system><entry name='uuid'>11111111-2222-4333-8444-555555555555</entry><entry name='serial'>7</entry></system></sysinfo>
  <devices>
    <emulator>/tmp/evil</emulator>
    <interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/><target dev='vnet3'/><model type='virtio'/><vlan><tag id='4'/></vlan></interface>
    <interface type='direct'><mac address='52:54:00:00:00:02'/><source dev='eth0' mode='bridge'/><model type='e1000'/></interface>
    <channel type='unix'><source mode='bind' path='/var/lib/libvirt/qemu/channel/target/domain-3-web/org.qemu.guest_agent.0'/><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <serial type='file'><source path='/var/log/web.log'/><target port='0'/></serial>
    <graphics type='vnc' port='5907' autoport='no' listen='127.0.0.1'><listen type='address' address='127.0.0.1'/></graphics>
    <vsock model='virtio'><cid auto='no' address='7'/></vsock>
    <hostdev mode='subsystem' type='pci'/>
  </devices>
  <seclabel type='dynamic' model='dac' relabel='yes'><label>+64055:+64055</label></seclabel>
  <qemu:commandline><qemu:arg value='-S'/></qemu:commandline>
</domain>`

t.test('a copy shares nothing that must be unique', async t => {
  const { xml, notes } = rewriteDomainXml(GUEST, COPY)

  t.notMatch(xml, /52:54:00|vnet3|domain-3-web|web\.log|5907|address="7"|aaaaaaaa|seclabel| id="3"/)
  t.match(xml, /copy\.log/)
  t.match(xml, /autoport="yes"/)
  t.match(xml, /<entry name="serial">7</)
  t.notMatch(xml, /11111111-2222/)
  t.equal(notes.length, 3, 'emulator, hostdev and QEMU arguments are pointed out')
  t.match(xml, /xmlns:qemu=/)
  t.match(xml, /two\n\tlines &amp; more/)
})

t.test('the domain itself keeps MACs, ports and generation', async t => {
  const { xml } = rewriteDomainXml(GUEST, original('11111111-2222-4333-8444-555555555555', 'web'))

  for (const kept of [/52:54:00:00:00:01/, /5907/, /aaaaaaaa/, /web\.log/, /address="7"/]) t.match(xml, kept)
})

t.test('interfaces can be removed, or moved to one network', async t => {
  const none = rewriteDomainXml(GUEST, { ...COPY, network: { kind: 'none' } }).xml
  t.notMatch(none, /<interface/)

  const lab = rewriteDomainXml(GUEST, { ...COPY, network: { kind: 'network', name: 'lab & co' } }).xml
  const interfaces = childrenOf(childOf(parseXml(lab, 'domain'), 'devices'), 'interface')
  t.strictSame(
    interfaces.map(one => [one.attributes.get('type'), childOf(one, 'source')?.attributes.get('network')]),
    [
      ['network', 'lab & co'],
      ['network', 'lab & co'],
    ],
  )
  t.notMatch(lab, /br0|eth0|<vlan/)
})

t.test('what is no domain is refused', async t => {
  t.throws(() => rewriteDomainXml('<!DOCTYPE a [<!ENTITY b "c">]><domain/>', COPY), { code: 'E_LIBVIRT' })
  t.throws(() => rewriteDomainXml('<pool/>', COPY), { code: 'E_LIBVIRT' })
})
