import { randomBytes } from 'node:crypto'
import { readFileSync } from 'node:fs'

import t from 'tap'

import { ExportReader } from '../../src/nbd/export-reader.js'
import { ExportWriter } from '../../src/nbd/export-writer.js'
import { requires } from '../harness/requires.js'
import { nbdkit, qemuNbd, run } from './servers.js'

const MIB = 1024 * 1024
const dir = t.testdir()
const never = new AbortController().signal
const options = { exportName: '', connections: 4, requestTimeoutMs: 10_000 }

t.test('what is written over several connections is read back', requires('nbdkit'), async t => {
  const { socket } = await nbdkit(t, dir, ['memory', '16M'])
  const wrong = new Uint8Array(16 * MIB)
  const right = randomBytes(16 * MIB)
  {
    await using writer = await ExportWriter.open({ socket }, options, never)
    await writer.write(Float64Array.of(0, 16 * MIB, 0), right, never)
    await writer.zero(5 * MIB, 2 * MIB, { punch: true }, never)
    await writer.flush(never)
  }

  await using reader = await ExportReader.open({ socket }, options, never)
  await reader.read(Float64Array.of(0, 16 * MIB, 0), wrong, never)

  right.fill(0, 5 * MIB, 7 * MIB)
  t.ok(right.equals(wrong))
})

t.test(
  'a qcow2 written through QEMU holds the bytes, and holes where they were punched',
  requires('qemu-nbd', 'qemu-img'),
  async t => {
    const image = `${dir}/out.qcow2`
    await run('qemu-img', ['create', '-q', '-f', 'qcow2', image, '16M'])
    const server = await qemuNbd(t, dir, ['-f', 'qcow2', '--discard=unmap', image])
    const right = randomBytes(4 * MIB)
    {
      await using writer = await ExportWriter.open({ socket: server.socket }, options, never)
      await writer.write(Float64Array.of(0, 4 * MIB, 0), right, never)
      await writer.zero(0, MIB, { punch: true }, never)
      await writer.flush(never)
    }
    await server.kill()

    await run('qemu-img', ['convert', '-f', 'qcow2', '-O', 'raw', image, `${dir}/out.raw`])
    right.fill(0, 0, MIB)
    t.ok(
      readFileSync(`${dir}/out.raw`)
        .subarray(0, 4 * MIB)
        .equals(right),
    )
  },
)

t.test('zeros are written where the server takes no zero requests', requires('nbdkit'), async t => {
  const { socket } = await nbdkit(t, dir, ['--filter=nozero', 'data', '0xff*3145728', 'size=3M'])
  {
    await using writer = await ExportWriter.open({ socket }, options, never)
    await writer.zero(1000, 2 * MIB, { punch: false }, never)
  }
  await using reader = await ExportReader.open({ socket }, options, never)
  const bytes = new Uint8Array(3 * MIB)
  await reader.read(Float64Array.of(0, 3 * MIB, 0), bytes, never)

  t.ok(bytes.every((byte, at) => byte === (at >= 1000 && at < 1000 + 2 * MIB ? 0 : 0xff)))
})

t.test('a full image is told from a broken one', requires('nbdkit'), async t => {
  for (const [errno, code] of [
    ['ENOSPC', 'E_NO_SPACE'],
    ['EIO', 'E_NBD'],
  ]) {
    const { socket } = await nbdkit(t, dir, [
      '--filter=error',
      'memory',
      '1M',
      `error-pwrite=${errno}`,
      'error-pwrite-rate=100%',
    ])
    await using writer = await ExportWriter.open({ socket }, options, never)

    await t.rejects(writer.write(Float64Array.of(4096, 4096, 0), new Uint8Array(4096), never), {
      code,
      message: /4096/,
    })
  }
})

t.test('a read-only export is refused before anything is written', requires('nbdkit'), async t => {
  const { socket } = await nbdkit(t, dir, ['-r', 'memory', '1M'])

  await t.rejects(ExportWriter.open({ socket }, options, never), { code: 'E_NBD', message: /read-only/ })
})

t.test(
  'a write that splits a minimum block is refused, not widened over its neighbours',
  requires('nbdkit'),
  async t => {
    const policy = [
      'blocksize-minimum=4096',
      'blocksize-preferred=4096',
      'blocksize-maximum=65536',
      'blocksize-error-policy=error',
    ]
    const { socket } = await nbdkit(t, dir, ['--filter=blocksize-policy', 'memory', '1M', ...policy])
    await using writer = await ExportWriter.open({ socket }, options, never)

    await t.rejects(writer.write(Float64Array.of(512, 512, 0), new Uint8Array(512), never), { code: 'E_NBD' })
    await writer.write(Float64Array.of(4096, 500 * 1024, 0), new Uint8Array(500 * 1024), never)
  },
)
