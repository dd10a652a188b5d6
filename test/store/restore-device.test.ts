import { execFile } from 'node:child_process'
import { mkdtemp, open, readFile, rm, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'

import t from 'tap'

import { BlockDeviceWriter } from '../../src/image/block-device.js'

const run = promisify(execFile)
const never = new AbortController().signal
const MIB = 1 << 20

const { stdout: free } = await run('losetup', ['-f']).catch(() => ({ stdout: '' }))
const loops = { skip: free === '' && 'needs loop devices and root' }

t.test('a disk on a device reads back whole, zeros included, whatever was there before', loops, async t => {
  const device = await loopDevice(t, Buffer.alloc(8 * MIB, 0xaa))
  const disk = Buffer.alloc(6 * MIB + 512)
  disk.fill(1, 0, 4096)
  disk.fill(2, MIB - 512, MIB + 512)
  disk.fill(3, 5 * MIB, 6 * MIB + 512)
  {
    await using image = await BlockDeviceWriter.create({ path: device, size: disk.length, force: true }, never)
    await image.write([{ offset: 0, length: 4096 }], disk.subarray(0, 4096), never)
    await image.zero(4096, MIB - 512 - 4096, never)
    await image.write([{ offset: MIB - 512, length: 1024 }], disk.subarray(MIB - 512, MIB + 512), never)
    await image.zero(MIB + 512, 4 * MIB - 512, never)
    await image.write([{ offset: 5 * MIB, length: MIB + 512 }], disk.subarray(5 * MIB), never)

    const early = await contentOf(device)
    t.ok(
      early.subarray(0, MIB).every(byte => byte === 0),
      'no partition table before the commit',
    )
    await image.commit(never)
  }

  const content = await contentOf(device)
  t.ok(content.subarray(0, disk.length).equals(disk))
  t.ok(
    content.subarray(disk.length).every(byte => byte === 0xaa),
    'what lies beyond the disk is as it was',
  )
})

t.test('a device that holds something needs force, and keeps what it holds without', loops, async t => {
  const device = await loopDevice(t, Buffer.alloc(2 * MIB, 0xaa))

  await t.rejects(BlockDeviceWriter.create({ path: device, size: MIB, force: false }, never), { code: 'E_EXISTS' })

  t.ok((await contentOf(device)).every(byte => byte === 0xaa))
})

t.test('an empty device needs no force', loops, async t => {
  const device = await loopDevice(t, Buffer.alloc(2 * MIB))
  await using image = await BlockDeviceWriter.create({ path: device, size: MIB, force: false }, never)
  t.equal(image.size, MIB)
})

t.test('a mounted device is refused, also with force', loops, async t => {
  const device = await loopDevice(t, Buffer.alloc(4 * MIB))
  await run('mkfs.ext4', ['-q', device])
  const folder = await mkdtemp(join(tmpdir(), 'virtvault-mounted-'))
  await run('mount', [device, folder])
  t.teardown(async () => {
    await run('umount', [folder])
    await rm(folder, { recursive: true })
  })

  await t.rejects(BlockDeviceWriter.create({ path: device, size: MIB, force: true }, never), {
    code: 'E_REFUSED',
    message: /in use/,
  })
})

t.test('what is too small or no device is refused', loops, async t => {
  const device = await loopDevice(t, Buffer.alloc(MIB))
  const file = join(t.testdir({ 'a.img': '' }), 'a.img')
  await truncate(file, MIB)

  await t.rejects(BlockDeviceWriter.create({ path: device, size: MIB + 512, force: true }, never), {
    code: 'E_REFUSED',
  })
  await t.rejects(BlockDeviceWriter.create({ path: file, size: 512, force: true }, never), { code: 'E_REFUSED' })
})

async function loopDevice(t: { teardown(work: () => Promise<void>): void }, content: Buffer): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'virtvault-loop-'))
  const file = join(folder, 'disk')
  await writeFile(file, content)
  const { stdout } = await run('losetup', ['--find', '--show', file])
  const device = stdout.trim()
  t.teardown(async () => {
    await run('losetup', ['--detach', device])
    await rm(folder, { recursive: true })
  })
  return device
}

async function contentOf(device: string): Promise<Buffer> {
  await run('blockdev', ['--flushbufs', device])
  const handle = await open(device, 'r')
  try {
    return await readFile(handle)
  } finally {
    await handle.close()
  }
}
