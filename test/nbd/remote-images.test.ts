import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'

import t, { type Test } from 'tap'

import type { ImageSpec } from '../../src/image/image-factory.js'
import type { ImageWriter } from '../../src/image/image-writer.js'
import { RemoteDirectories } from '../../src/image/remote-directory.js'
import { RemoteImages } from '../../src/image/remote-images.js'
import type { RemoteAnswer, RemoteMachine } from '../../src/image/remote-machine.js'
import { ExportWriter } from '../../src/nbd/export-writer.js'
import { QemuNbd } from '../../src/nbd/qemu-nbd.js'
import { requires } from '../harness/requires.js'

const never = new AbortController().signal
const needs = requires('qemu-nbd')

async function runHere(script: string, args: readonly string[], bytes: Uint8Array): Promise<RemoteAnswer> {
  const child = spawn('sh', ['-c', script, 'sh', ...args], { env: { ...process.env, LC_ALL: 'C' } })
  let [stdout, stderr] = ['', '']
  child.stdout.on('data', (part: Buffer) => (stdout += part.toString()))
  child.stderr.on('data', (part: Buffer) => (stderr += part.toString()))
  child.stdin.on('error', () => undefined)
  child.stdin.end(bytes)
  const [code] = (await once(child, 'close')) as [number]
  return { code, stdout, stderr }
}

/** What runs over there in the field runs here: the scripts, qemu-img and qemu-nbd are the real ones. */
function machineHere(sockets: string): RemoteMachine {
  return {
    host: 'hv2',
    run: (script, args) => runHere(script, args, Buffer.alloc(0)),
    feed: runHere,
    own: () => Promise.resolve(),
    serve: async ({ path, format }, signal) => {
      const socket = join(sockets, `${Math.random()}`)
      const image = { path, format, isBlockDevice: false, exportName: 'disk', writable: true, socket }
      const server = await QemuNbd.start(image, signal)
      const target = await ExportWriter.open(
        { socket },
        { exportName: 'disk', connections: 2, requestTimeoutMs: 60_000 },
        signal,
      )
      return { target, close: () => server.stop(), [Symbol.asyncDispose]: () => server[Symbol.asyncDispose]() }
    },
  }
}

function setUp(t: Test) {
  const folder = t.testdir()
  // Short enough for a socket.
  const sockets = mkdtempSync(join(tmpdir(), 'vv-'))
  t.teardown(() => rmSync(sockets, { recursive: true }))
  const left: string[] = []
  const machine = machineHere(sockets)
  const images = new RemoteImages(machine, files => left.push(...files))
  return { folder, left, machine, images }
}

function spec(path: string, more: Partial<ImageSpec & { kind: 'raw' | 'qcow2' }> = {}): ImageSpec {
  return { kind: 'raw', path, size: 1_000_100, ...more }
}

async function fill(image: ImageWriter): Promise<void> {
  await image.write(
    [
      { offset: 4096, length: 4 },
      { offset: 1_000_096, length: 4 },
    ],
    Buffer.from('headtail'),
    never,
  )
}

t.test('a raw image has the very size of the disk, mode and bytes as asked, and nothing beside', needs, async t => {
  const { folder, images } = setUp(t)
  const path = join(folder, 'vda.raw')
  await using image = await images.create(spec(path, { mode: 0o640 }), never)

  await fill(image)
  t.notOk(existsSync(path), 'no name before it is whole')
  const outcome = await image.commit(never)

  t.strictSame(outcome, { dataBytes: 8, fileBytes: 1_000_100 })
  const expected = Buffer.alloc(1_000_100)
  expected.write('head', 4096)
  expected.write('tail', 1_000_096)
  t.ok(readFileSync(path).equals(expected))
  t.equal(statSync(path).mode & 0o777, 0o640)
  t.strictSame(readdirSync(folder), ['vda.raw'])
})

t.test('a qcow2 image has the properties that were asked for', needs, async t => {
  const { folder, images } = setUp(t)
  const path = join(folder, 'a:b,c d.qcow2')
  const shape = { clusterSize: 32768, extendedL2: true, lazyRefcounts: true, preallocation: 'metadata' } as const
  await using image = await images.create(spec(path, { kind: 'qcow2', size: 1 << 20, ...shape }), never)
  await image.commit(never)

  const { stdout } = await promisify(execFile)('qemu-img', ['info', '--output=json', path])
  t.match(JSON.parse(stdout), {
    'virtual-size': 1 << 20,
    'cluster-size': 32768,
    'format-specific': { data: { compat: '1.1', 'lazy-refcounts': true, 'extended-l2': true } },
  })
})

t.test('what takes the name meanwhile is left alone', needs, async t => {
  const { folder, images } = setUp(t)
  const path = join(folder, 'vda.raw')
  {
    await using image = await images.create(spec(path), never)
    writeFileSync(path, 'precious')
    await t.rejects(image.commit(never), { code: 'E_EXISTS' })
  }
  t.equal(readFileSync(path, 'utf8'), 'precious')
  t.strictSame(readdirSync(folder), ['vda.raw'])
})

t.test('--force replaces a file, not a link', needs, async t => {
  const { folder, images } = setUp(t)
  writeFileSync(join(folder, 'a'), 'old')
  symlinkSync('a', join(folder, 'link'))

  await t.rejects(images.create(spec(join(folder, 'link'), { force: true }), never), { code: 'E_REFUSED' })
  await using image = await images.create(spec(join(folder, 'a'), { force: true, size: 512 }), never)
  await image.commit(never)
  await images.undo()

  t.equal(statSync(join(folder, 'a')).size, 512, 'what replaced something is not taken back')
  t.strictSame(readdirSync(folder), ['a', 'link'])
})

t.test('where a later disk fails, the name of an earlier one is taken back', needs, async t => {
  const { folder, images } = setUp(t)
  await using first = await images.create(spec(join(folder, 'a')), never)
  await using side = await images.createFile({ path: join(folder, 'x.xml'), bytes: Buffer.from('x') })
  await first.commit(never)
  await side.commit()
  t.strictSame(readdirSync(folder), ['a', 'x.xml'])
  t.equal(readFileSync(join(folder, 'x.xml'), 'utf8'), 'x')
  await t.rejects(images.createFile({ path: join(folder, 'x.xml'), bytes: Buffer.from('y') }), { code: 'E_EXISTS' })

  await images.undo()

  t.strictSame(readdirSync(folder), [])
})

t.test('a damaged image says so in its name', needs, async t => {
  const { folder, images } = setUp(t)
  await using image = await images.create(spec(join(folder, 'vda.raw')), never)
  await image.markDamaged()
  await image.commit(never)

  t.strictSame(readdirSync(folder), ['vda.damaged.raw'])
  t.equal(image.name, join(folder, 'vda.damaged.raw'))
})

t.test('what cannot be removed is told, once for all', needs, async t => {
  const { folder, machine, left } = setUp(t)
  let calls = 0
  const gone: RemoteMachine = {
    ...machine,
    run: (script, args) => {
      if (!script.startsWith('rm')) return machine.run(script, args)
      calls++
      return Promise.reject(Object.assign(new Error('no route'), { code: 'E_UNREACHABLE' }))
    },
  }
  const images = new RemoteImages(gone, files => left.push(...files))
  await using first = await images.create(spec(join(folder, 'a')), never)
  await using second = await images.create(spec(join(folder, 'b')), never)

  await first[Symbol.asyncDispose]()
  await second[Symbol.asyncDispose]()

  t.strictSame(
    left.sort(),
    readdirSync(folder)
      .map(name => join(folder, name))
      .sort(),
  )
  t.equal(calls, 1, 'each would wait as long again')
})

t.test('a connection lost while a name is given: what may have it is told, and not removed', needs, async t => {
  const { folder, machine, left } = setUp(t)
  const lost: RemoteMachine = {
    ...machine,
    run: async (script, args) => {
      const answer = await machine.run(script, args)
      if (!script.includes('chmod')) return answer
      throw Object.assign(new Error('cut'), { code: 'E_UNREACHABLE' })
    },
  }
  const images = new RemoteImages(lost, files => left.push(...files))
  const path = join(folder, 'vda.raw')
  {
    await using image = await images.create(spec(path), never)
    await t.rejects(image.commit(never), { code: 'E_UNREACHABLE' })
  }
  await images.undo()

  t.strictSame(left, [path])
  t.strictSame(readdirSync(folder), ['vda.raw'])
})

t.test('directories: what was made is taken back where it is empty, and may be passed through', needs, async t => {
  const { folder, machine } = setUp(t)
  const directories = new RemoteDirectories(machine)

  await directories.make(join(folder, 'a b/c'))
  await directories.make(join(folder, 'a b/d'))
  writeFileSync(join(folder, 'a b/d/file'), '')
  t.equal(statSync(join(folder, 'a b')).mode & 0o777, 0o711)
  t.ok(await directories.isDirectory(join(folder, 'a b/c')))
  await directories.undo()

  t.strictSame(readdirSync(join(folder, 'a b')), ['d'])
  await t.rejects(directories.make(join(folder, 'a b/d/file/x')), { code: 'E_IO' })
  await t.rejects(directories.requireRoom(join(folder, 'not/yet/there'), 2 ** 60), { code: 'E_NO_SPACE' })
  await t.resolves(directories.requireRoom(join(folder, 'not/yet/there'), 1))
  t.throws(() => directories.requireAbsolute('images'), { code: 'E_USAGE' })
  t.equal((await directories.lookUp('passwd', 'root'))?.[2], '0')
})
