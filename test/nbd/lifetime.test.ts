import { fileURLToPath } from 'node:url'
import { Worker } from 'node:worker_threads'

import t from 'tap'

import { native } from '../../src/native/binding.js'
import { requires } from '../harness/requires.js'
import { HostileServer } from './hostile-server.js'
import { nbdkit, qemuNbd, run } from './servers.js'

const MIB = 1024 * 1024
const dir = t.testdir()
const BINDING = fileURLToPath(new URL('../../src/native/binding.js', import.meta.url))

/** A program that connects to `socket` as `connection` and then does `what`. */
function program(socket: string, what: string): string {
  return `
    const { native } = await import(${JSON.stringify(BINDING)})
    const options = { socket: ${JSON.stringify(socket)}, exportName: '', metaContexts: [], requestTimeoutMs: 60000 }
    const connection = await native().nbdConnect(options)
    const bytes = new Uint8Array(${MIB})
    const pieces = Float64Array.of(0, ${MIB}, 0)
    ${what}`
}

t.test('an idle connection does not keep Node alive', requires('nbdkit'), async t => {
  const { socket } = await nbdkit(t, dir, ['memory', '1M'])

  const output = await run('node', ['--input-type=module', '-e', program(socket, `console.log('end')`)])

  t.equal(output, 'end\n')
})

t.test('a read under way does', requires('nbdkit'), async t => {
  const { socket } = await nbdkit(t, dir, ['--filter=delay', 'memory', '1M', 'rdelay=300ms'])
  const what = `void connection.read(pieces, bytes, 65536, 4).then(() => console.log('read'))`

  const output = await run('node', ['--input-type=module', '-e', program(socket, what)])

  t.equal(output, 'read\n')
})

t.test('process.exit() in the middle of reads ends the process', requires('nbdkit'), async t => {
  const { socket } = await nbdkit(t, dir, ['--filter=delay', 'memory', '1M', 'rdelay=60'])
  const what = `void connection.read(pieces, bytes, 65536, 4); setImmediate(() => process.exit(0))`

  t.equal(await run('node', ['--input-type=module', '-e', program(socket, what)]), '')
})

t.test('a worker ends in the middle of reads, connects and all', async t => {
  // Not nbdkit: version 1.32 aborts when many connections break off at once.
  const { socket } = await HostileServer.start(t, dir, { read: () => undefined })
  const what = `
    void connection.read(pieces, bytes, 65536, 4)
    for (let i = 0; i < 8; i++) void native().nbdConnect(options)
    const { parentPort } = await import('node:worker_threads')
    parentPort.postMessage('busy')`
  for (let i = 0; i < 10; i++) {
    const worker = new Worker(`(async () => {${program(socket, what)}})()`, { eval: true })
    await new Promise(resolve => worker.once('message', resolve))
    await worker.terminate()
  }
  t.pass('nothing crashed')
})

t.test('a connection that nobody holds goes with the garbage', requires('nbdkit'), async t => {
  const { socket } = await nbdkit(t, dir, ['memory', '1M'])
  const what = `
    const { readdirSync } = await import('node:fs')
    const count = () => readdirSync('/proc/self/task').length
    const before = count()
    for (let i = 0; i < 20; i++) await native().nbdConnect(options)
    for (let i = 0; i < 200 && count() > before + 2; i++) {
      globalThis.gc()
      await new Promise(resolve => setTimeout(resolve, 10))
    }
    console.log(count() <= before + 2)`

  const output = await run('node', ['--expose-gc', '--input-type=module', '-e', program(socket, what)])

  t.equal(output, 'true\n')
})

t.test('connections come and go by the hundred', requires('qemu-nbd', 'qemu-img'), async t => {
  const image = `${dir}/many.raw`
  await run('qemu-img', ['create', '-q', '-f', 'raw', image, '1M'])
  const { socket } = await qemuNbd(t, dir, ['-r', '-f', 'raw', image])
  const options = { socket, exportName: '', metaContexts: [], requestTimeoutMs: 10_000 }
  const bytes = new Uint8Array(MIB)

  for (let i = 0; i < 200; i++) {
    const connection = await native().nbdConnect(options)
    const reading = connection.read(Float64Array.of(0, MIB, 0), bytes, 65536, 4)
    if (i % 2 === 0) connection.abort()
    await Promise.allSettled([reading, connection.close(), connection.close()])
  }

  t.pass('nothing crashed')
})

t.test('a call on a closed connection is refused', requires('nbdkit'), async t => {
  const { socket } = await nbdkit(t, dir, ['memory', '1M'])
  const connection = await native().nbdConnect({ socket, exportName: '', metaContexts: [], requestTimeoutMs: 10_000 })
  await connection.close()

  await t.rejects(connection.read(Float64Array.of(0, 1, 0), new Uint8Array(1), 65536, 1), { code: 'E_NBD' })
})

t.test('close() finishes what is on the wire and refuses the rest', requires('nbdkit'), async t => {
  const { socket } = await nbdkit(t, dir, ['--filter=delay', 'memory', '64M', 'rdelay=100ms'])
  const connection = await native().nbdConnect({ socket, exportName: '', metaContexts: [], requestTimeoutMs: 10_000 })
  const small = connection.read(Float64Array.of(0, 65536, 0), new Uint8Array(65536), 65536, 1)
  const large = connection.read(Float64Array.of(0, 64 * MIB, 0), new Uint8Array(64 * MIB), 65536, 1)

  const [results] = await Promise.all([Promise.allSettled([small, large]), connection.close()])

  // The small one may not have been sent yet; it is not left behind either way.

  t.equal(results[1]?.status, 'rejected')
  t.ok(results.every(result => result.status === 'fulfilled' || result.reason.code === 'E_INTERRUPTED'))
})

t.test('pieces outside the export or the buffer are refused before anything is asked', requires('nbdkit'), async t => {
  const { socket } = await nbdkit(t, dir, ['memory', '1M'])
  const connection = await native().nbdConnect({ socket, exportName: '', metaContexts: [], requestTimeoutMs: 10_000 })
  const bytes = new Uint8Array(4096)
  const wrong = [
    [MIB, 1, 0],
    [0, MIB + 1, 0],
    [0, 4097, 0],
    [0, 4096, 1],
    [0, 1, 4097],
    [-1, 1, 0],
    [0.5, 1, 0],
    [NaN, 1, 0],
    [2 ** 53, 1, 0],
    [0, 0, 0],
    [0, 1],
  ]
  for (const piece of wrong) {
    await t.rejects(connection.read(Float64Array.from(piece), bytes, 65536, 4), { code: 'E_INTERNAL' }, piece.join())
  }
  await connection.close()
})
