import t from 'tap'

import { collect } from '../../src/base/async.js'
import { ExportReader } from '../../src/nbd/export-reader.js'
import { requires } from '../harness/requires.js'
import { firstWrongPattern } from './pattern.js'
import { nbdkit, qemuNbd, run } from './servers.js'

const MIB = 1024 * 1024
const dir = t.testdir()
const never = new AbortController().signal
const options = { exportName: '', connections: 4, requestTimeoutMs: 10_000 }

t.test('several connections read what one would', requires('nbdkit'), async t => {
  const { socket } = await nbdkit(t, dir, ['pattern', '64M'])
  await using reader = await ExportReader.open({ socket }, options, never)
  const bytes = new Uint8Array(64 * MIB)

  await reader.read(Float64Array.of(0, 64 * MIB, 0), bytes, never)

  t.equal(reader.connections, 4)
  t.equal(reader.size, 64 * MIB)
  t.equal(firstWrongPattern(bytes, 0), -1)
})

t.test('scattered pieces land where they belong', requires('nbdkit'), async t => {
  const { socket } = await nbdkit(t, dir, ['pattern', '1G'])
  await using reader = await ExportReader.open({ socket }, options, never)
  const count = 200
  const pieces = new Float64Array(3 * count)
  for (let i = 0; i < count; i++) pieces.set([i * 5 * MIB, 65536, (count - 1 - i) * 65536], 3 * i)
  const bytes = new Uint8Array(count * 65536)

  await reader.read(pieces, bytes, never)

  for (let i = 0; i < count; i++) {
    const at = (count - 1 - i) * 65536
    t.equal(firstWrongPattern(bytes.subarray(at, at + 65536), i * 5 * MIB), -1)
  }
})

t.test('a second connection is used only where the server promises one view', requires('nbdkit'), async t => {
  const { socket } = await nbdkit(t, dir, ['--filter=multi-conn', 'pattern', '1M', 'multi-conn-mode=disable'])

  await using reader = await ExportReader.open({ socket }, options, never)

  t.equal(reader.connections, 1)
})

t.test('without a bitmap everything is dirty, and zeros are told from data', requires('nbdkit'), async t => {
  const { socket } = await nbdkit(t, dir, ['data', '1*65536 @1048576 2*65536', 'size=2M'])
  await using reader = await ExportReader.open({ socket }, options, never)

  const extents = await collect(reader.extents(never))

  t.strictSame(
    extents.every(extent => extent.dirty),
    true,
  )
  t.equal(
    extents.reduce((sum, extent) => sum + extent.length, 0),
    2 * MIB,
  )
  t.ok(extents.some(extent => extent.zero))
  t.notOk(extents[0]?.zero)
})

t.test('a bitmap tells clean from dirty', requires('qemu-nbd', 'qemu-img', 'qemu-io'), async t => {
  const image = `${dir}/bitmap.qcow2`
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', image, '8G'])
  await run('qemu-io', ['-c', 'write -P 1 0 1M', image])
  await run('qemu-img', ['bitmap', '--add', image, 'b0'])
  await run('qemu-io', ['-c', 'write -P 2 64k 64k', '-c', 'write -z 512k 64k', '-c', 'write -P 3 6G 64k', image])
  const { socket } = await qemuNbd(t, dir, ['-r', '-f', 'qcow2', '-B', 'b0', image])

  await using reader = await ExportReader.open({ socket }, { ...options, dirtyBitmap: 'b0' }, never)
  const dirty = (await collect(reader.extents(never))).filter(extent => extent.dirty)

  t.match(dirty, [
    { offset: 65536, length: 65536, zero: false },
    { offset: 524288, length: 65536, zero: true },
    { offset: 6 * 1024 * MIB, length: 65536, zero: false },
  ])
  t.equal(dirty.length, 3)
})

t.test('a bitmap that is not there is an error, never nothing dirty', requires('nbdkit'), async t => {
  const { socket } = await nbdkit(t, dir, ['memory', '1M'])

  const opening = ExportReader.open({ socket }, { ...options, dirtyBitmap: 'gone' }, never)

  await t.rejects(opening, { name: 'BackupError', code: 'E_NBD_PROTOCOL' })
})
