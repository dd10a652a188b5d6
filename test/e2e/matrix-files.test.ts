import { existsSync } from 'node:fs'
import { readFile, writeFile } from 'node:fs/promises'

import t from 'tap'

import { codes, Matrix } from '../harness/matrix.js'
import { requires } from '../harness/requires.js'
import { MIB } from '../lab/fill.js'

t.setTimeout(300_000)
const CODE = '/usr/share/OVMF/OVMF_CODE_4M.fd'
const VARS = '/usr/share/OVMF/OVMF_VARS_4M.fd'
const needs = existsSync(CODE) ? requires('lab') : { skip: 'needs OVMF (Debian: ovmf)' }

t.test('UEFI variables and firmware are in the point as they were, and change with the domain', needs, async t => {
  await using matrix = await Matrix.start()
  const { lab, store } = matrix
  const nvram = lab.path('uefi_VARS.fd')
  const domain = await lab.domain({
    name: 'uefi',
    machine: 'q35',
    memory: 128 * MIB,
    disks: [{ target: 'vda', size: 16 * MIB }],
  })
  const xml = lab.path('uefi.xml')
  const firmware = `<loader readonly='yes' type='pflash'>${CODE}</loader><nvram template='${VARS}'>${nvram}</nvram>`
  const before = await lab.virsh('dumpxml', '--inactive', domain.uuid)
  await writeFile(xml, before.replace('</os>', `${firmware}</os>`))
  await lab.virsh('define', xml)
  const blob = async (point: Awaited<ReturnType<typeof matrix.pull>>['point'], name: string) => {
    const found = point.blobs.find(one => one.name === name)
    return found === undefined ? undefined : await store.readBlob(found)
  }

  const never = await matrix.pull(domain)
  t.equal(await blob(never.point, 'nvram'), undefined, 'never started: there are none yet')
  t.strictSame(codes(never), [])

  await domain.start()
  const running = await matrix.pull(domain)
  t.ok((await readFile(nvram)).equals((await blob(running.point, 'nvram'))!), 'the variables')
  t.ok((await readFile(CODE)).equals((await blob(running.point, 'loader'))!), 'the firmware')
  t.match(
    running.point.blobs.map(({ name }) => name),
    ['domain-inactive.xml', 'domain-live.xml'],
  )

  await domain.destroy()
  const changed = await readFile(nvram)
  changed[1000] = changed[1000]! ^ 0xff
  await writeFile(nvram, changed)
  const off = await matrix.pull(domain)
  t.ok(changed.equals((await blob(off.point, 'nvram'))!), 'as they are while it is off')
  t.equal(off.difference, undefined)
})

t.test(
  'what a domain boots from directly is in the point; what is gone is a warning and no failure',
  requires('lab'),
  async t => {
    await using matrix = await Matrix.start()
    const { lab, store } = matrix
    const domain = await lab.domain({ name: 'direct', disks: [{ target: 'vda', size: 16 * MIB }] })
    await writeFile(lab.path('kernel'), 'a kernel')
    const xml = lab.path('direct.xml')
    const before = await lab.virsh('dumpxml', '--inactive', domain.uuid)
    const boot = `<kernel>${lab.path('kernel')}</kernel><initrd>${lab.path('gone')}</initrd>`
    await writeFile(xml, before.replace('</os>', `${boot}</os>`))
    await lab.virsh('define', xml)

    const result = await matrix.pull(domain)

    const kernel = result.point.blobs.find(({ name }) => name === 'kernel')!
    t.equal(Buffer.from(await store.readBlob(kernel)).toString(), 'a kernel')
    t.strictSame(codes(result), ['W_FILE_SKIPPED'])
    t.match(result.warnings[0]!.message, /initrd .*gone/)
  },
)
