import { rmSync, writeFileSync } from 'node:fs'

import t from 'tap'

import { collect } from '../../src/base/async.js'
import type { Clock } from '../../src/base/clock.js'
import { ExportReader } from '../../src/nbd/export-reader.js'
import { requires } from '../harness/requires.js'
import { firstWrongPattern } from './pattern.js'
import { nbdkit } from './servers.js'

const MIB = 1024 * 1024
const dir = t.testdir()
const never = new AbortController().signal
const options = { exportName: '', connections: 2, requestTimeoutMs: 10_000 }

/** Time that passes at once; `onSleep` sees each pause. */
function clockThat(onSleep: (ms: number) => void): Clock {
  return {
    now: () => 0,
    monotonic: () => 0,
    sleep: async ms => onSleep(ms),
  }
}

t.test('a read error that passes is repeated until it does', requires('nbdkit'), async t => {
  const trigger = `${dir}/broken`
  writeFileSync(trigger, '')
  const { socket } = await nbdkit(t, dir, [
    '--filter=error',
    'pattern',
    '1M',
    'error-pread=EIO',
    'error-pread-rate=100%',
    `error-pread-file=${trigger}`,
  ])
  const pauses: number[] = []
  const clock = clockThat(ms => {
    if (pauses.push(ms) === 2) rmSync(trigger)
  })
  await using reader = await ExportReader.open({ socket }, { ...options, clock }, never)
  const bytes = new Uint8Array(MIB)

  await reader.read(Float64Array.of(0, MIB, 0), bytes, never)

  t.same(pauses, [100, 400])
  t.equal(firstWrongPattern(bytes, 0), -1)
})

t.test('a read error that stays is an error with its offset, after three repeats', requires('nbdkit'), async t => {
  const { socket } = await nbdkit(t, dir, [
    'eval',
    'get_size=echo 1048576',
    'pread=if [ $4 -ge 524288 ]; then echo EIO bad disk >&2; exit 1; else dd if=/dev/zero count=$3 iflag=count_bytes status=none; fi',
  ])
  const pauses: number[] = []
  const clock = clockThat(ms => pauses.push(ms))
  await using reader = await ExportReader.open({ socket }, { ...options, clock }, never)

  const reading = reader.read(Float64Array.of(0, MIB, 0), new Uint8Array(MIB), never)

  await t.rejects(reading, { name: 'BackupError', code: 'E_NBD_READ', message: /offset 524288/ })
  t.same(pauses, [100, 400, 1600])
})

t.test('the connection lives on after a read error', requires('nbdkit'), async t => {
  const { socket } = await nbdkit(t, dir, [
    'eval',
    'get_size=echo 1048576',
    'pread=if [ $4 -ge 524288 ]; then echo EPERM no >&2; exit 1; else dd if=/dev/zero count=$3 iflag=count_bytes status=none; fi',
  ])
  await using reader = await ExportReader.open({ socket }, options, never)
  const bytes = new Uint8Array(65536).fill(1)

  await t.rejects(reader.read(Float64Array.of(524288, 65536, 0), bytes, never), { code: 'E_NBD_READ' })
  await reader.read(Float64Array.of(0, 65536, 0), bytes, never)

  t.ok(bytes.every(byte => byte === 0))
})

t.test('an error instead of extents is an error, never nothing to do', requires('nbdkit'), async t => {
  const { socket } = await nbdkit(t, dir, [
    '--filter=error',
    'memory',
    '1M',
    'error-extents=EIO',
    'error-extents-rate=100%',
  ])
  const clock = clockThat(() => undefined)
  await using reader = await ExportReader.open({ socket }, { ...options, clock }, never)

  await t.rejects(collect(reader.extents(never)), { code: 'E_NBD_READ' })
})

t.test('a slow server is given up after the deadline of a request', requires('nbdkit'), async t => {
  const { socket } = await nbdkit(t, dir, ['--filter=delay', 'pattern', '1M', 'rdelay=60'])
  await using reader = await ExportReader.open({ socket }, { ...options, requestTimeoutMs: 200 }, never)
  const started = performance.now()

  await t.rejects(reader.read(Float64Array.of(0, MIB, 0), new Uint8Array(MIB), never), { code: 'E_TIMEOUT' })

  t.ok(performance.now() - started < 5_000)
})

t.test('many slow answers are no timeout while they keep coming', requires('nbdkit'), async t => {
  // 64 answers of 40 ms each, one after the other: 2.5 s in all.
  const { socket } = await nbdkit(t, dir, [
    '--filter=noparallel',
    '--filter=delay',
    'pattern',
    '32M',
    'rdelay=40ms',
    'serialize=all-requests',
  ])
  await using reader = await ExportReader.open({ socket }, { ...options, connections: 1, requestTimeoutMs: 500 }, never)
  const bytes = new Uint8Array(32 * MIB)

  await reader.read(Float64Array.of(0, 32 * MIB, 0), bytes, never)

  t.equal(firstWrongPattern(bytes, 0), -1)
})

t.test('a stopped server does not hang a read or the goodbye', requires('nbdkit'), async t => {
  const server = await nbdkit(t, dir, ['pattern', '1M'])
  const address = { socket: server.socket, connectTimeoutMs: 300 }
  const reader = await ExportReader.open(address, { ...options, requestTimeoutMs: 200 }, never)
  server.child.kill('SIGSTOP')
  const started = performance.now()

  await t.rejects(reader.read(Float64Array.of(0, MIB, 0), new Uint8Array(MIB), never))
  await reader[Symbol.asyncDispose]()

  // A read, a reconnect that fails (the socket still takes connections), a goodbye.
  t.ok(performance.now() - started < 8_000)
})

t.test('a killed server is an error at once', requires('nbdkit'), async t => {
  const server = await nbdkit(t, dir, ['--filter=delay', 'pattern', '1M', 'rdelay=60'])
  await using reader = await ExportReader.open({ socket: server.socket }, options, never)
  const reading = reader.read(Float64Array.of(0, MIB, 0), new Uint8Array(MIB), never)

  await Promise.all([server.kill(), t.rejects(reading, { name: 'BackupError', code: 'E_NBD' })])
})

t.test('an abort ends a read that waits', requires('nbdkit'), async t => {
  const { socket } = await nbdkit(t, dir, ['--filter=delay', 'pattern', '1M', 'rdelay=60'])
  await using reader = await ExportReader.open({ socket }, options, never)
  const abort = new AbortController()
  const reading = reader.read(Float64Array.of(0, MIB, 0), new Uint8Array(MIB), abort.signal)

  abort.abort()

  await t.rejects(reading, { code: 'E_INTERRUPTED' })
})

t.test('block sizes are kept, whatever is asked for', requires('nbdkit'), async t => {
  const policy = [
    'blocksize-minimum=4096',
    'blocksize-preferred=4096',
    'blocksize-maximum=65536',
    'blocksize-error-policy=error',
  ]
  const { socket } = await nbdkit(t, dir, ['--filter=blocksize-policy', 'pattern', '1M', ...policy])
  await using reader = await ExportReader.open({ socket }, options, never)
  const bytes = new Uint8Array(300_000)

  await reader.read(Float64Array.of(1000, 200_000, 0, 500_008, 80, 200_000, 700_000, 8, 200_080), bytes, never)

  t.equal(firstWrongPattern(bytes.subarray(0, 200_000), 1000), -1)
  t.equal(firstWrongPattern(bytes.subarray(200_000, 200_080), 500_008), -1)
  t.equal(firstWrongPattern(bytes.subarray(200_080, 200_088), 700_000), -1)
})

t.test('an export of an odd size is read to its last byte', requires('nbdkit'), async t => {
  const { socket } = await nbdkit(t, dir, ['--filter=truncate', 'pattern', '2M', 'truncate=1000008'])
  await using reader = await ExportReader.open({ socket }, options, never)
  const bytes = new Uint8Array(1_000_008)

  const extents = await collect(reader.extents(never))
  await reader.read(Float64Array.of(0, 1_000_008, 0), bytes, never)

  t.equal(firstWrongPattern(bytes, 0), -1)
  t.match(extents, [{ offset: 0, length: 1_000_008 }])
})

t.test('a server that knows nothing of allocation has data everywhere', requires('nbdkit'), async t => {
  const { socket } = await nbdkit(t, dir, ['--filter=noextents', 'memory', '1M'])
  await using reader = await ExportReader.open({ socket }, options, never)

  t.same(await collect(reader.extents(never)), [{ offset: 0, length: MIB, dirty: true, zero: false, hole: false }])
})

t.test('a server of the old kind, without extents, has data everywhere', requires('nbdkit'), async t => {
  const server = await nbdkit(t, dir, ['--no-sr', 'memory', '1M'])
  await using reader = await ExportReader.open({ socket: server.socket }, options, never)

  t.same(await collect(reader.extents(never)), [{ offset: 0, length: MIB, dirty: true, zero: false, hole: false }])
})

t.test('extents are what the server says, over many windows', requires('nbdkit'), async t => {
  const gib = 1024 * MIB
  const list = `${dir}/extents`
  writeFileSync(
    list,
    `0 ${5 * gib} hole,zero\n${5 * gib} 65536\n${5 * gib + 65536} 65536 zero\n${12 * gib} 4096 hole\n`,
  )
  const { socket } = await nbdkit(t, dir, ['--filter=extentlist', 'null', 'size=20G', `extentlist=${list}`])
  await using reader = await ExportReader.open({ socket }, options, never)

  const extents = await collect(reader.extents(never))

  t.match(extents.slice(0, 3), [
    { offset: 0, length: 5 * gib, zero: true, hole: true },
    { offset: 5 * gib, length: 65536, zero: false, hole: false },
    { offset: 5 * gib + 65536, length: 65536, zero: true, hole: false },
  ])
  t.match(
    extents.find(extent => extent.offset === 12 * gib),
    { length: 4096, zero: false, hole: true },
  )
  t.equal(
    extents.reduce((sum, extent) => sum + extent.length, 0),
    20 * gib,
  )
})

t.test('a server that takes one connection is read over one', requires('nbdkit'), async t => {
  const { socket } = await nbdkit(t, dir, ['--filter=limit', 'pattern', '1M', 'limit=1'])

  await using reader = await ExportReader.open({ socket }, options, never)

  t.equal(reader.connections, 1)
})

t.test('reading does not grow memory', requires('nbdkit'), async t => {
  const { socket } = await nbdkit(t, dir, ['sparse-random', '64G', 'percent=1'])
  await using reader = await ExportReader.open({ socket }, options, never)
  const bytes = new Uint8Array(8 * MIB)
  const readOnce = async (from: number, count: number) => {
    for (let i = from; i < from + count; i++) {
      await reader.read(Float64Array.of(i * bytes.length, bytes.length, 0), bytes, never)
    }
  }
  await readOnce(0, 16)
  const before = process.memoryUsage().rss

  await readOnce(16, 96)

  t.ok(process.memoryUsage().rss - before < 48 * MIB)
})
