import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { open, writeFile } from 'node:fs/promises'
import { setTimeout as delay } from 'node:timers/promises'

import t from 'tap'

import { codes, Matrix, readings } from '../harness/matrix.js'
import { requires } from '../harness/requires.js'
import { fillBytes, KIB, MIB } from '../lab/fill.js'
import { imageDifference } from '../lab/images.js'
import type { LabDomain } from '../lab/lab-domain.js'
import type { Lab } from '../lab/lab.js'
import { run } from '../lab/run-program.js'

t.setTimeout(300_000)
const SIZE = 8 * MIB

/** A write through QEMU to a disk that the lab did not make. */
async function write(lab: Lab, domain: LabDomain, target: string, command: string): Promise<void> {
  const xml = await lab.virsh('dumpxml', domain.uuid)
  const disk = xml.split('<disk ').find(part => part.includes(`<target dev='${target}'`))
  const alias = /<alias name='([^']+)'/.exec(disk!)![1]!
  const device = `/machine/peripheral/${alias}/virtio-backend`
  const said = await lab.virsh('qemu-monitor-command', domain.uuid, '--hmp', `qemu-io -d ${device} "${command}"`)
  if (said !== '') throw new Error(said)
  await lab.virsh('qemu-monitor-command', domain.uuid, '--hmp', `qemu-io -d ${device} flush`)
}

t.test('a volume of a storage pool is pulled like the file that it is', requires('lab'), async t => {
  await using matrix = await Matrix.start()
  const { lab } = matrix
  await run('mkdir', [lab.path('pool')])
  await lab.virsh('pool-create-as', 'pool', 'dir', '--target', lab.path('pool'))
  // libvirt's own vol-create-as makes version 2, which keeps no bitmap.
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', lab.path('pool/volume'), String(SIZE)])
  await lab.virsh('pool-refresh', 'pool')
  const domain = await lab.domain({
    name: 'volumes',
    disks: [],
    devices: `<disk type='volume' device='disk'><driver name='qemu' type='qcow2'/><source pool='pool' volume='volume'/><target dev='vda' bus='virtio'/></disk>`,
  })
  const read: string[] = []
  for (const [n, isOn] of [true, true, false, false].entries()) {
    if (isOn) {
      if (n === 0) await domain.start()
      await write(lab, domain, 'vda', `write -P 0x${n + 1}1 ${n}M 64k`)
    } else {
      if (n === 2) await domain.destroy()
      await run('qemu-io', ['-f', 'qcow2', '-c', `write -P 0x${n + 1}1 ${n}M 64k`, lab.path('pool/volume')])
    }
    const { point } = await matrix.puller.pull(domain)
    read.push(...readings(point))
    const restored = await matrix.writeOut(point, 'vda')
    if (isOn) await domain.destroy()
    const original = { path: lab.path('pool/volume'), format: 'qcow2' }
    t.equal(await imageDifference({ path: restored, format: 'raw' }, original), undefined)
    if (n === 0) await domain.start()
    if (n === 1) await domain.start()
  }
  t.strictSame(read, ['vda full 65536', 'vda incremental 65536', 'vda incremental 65536', 'vda incremental 65536'])
})

t.test(
  'a network disk is read in full while its domain runs, and skipped with a warning while it is off',
  requires('lab'),
  async t => {
    await using matrix = await Matrix.start()
    const { lab } = matrix
    const [raw, socket] = [lab.path('remote.raw'), lab.path('remote.sock')]
    await run('truncate', ['--size', String(SIZE), raw])
    const server = spawn('qemu-nbd', [
      '--format=raw',
      '--persistent',
      '--shared=9',
      `--socket=${socket}`,
      '-x',
      'it',
      raw,
    ])
    try {
      while (!existsSync(socket)) await delay(10)
      const domain = await lab.domain({
        name: 'network',
        disks: [{ target: 'vda', size: SIZE }],
        devices: `<disk type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='nbd' name='it'><host transport='unix' socket='${socket}'/></source><target dev='vdb' bus='virtio'/></disk>`,
      })
      await domain.start()
      for (const n of [1, 2]) {
        await write(lab, domain, 'vdb', `write -P 0x${n}${n} ${n}M 64k`)
        const { point } = await matrix.puller.pull(domain)
        const restored = await matrix.writeOut(point, 'vdb')
        t.equal(await imageDifference({ path: restored, format: 'raw' }, { path: raw, format: 'raw' }), undefined)
        t.equal(point.disks.find(({ target }) => target === 'vdb')!.mode, 'full')
      }
      await domain.destroy()

      const off = await matrix.puller.pull(domain)

      t.match(off.point.skipped, [{ target: 'vdb', reason: /network disk/ }])
      t.strictSame(codes(off), ['W_DISK_SKIPPED'])
    } finally {
      server.kill()
      await once(server, 'exit')
    }
  },
)

t.test(
  'an encrypted disk is pulled decrypted while its domain runs, and skipped with a warning while it is off',
  requires('lab'),
  async t => {
    await using matrix = await Matrix.start()
    const { lab } = matrix
    const [image, secretXml, key] = [lab.path('luks.qcow2'), lab.path('secret.xml'), lab.path('key')]
    await writeFile(key, 'open sesame')
    const luks = [
      '--object',
      `secret,id=s,file=${key}`,
      '-o',
      'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10',
    ]
    const made = await run('qemu-img', ['create', '-q', '-f', 'qcow2', ...luks, image, String(SIZE)], { check: false })
    // QEMU measures the CPU to choose the iterations, and gives up on some virtual machines.
    if (made.code !== 0) {
      await t.test('qemu-img makes a LUKS image', { skip: made.stderr }, () => undefined)
      return
    }
    const uuid = '6a1d4a7e-1c5b-4c0e-9d2f-000000000001'
    await writeFile(secretXml, `<secret ephemeral='no' private='yes'><uuid>${uuid}</uuid></secret>`)
    await lab.virsh('secret-define', secretXml)
    await lab.virsh('secret-set-value', uuid, '--file', key, '--plain')
    const domain = await lab.domain({
      name: 'luks',
      disks: [{ target: 'vda', size: SIZE }],
      devices: `<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='${image}'><encryption format='luks'><secret type='passphrase' uuid='${uuid}'/></encryption></source><target dev='vdb' bus='virtio'/></disk>`,
    })
    await domain.start()
    const shadow = await open(lab.path('luks.raw'), 'w')
    await shadow.truncate(SIZE)
    const read: string[] = []
    for (const n of [1, 2]) {
      await write(lab, domain, 'vdb', `write -P ${n} ${n}M 64k`)
      await shadow.write(Buffer.alloc(64 * KIB, n), 0, 64 * KIB, n * MIB)
      const { point } = await matrix.puller.pull(domain)
      t.equal(await matrix.difference(point, 'vdb', lab.path('luks.raw')), undefined)
      read.push(readings(point)[1]!)
    }
    await shadow.close()
    t.strictSame(read, [`vdb full ${64 * KIB}`, `vdb incremental ${64 * KIB}`])
    await domain.destroy()

    const off = await matrix.puller.pull(domain)

    t.match(off.point.skipped, [{ target: 'vdb', reason: /encrypted/ }])
    t.strictSame(codes(off), ['W_DISK_SKIPPED'])

    const request = { startPaused: true }
    const paused = await matrix.puller.pull(domain, { request })
    t.equal(await matrix.difference(paused.point, 'vdb', lab.path('luks.raw')), undefined)
    t.equal(await domain.state(), 'shut off', 'started paused, and stopped again')
    await domain.start()
    await lab.virsh('managedsave', domain.uuid)
    await t.rejects(matrix.puller.pull(domain, { request }), { code: 'E_REFUSED' })
    t.match(await lab.virsh('dominfo', domain.uuid), /Managed save: *yes/)
  },
)

t.test('a raw file that does not end with a sector is pulled with zeros up to the next', requires('lab'), async t => {
  await using matrix = await Matrix.start()
  const { lab } = matrix
  const [path, padded] = [lab.path('odd.raw'), lab.path('padded.raw')]
  const bytes = fillBytes({ seed: 7 }, MIB + 77)
  await writeFile(path, bytes)
  await writeFile(padded, Buffer.concat([bytes, Buffer.alloc(512 - 77)]))
  const domain = await lab.domain({
    name: 'odd',
    disks: [],
    devices: `<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='${path}'/><target dev='vda' bus='virtio'/></disk>`,
  })
  const off = await matrix.puller.pull(domain)
  t.equal(await matrix.difference(off.point, 'vda', padded), undefined, 'off')
  await domain.start()
  const running = await matrix.puller.pull(domain)
  t.equal(await matrix.difference(running.point, 'vda', padded), undefined, 'running')
})
