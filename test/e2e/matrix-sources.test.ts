import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { open, writeFile } from 'node:fs/promises'
import { setTimeout as delay } from 'node:timers/promises'

import t from 'tap'

import { codes, Matrix, readings, redefine } from '../harness/matrix.js'
import { requires } from '../harness/requires.js'
import { fillBytes, KIB, MIB } from '../lab/fill.js'
import { createEncryptedImage, imageDifference, imageInfo } from '../lab/images.js'
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

t.test('a network disk is read in full while its domain runs, and while it is off', requires('lab'), async t => {
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

    await run('qemu-io', ['-f', 'raw', '-c', 'write -P 0x44 77k 4k', `nbd+unix:///it?socket=${socket}`])

    const off = await matrix.puller.pull(domain)

    t.strictSame(off.point.skipped, [])
    t.strictSame(codes(off), ['W_FULL_ONLY'])
    const restored = await matrix.writeOut(off.point, 'vdb')
    t.equal(await imageDifference({ path: restored, format: 'raw' }, { path: raw, format: 'raw' }), undefined)
    await redefine(lab, domain, xml => xml.replace("protocol='nbd' name='it'", "protocol='nbd' name='it' tls='yes'"))
    const guarded = await matrix.puller.pull(domain)
    t.match(guarded.point.skipped, [{ target: 'vdb', reason: /TLS/ }])
    t.strictSame(codes(guarded), ['W_DISK_SKIPPED'])
  } finally {
    server.kill()
    await once(server, 'exit')
  }
})

t.test(
  'an encrypted disk is pulled decrypted while its domain runs, and while it is off where libvirt gives its key away',
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
    await createEncryptedImage(['-f', 'qcow2', ...luks, image, String(SIZE)])
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

    t.match(off.point.skipped, [{ target: 'vdb', reason: /encrypted.*private/ }])
    t.strictSame(codes(off), ['W_DISK_SKIPPED'])
    t.equal(
      off.point.disks.find(({ target }) => target === 'vdb'),
      undefined,
    )

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

t.test(
  'disks encrypted with a key that libvirt gives away are pulled while off, incrementally',
  requires('lab'),
  async t => {
    await using matrix = await Matrix.start()
    const { lab } = matrix
    const [inside, whole, key] = [lab.path('inside.qcow2'), lab.path('whole.luks'), lab.path('key')]
    await writeFile(key, 'open sesame')
    const secret = ['--object', `secret,id=s,file=${key}`]
    const options = 'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10'
    await createEncryptedImage(['-f', 'qcow2', ...secret, '-o', options, inside, String(SIZE)])
    await createEncryptedImage(['-f', 'luks', ...secret, '-o', 'key-secret=s,iter-time=10', whole, String(SIZE)])
    // What was never written to a LUKS device decrypts to noise.
    const device = `driver=luks,key-secret=s,file.driver=file,file.filename=${whole}`
    await run('qemu-io', [...secret, '--image-opts', '-c', `write -P 0 0 ${SIZE}`, device])
    const uuid = '6a1d4a7e-1c5b-4c0e-9d2f-000000000002'
    await writeFile(lab.path('secret.xml'), `<secret ephemeral='no' private='no'><uuid>${uuid}</uuid></secret>`)
    await lab.virsh('secret-define', lab.path('secret.xml'))
    await lab.virsh('secret-set-value', uuid, '--file', key, '--plain')
    const disk = (target: string, format: string, path: string) =>
      `<disk type='file' device='disk'><driver name='qemu' type='${format}'/><source file='${path}'>` +
      `<encryption format='luks'><secret type='passphrase' uuid='${uuid}'/></encryption></source>` +
      `<target dev='${target}' bus='virtio'/></disk>`
    const domain = await lab.domain({
      name: 'luks',
      disks: [],
      devices: disk('vda', 'qcow2', inside) + disk('vdb', 'raw', whole),
    })
    const shadow = Buffer.alloc(SIZE)
    const read: string[] = []

    for (const [n, isOn] of [false, true, true, false, false].entries()) {
      const state = await domain.state()
      if (isOn && state !== 'running') await domain.start()
      if (!isOn && state === 'running') await domain.destroy()
      for (const target of ['vda', 'vdb']) {
        if (isOn) await write(lab, domain, target, `write -P ${n + 1} ${n}M 64k`)
        else {
          const [driver, path] = target === 'vda' ? ['qcow2,encrypt.format=luks,encrypt.', inside] : ['luks,', whole]
          const image = `driver=${driver}key-secret=s,file.driver=file,file.filename=${path}`
          await run('qemu-io', [...secret, '--image-opts', '-c', `write -P ${n + 1} ${n}M 64k`, image])
        }
      }
      shadow.fill(n + 1, n * MIB, n * MIB + 64 * KIB)
      await writeFile(lab.path('shadow.raw'), shadow)
      const { point } = await matrix.puller.pull(domain)
      for (const target of ['vda', 'vdb']) {
        t.equal(await matrix.difference(point, target, lab.path('shadow.raw')), undefined, `${target} of pull ${n}`)
        t.equal(point.disks.find(one => one.target === target)?.source.encryption, 'luks', 'the point says so')
      }
      read.push(readings(point)[0]!)
    }

    const incremental = `vda incremental ${64 * KIB}`
    t.strictSame(read, [`vda full ${64 * KIB}`, incremental, incremental, incremental, incremental])
    t.equal((await imageInfo(inside, 'qcow2')).bitmaps.length, 2, 'older checkpoints are removed')
    const store = await run('grep', ['-r', '-l', 'open sesame', lab.path('store')], { check: false })
    t.equal(store.code, 1, 'its key is nowhere in the store')
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
