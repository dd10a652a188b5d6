import { writeFile } from 'node:fs/promises'

import t from 'tap'

import type { RecoveryPoint } from '../../src/model/recovery-point.js'
import { codes, Matrix, readings } from '../harness/matrix.js'
import { requires } from '../harness/requires.js'
import { KIB, MIB } from '../lab/fill.js'
import type { LabDomain } from '../lab/lab-domain.js'
import type { LabDiskSpec } from '../lab/lab-disk.js'
import { run } from '../lab/run-program.js'

t.setTimeout(600_000)
const SIZE = 16 * MIB

/** Loop devices belong to the machine, not to the lab. */
async function detachLoops(domain: LabDomain): Promise<void> {
  for (const { block, path } of domain.disks) if (block) await run('losetup', ['--detach', path])
}

const modes = (point: RecoveryPoint) =>
  Object.fromEntries(point.disks.map(({ target, mode }) => [target, mode] as const))

const KINDS: readonly { name: string; disk: LabDiskSpec; again: 'incremental' | 'full' }[] = [
  { name: 'qcow2', disk: { target: 'vda', size: SIZE }, again: 'incremental' },
  { name: 'qcow2 version 2', disk: { target: 'vdb', size: SIZE, imageOptions: 'compat=0.10' }, again: 'full' },
  { name: 'qcow2 on another image', disk: { target: 'vdc', size: SIZE, backed: true }, again: 'incremental' },
  { name: 'qcow2 with a data file', disk: { target: 'vdd', size: SIZE, imageOptions: 'DATA' }, again: 'incremental' },
  { name: 'qcow2 on a block device', disk: { target: 'vde', size: SIZE, block: true }, again: 'incremental' },
  { name: 'raw file', disk: { target: 'vdf', size: SIZE, format: 'raw' }, again: 'full' },
  { name: 'raw block device', disk: { target: 'vdg', size: SIZE, format: 'raw', block: true }, again: 'full' },
  {
    name: 'qcow2 with clusters of 2 MiB and no whole number of them',
    disk: { target: 'vdh', size: SIZE + 512, imageOptions: 'cluster_size=2M' },
    again: 'incremental',
  },
  { name: 'raw file of no whole chunks', disk: { target: 'vdi', size: SIZE + 3 * 512, format: 'raw' }, again: 'full' },
  {
    name: 'qcow2 with clusters of 4 KiB',
    disk: { target: 'vdj', size: SIZE + 4096, imageOptions: 'cluster_size=4k' },
    again: 'incremental',
  },
]

t.test(
  'disks of every kind, running and off: the right bytes, and no more of them than must be',
  requires('lab'),
  async t => {
    await using matrix = await Matrix.start()
    const { lab } = matrix
    const content = [{ kind: 'write', offset: MIB, length: 2 * MIB, fill: { seed: 1 } }] as const
    const disks = KINDS.map(({ disk }) => ({
      ...disk,
      content,
      ...(disk.imageOptions === 'DATA' ? { imageOptions: `data_file=${lab.path('data-file.raw')}` } : {}),
    }))
    const domain = await lab.domain({ name: 'kinds', disks })
    try {
      await domain.start()
      const full = await matrix.pull(domain)
      t.equal(full.difference, undefined, 'full, running')

      for (const { target, size } of domain.disks) {
        await domain.write(target, 4 * MIB, 64 * KIB, { seed: 2 })
        await domain.write(target, size - 512, 512, { seed: 3 })
        await domain.zero(target, MIB, 64 * KIB)
      }
      const running = await matrix.pull(domain)
      t.equal(running.difference, undefined, 'again, running')
      for (const { name, disk, again } of KINDS) {
        t.equal(modes(running.point)[disk.target], again, name)
        const { readBytes } = running.point.disks.find(({ target }) => target === disk.target)!.statistics
        if (again === 'incremental') t.ok(readBytes <= 4 * MIB, `${name}: ${readBytes} bytes read`)
      }
      t.strictSame([...new Set(codes(running))], ['W_FULL_ONLY'])

      await domain.destroy()
      for (const { target } of domain.disks) await domain.write(target, 6 * MIB, 64 * KIB, { seed: 4 })
      const off = await matrix.pull(domain)
      t.equal(off.difference, undefined, 'off')
      t.strictSame(modes(off.point), modes(running.point))

      await domain.start()
      for (const { target } of domain.disks) await domain.write(target, 7 * MIB, 64 * KIB, { seed: 5 })
      const last = await matrix.pull(domain)
      t.equal(last.difference, undefined, 'running again')
      t.strictSame(modes(last.point), modes(running.point))
      await domain.destroy()
    } finally {
      await detachLoops(domain)
    }
  },
)

t.test(
  'drives and disks that cannot or should not be backed up are skipped, each with its reason',
  requires('lab'),
  async t => {
    await using matrix = await Matrix.start()
    const { lab } = matrix
    for (const name of ['medium.iso', 'floppy.img', 'ro.raw', 'shared.raw']) {
      await run('truncate', ['--size', '1440K', lab.path(name)])
    }
    await run('qemu-img', ['create', '-q', '-f', 'qcow2', lab.path('transient.qcow2'), '4M'])
    const device = (kind: string, target: string, rest: string, format = 'raw') =>
      `<disk type='file' device='${kind}'><driver name='qemu' type='${format}'/>${rest}<target dev='${target}' bus='${
        target.startsWith('vd') ? 'virtio' : kind === 'floppy' ? 'fdc' : 'ide'
      }'/>`
    const source = (name: string) => `<source file='${lab.path(name)}'/>`
    const domain = await lab.domain({
      name: 'skips',
      disks: [{ target: 'vda', size: SIZE }],
      devices: [
        `${device('cdrom', 'hda', source('medium.iso'))}<readonly/></disk>`,
        `${device('cdrom', 'hdb', '')}<readonly/></disk>`,
        `${device('floppy', 'fda', source('floppy.img'))}</disk>`,
        `${device('disk', 'vdb', source('ro.raw'))}<readonly/></disk>`,
        `${device('disk', 'vdc', source('shared.raw'))}<shareable/></disk>`,
        `${device('disk', 'vdd', source('transient.qcow2'), 'qcow2')}<transient/></disk>`,
      ].join(''),
    })
    for (const state of ['off', 'running']) {
      if (state === 'running') await domain.start()

      const result = await matrix.pull(domain)

      t.equal(result.difference, undefined, state)
      t.strictSame(
        result.point.disks.map(({ target }) => target),
        ['vda'],
        state,
      )
      const reasons = Object.fromEntries(result.point.skipped.map(({ target, reason }) => [target, reason]))
      t.match(
        reasons,
        { hda: /cdrom/, hdb: /no medium/, fda: /floppy/, vdb: /read-only/, vdc: /shareable/, vdd: /transient/ },
        state,
      )
      t.strictSame(
        codes(result),
        ['W_DISK_SKIPPED', 'W_DISK_SKIPPED', 'W_DISK_SKIPPED'],
        'drives are nobody’s surprise',
      )
    }
  },
)

t.test(
  'what happened to a disk since the last point costs a full read of that disk alone',
  requires('lab'),
  async t => {
    await using matrix = await Matrix.start()
    const { lab } = matrix
    const domain = await lab.domain({
      name: 'changes',
      disks: [
        { target: 'vda', size: SIZE },
        { target: 'vdb', size: SIZE },
      ],
    })
    await domain.start()
    for (const { target } of domain.disks) await domain.write(target, 0, 2 * MIB, { seed: 1 })
    await matrix.pull(domain)

    await domain.attachDisk({ target: 'vdc', size: SIZE })
    await domain.write('vdc', 0, MIB, { seed: 2 })
    await domain.write('vda', 0, 64 * KIB, { seed: 3 })
    const added = await matrix.pull(domain)
    t.equal(added.difference, undefined, 'added')
    t.strictSame(readings(added.point), [`vda incremental ${64 * KIB}`, 'vdb incremental 0', `vdc full ${MIB}`])
    t.strictSame(codes(added), ['W_NEW_DISK'])

    await domain.resize('vda', SIZE + 8 * MIB)
    await domain.write('vda', SIZE + 4 * MIB, 64 * KIB, { seed: 4 })
    const grown = await matrix.pull(domain)
    t.equal(grown.difference, undefined, 'grown')
    t.strictSame(readings(grown.point), [`vda incremental ${64 * KIB}`, 'vdb incremental 0', 'vdc incremental 0'])

    await domain.write('vda', SIZE - 64 * KIB, 128 * KIB, { seed: 5 })
    await domain.resize('vda', SIZE)
    const shrunk = await matrix.pull(domain)
    t.equal(shrunk.difference, undefined, 'shrunk')
    t.strictSame(modes(shrunk.point), { vda: 'incremental', vdb: 'incremental', vdc: 'incremental' })
    await domain.resize('vda', SIZE + 8 * MIB)
    const again = await matrix.pull(domain)
    t.equal(again.difference, undefined, 'shrunk and grown again: what was cut off does not come back')
    await domain.write('vda', SIZE + 4 * MIB, 4 * MIB, { seed: 6 })
    await matrix.pull(domain)
    await domain.resize('vda', SIZE + 6 * MIB)
    await domain.resize('vda', SIZE + 8 * MIB)
    const between = await matrix.pull(domain)
    t.equal(between.difference, undefined, 'shrunk and grown between two points')
    t.strictSame(codes(between), ['W_CHAIN'])
    t.match(modes(between.point), { vda: 'full', vdb: 'incremental' })

    // Replaced by a copy that carries the same bitmaps, as a clone does, and then written to by somebody else.
    await domain.destroy()
    const { path, shadow } = domain.disk('vdb')
    await run('cp', [path, `${path}.copy`])
    await run('mv', [`${path}.copy`, path])
    await domain.start()
    const replaced = await matrix.pull(domain)
    t.equal(replaced.difference, undefined, 'replaced')
    t.strictSame(modes(replaced.point), { vda: 'incremental', vdb: 'full', vdc: 'incremental' })
    t.strictSame(codes(replaced), ['W_DISK_CHANGED'])

    await domain.destroy()
    const xml = lab.path('renamed.xml')
    const before = await lab.virsh('dumpxml', '--inactive', domain.uuid)
    await writeFile(
      xml,
      before.replace(`dev='vdb'`, `dev='vdz'`).replace(/<disk (?:(?!<\/disk>)[^])*vdc[^]*?<\/disk>/, ''),
    )
    await lab.virsh('define', xml)
    await domain.start()
    const renamed = await matrix.puller.pull(domain)
    t.strictSame(modes(renamed.point), { vda: 'incremental', vdz: 'full' }, 'renamed, and one removed')
    t.strictSame(codes(renamed), ['W_NEW_DISK', 'W_RECOVERED'], 'the bitmaps of vdb go out of vdz')
    t.equal(await matrix.difference(renamed.point, 'vdz', shadow), undefined)
  },
)
