import { once } from 'node:events'
import { readdirSync } from 'node:fs'
import { Worker } from 'node:worker_threads'
import { spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'

import t, { type Test } from 'tap'

import { native } from '../../../src/native/binding.js'
import type { NativeVirtConnection, VirtEvent } from '../../../src/native/virt.js'

const URI = 'test:///default'
const ADDON = fileURLToPath(new URL('../../../../build/Release/virtvault.node', import.meta.url))

async function open(t: Test, onEvent?: (event: VirtEvent) => void): Promise<NativeVirtConnection> {
  const connection = await native().virtConnect({ uri: URI, onEvent })
  t.teardown(() => connection.close())
  return connection
}

async function newDomain(t: Test, connection: NativeVirtConnection, name: string): Promise<string> {
  const disk = `<disk type='file'><driver type='qcow2'/><source file='/x'/><target dev='vda'/></disk>`
  const xml = `<domain type='test'><name>${name}</name><memory>1024</memory><os><type>hvm</type></os><devices>${disk}</devices></domain>`
  const domain = await connection.defineDomain(xml, {})
  t.teardown(async () => {
    await connection.destroyDomain(domain.uuid, {}).catch(() => undefined)
    await connection.undefineDomain(domain.uuid, 0).catch(() => undefined)
  })
  return domain.uuid
}

t.test('a connection tells what it is connected to', async t => {
  const connection = await open(t)

  t.equal(await connection.driver(), 'TEST')
  t.ok(await connection.isAlive())
  t.ok((await connection.hostname()).length > 0)
  t.equal(await connection.daemonVersion(), native().virtLibraryVersion())
  t.match(await connection.capabilities(), /^<capabilities>/)
})

t.test('a failed call carries our code and those of libvirt', async t => {
  const connection = await open(t)

  await t.rejects(connection.lookupDomain('no-such-domain'), {
    code: 'E_NOT_FOUND',
    libvirtCode: 42,
    libvirtDomain: 12,
    message: /no-such-domain/,
  })
})

t.test('what the driver cannot do is E_UNSUPPORTED', async t => {
  const connection = await open(t)
  const uuid = await newDomain(t, connection, 'unsupported')
  await connection.createDomain(uuid, {})

  await t.rejects(connection.backupBegin(uuid, '<domainbackup/>', undefined, 0), {
    code: 'E_UNSUPPORTED',
    libvirtCode: 3,
  })
})

t.test('a daemon that is not there is E_LIBVIRT_CONNECT', async t => {
  await t.rejects(native().virtConnect({ uri: 'qemu+unix:///system?socket=/nonexistent' }), {
    code: 'E_LIBVIRT_CONNECT',
  })
})

t.test('a domain is found by its name and by its UUID', async t => {
  const connection = await open(t)
  const uuid = await newDomain(t, connection, 'by-name')

  t.equal((await connection.lookupDomain('by-name')).uuid, uuid)
  t.match(await connection.lookupDomain(uuid), { name: 'by-name', id: -1, persistent: true, hasManagedSave: false })
  t.match(await connection.domainXml(uuid, { inactive: true }), /<name>by-name<\/name>/)
})

t.test('what happens to a domain arrives as plain events, in order', async t => {
  const seen: number[] = []
  let enough = () => {}
  const four = new Promise<void>(resolve => (enough = resolve))
  const connection = await open(t, event => {
    if (event.kind !== 'lifecycle' || event.name !== 'eventful') return
    if (seen.push(event.event) === 4) enough()
  })
  const uuid = await newDomain(t, connection, 'eventful')
  await connection.createDomain(uuid, {})
  await connection.suspendDomain(uuid)
  await connection.resumeDomain(uuid)
  // Waiting for events alone does not keep Node running.
  const stay = setInterval(() => undefined, 1000)
  await four
  clearInterval(stay)

  t.strictSame(seen, [0, 2, 3, 4], 'defined, started, suspended, resumed')
})

t.test('metadata is written, read back and removed', async t => {
  const connection = await open(t)
  const uuid = await newDomain(t, connection, 'annotated')
  const space = 'https://example.org/x'

  t.equal(await connection.getMetadata(uuid, space), undefined)
  await connection.setMetadata(uuid, space, 'x', '<job when="daily"/>')
  t.equal(await connection.getMetadata(uuid, space), '<job when="daily"/>')
  await connection.setMetadata(uuid, space, 'x', undefined)
  await connection.setMetadata(uuid, space, 'x', undefined)
  t.equal(await connection.getMetadata(uuid, space), undefined)
})

t.test('checkpoints are listed parents first, and deleting a missing one says so', async t => {
  const connection = await open(t)
  const uuid = await newDomain(t, connection, 'checkpointed')
  await connection.createDomain(uuid, {})
  for (const name of ['c', 'a', 'b']) {
    await connection.createCheckpoint(uuid, `<domaincheckpoint><name>${name}</name></domaincheckpoint>`, 0)
  }

  t.strictSame(await connection.listCheckpoints(uuid), [
    { name: 'c', parent: undefined },
    { name: 'a', parent: 'c' },
    { name: 'b', parent: 'a' },
  ])
  t.equal(await connection.deleteCheckpoint(uuid, 'a', 0), true)
  t.equal(await connection.deleteCheckpoint(uuid, 'a', 0), false)
  await connection.deleteCheckpoint(uuid, 'b', 0)
  await connection.deleteCheckpoint(uuid, 'c', 0)
})

t.test('bad arguments are refused before libvirt sees them', async t => {
  const connection = await open(t)

  for (const call of [
    () => connection.lookupDomain('a\0b'),
    () => connection.undefineDomain('x', -1),
    () => connection.undefineDomain('x', 1.5),
    () => connection.blockResize('x', 'vda', 2 ** 60),
    // @ts-expect-error a caller without types
    () => connection.fsFreeze('x', 'not a list'),
  ]) {
    t.throws(call, TypeError)
  }
})

t.test('a picture of the screen comes as bytes with their type', async t => {
  const connection = await open(t)
  const uuid = await newDomain(t, connection, 'visible')
  await connection.createDomain(uuid, {})

  const shot = await connection.screenshot(uuid)

  t.equal(shot.mime, 'image/png')
  t.strictSame([...shot.bytes.subarray(1, 4)], [...Buffer.from('PNG')])
})

t.test('closing twice is fine, and a call afterwards is refused', async t => {
  const connection = await open(t)
  await connection.close()
  await connection.close()

  await t.rejects(connection.hostname(), { code: 'E_LIBVIRT_CONNECT' })
})

t.test('every call that waits when the connection is closed is settled', async t => {
  const connection = await open(t)
  const calls = Array.from({ length: 200 }, () => connection.hostname())
  const settled = Promise.allSettled(calls)
  await connection.close()

  const reasons = (await settled).flatMap(result => (result.status === 'rejected' ? [String(result.reason.code)] : []))
  t.ok(
    reasons.every(code => code === 'E_LIBVIRT_CONNECT'),
    'answered, or refused because of the closing',
  )
})

t.test('two hundred connections leave no thread, descriptor or memory behind', async t => {
  const count = (what: string) => readdirSync(`/proc/self/${what}`).length
  const cycle = async () => {
    const connection = await native().virtConnect({ uri: URI, onEvent: () => undefined })
    await connection.hostname()
    await connection.close()
  }
  for (let i = 0; i < 20; i++) await cycle()
  const before = { fds: count('fd'), tasks: count('task'), rss: process.memoryUsage.rss() }

  for (let i = 0; i < 200; i++) await cycle()

  t.equal(count('fd'), before.fds)
  // A thread has said its last word a moment before the kernel forgets it.
  t.ok(count('task') <= before.tasks + 5, `${count('task')} threads, ${before.tasks} before`)
  const grown = (process.memoryUsage.rss() - before.rss) / 2 ** 20
  // AddressSanitizer holds 256 MiB of what was freed back.
  const most = process.env['ASAN_OPTIONS'] === undefined ? 16 : 272
  t.ok(grown < most, `memory grew by ${grown.toFixed(1)} MiB`)
})

t.test('a thread of Node that ends with calls under way takes nothing down', async t => {
  for (let i = 0; i < 10; i++) {
    const worker = new Worker(
      `const { parentPort } = require('node:worker_threads')
       const binding = require(${JSON.stringify(ADDON)})
       binding.virtConnect({ uri: '${URI}', onEvent() {} }).then(connection => {
         for (let i = 0; i < 500; i++) void connection.capabilities().catch(() => {})
         parentPort.postMessage('busy')
       })`,
      { eval: true },
    )
    await once(worker, 'message')
    await worker.terminate()
  }
  t.pass('this process is alive')
})

t.test('a process that exits with calls under way exits with its own status', async t => {
  for (const end of ['process.exit(7)', 'process.exitCode = 7', 'setImmediate(() => { throw 7 })']) {
    const script = `const binding = require(${JSON.stringify(ADDON)})
      binding.virtConnect({ uri: '${URI}', onEvent() {} }).then(connection => {
        for (let i = 0; i < 500; i++) void connection.capabilities()
        ${end}
      })`
    const child = spawn(process.execPath, ['-e', script], { stdio: 'ignore' })
    const [code, signal] = (await once(child, 'exit')) as [number | null, string | null]
    t.strictSame([code, signal], [end.includes('throw') ? 1 : 7, null], end)
  }
})

t.test('a connection lives as long as a call that nobody but its promise holds', async t => {
  const script = `const binding = require(${JSON.stringify(ADDON)})
    binding.virtConnect({ uri: '${URI}' })
      .then(connection => { const call = connection.capabilities(); connection = undefined; gc(); return call })
      .then(() => process.exit(7))`
  const child = spawn(process.execPath, ['--expose-gc', '-e', script], { stdio: 'ignore' })
  const [code] = (await once(child, 'exit')) as [number | null]

  t.equal(code, 7)
})
