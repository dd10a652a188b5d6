import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { readFile, rm, stat, writeFile } from 'node:fs/promises'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import t, { type Test } from 'tap'

import { ServeJob } from '../../src/jobs/serve-job.js'
import type { RecoveryPoint } from '../../src/model/recovery-point.js'
import { native } from '../../src/native/binding.js'
import type { NativeNbdConnection } from '../../src/native/nbd.js'
import { ExportServer, type ExportServerOptions, type ServerAddress } from '../../src/nbd/export-server.js'
import { readServerCredentials } from '../../src/nbd/server-tls.js'
import { Store } from '../../src/store/store.js'
import { requires } from '../harness/requires.js'
import { type MadeDisk, patchyDisk, storeDisk, writeTruth } from './served-store.js'
import { run } from './servers.js'

const MIB = 1 << 20
const CHUNK = 64 * 1024

/** A short path: longer than 107 bytes none can be bound. */
const sockets = mkdtempSync(join(tmpdir(), 'vv-serve-'))
t.teardown(() => rmSync(sockets, { recursive: true, force: true }))
let serial = 0

function newSocket(): string {
  return join(sockets, `${++serial}.sock`)
}

/** Disposed before tap removes the folder. */
interface Serving extends AsyncDisposable {
  readonly job: ServeJob
  readonly store: Store
  readonly socket: string
  readonly uri: string
  readonly complaints: Error[]
}

interface ServingOptions {
  readonly cacheBytes?: number
  readonly address?: ServerAddress
  readonly tls?: ExportServerOptions['tls']
}

async function serve(dir: string, point: RecoveryPoint, options: ServingOptions = {}): Promise<Serving> {
  const store = await Store.open(join(dir, 'store'))
  const socket = newSocket()
  const complaints: Error[] = []
  const address = options.address ?? { kind: 'unix', path: socket }
  const job = await ServeJob.start(
    {
      store,
      listen: (exports, onReadFailure) =>
        ExportServer.listen(address, {
          exports,
          onReadFailure,
          ...(options.tls === undefined ? {} : { tls: options.tls }),
        }),
      onDamage: error => complaints.push(error),
    },
    { point, cacheBytes: options.cacheBytes ?? 16 * MIB },
  )
  const dispose = async () => {
    await job[Symbol.asyncDispose]()
    await store[Symbol.asyncDispose]()
  }
  return { job, store, socket, uri: `nbd+unix:///?socket=${socket}`, complaints, [Symbol.asyncDispose]: dispose }
}

async function connectTo(t: Test, socket: string): Promise<NativeNbdConnection> {
  const connection = await native().nbdConnect({
    socket,
    exportName: '',
    metaContexts: ['base:allocation'],
    requestTimeoutMs: 60_000,
  })
  t.teardown(() => connection.close())
  return connection
}

async function made(t: Test, disk: MadeDisk): Promise<{ dir: string; point: RecoveryPoint; truth: string }> {
  const dir = t.testdir()
  const truth = join(dir, 'truth.raw')
  const point = await storeDisk(join(dir, 'store'), disk)
  await writeTruth(truth, disk)
  return { dir, point, truth }
}

t.setTimeout(300_000)

t.test('nbdinfo, nbdcopy and qemu-img read what was stored', requires('nbdinfo', 'nbdcopy', 'qemu-img'), async t => {
  const disk = patchyDisk(1200)
  const { dir, point, truth } = await made(t, disk)
  await using serving = await serve(dir, point)
  const { uri, socket, job } = serving
  const name = job.disks[0]!.exportName

  t.equal(name, `web01@${point.id.slice(0, 7)}:vda`)
  t.equal((await stat(socket)).mode & 0o777, 0o600)
  const info = JSON.parse(await run('nbdinfo', ['--json', uri])) as { exports: Record<string, unknown>[] }
  t.match(info.exports[0], {
    'export-size': disk.size,
    is_read_only: true,
    can_multi_conn: true,
    can_df: true,
    block_size_minimum: 1,
    block_size_preferred: CHUNK,
    block_size_maximum: 32 * MIB,
    contexts: ['base:allocation'],
  })
  t.match(await run('nbdinfo', ['--list', uri]), `export="${name}"`)

  const map = JSON.parse(await run('nbdinfo', ['--map', '--json', uri])) as {
    offset: number
    length: number
    type: number
  }[]
  for (const { offset, length, type } of map) {
    const expected = { data: 0, zero: 2, hole: 3 }
    for (let chunk = Math.floor(offset / CHUNK); chunk * CHUNK < offset + length; chunk++) {
      if (expected[disk.fill(chunk)] !== type) t.fail(`chunk ${chunk} is told as ${type}`)
    }
  }
  t.equal(
    map.reduce((sum, { length }) => sum + length, 0),
    disk.size,
  )

  const copy = join(dir, 'copy.raw')
  await run('nbdcopy', ['--connections=4', uri, copy])
  await run('cmp', [copy, truth])
  await run('nbdcopy', ['--connections=1', '--no-extents', '--request-size=1048576', uri, copy])
  await run('cmp', [copy, truth])

  t.match(await run('qemu-img', ['compare', '-F', 'raw', uri, truth]), 'Images are identical.')
  const image = join(dir, 'converted.qcow2')
  await run('qemu-img', ['convert', '-W', '-m', '8', '-O', 'qcow2', `nbd+unix:///${name}?socket=${socket}`, image])
  t.match(await run('qemu-img', ['compare', '-F', 'raw', '-f', 'qcow2', image, truth]), 'Images are identical.')
})

for (const chunkSize of [CHUNK, 4 * MIB]) {
  t.test(`eight connections read anything anywhere, with chunks of ${chunkSize} bytes`, async t => {
    const disk = patchyDisk(chunkSize === CHUNK ? 900 : 17, chunkSize)
    const { dir, point, truth } = await made(t, disk)
    await using serving = await serve(dir, point, { cacheBytes: 8 * MIB })
    const { socket, complaints } = serving
    const bytes = await readFile(truth)
    const connections = await Promise.all(Array.from({ length: 8 }, () => connectTo(t, socket)))
    let seed = 42
    const random = (below: number) => {
      seed = (Math.imul(seed, 1_103_515_245) + 12_345) >>> 0
      return Math.floor((seed / 2 ** 32) * below)
    }

    await Promise.all(
      connections.map(async (connection, lane) => {
        for (let round = 0; round < 24; round++) {
          // Small ones mostly, and one in eight as long as may be.
          const longest = round % 8 === lane ? 32 * MIB : 300_000
          const offset = random(disk.size - 1)
          const length = 1 + random(Math.min(longest, disk.size - offset) - 1)
          const buffer = Buffer.alloc(length, 0xee)
          await connection.read(Float64Array.of(offset, length, 0), buffer, 32 * MIB, 16)
          if (!buffer.equals(bytes.subarray(offset, offset + length))) t.fail(`[${offset}, +${length}) is wrong`)
        }
      }),
    )

    t.strictSame(complaints, [])
  })
}

t.test('clients that vanish in the middle hurt nobody', async t => {
  const disk = patchyDisk(600)
  const { dir, point, truth } = await made(t, disk)
  await using serving = await serve(dir, point, { cacheBytes: 4 * MIB })
  const { socket, job } = serving
  const bytes = await readFile(truth)
  const patient = await connectTo(t, socket)

  for (let round = 0; round < 40; round++) {
    const rude = await connectTo(t, socket)
    const buffer = Buffer.alloc(disk.size)
    const reading = rude.read(Float64Array.of(0, disk.size, 0), buffer, 1 + round * 100_000, 64)
    const small = Buffer.alloc(CHUNK)
    await patient.read(Float64Array.of(round * CHUNK, CHUNK, 0), small, MIB, 4)
    rude.abort()
    await reading.catch(() => undefined)
    if (!small.equals(bytes.subarray(round * CHUNK, (round + 1) * CHUNK))) t.fail('wrong bytes beside a rude client')
  }

  const all = Buffer.alloc(disk.size)
  await patient.read(Float64Array.of(0, disk.size, 0), all, MIB, 16)
  t.ok(all.equals(bytes))
  t.equal(job.failedReads, 0)
})

t.test('a point is safe under the lease of whoever serves it, and the lease ends with it', async t => {
  const { dir, point } = await made(t, patchyDisk(50))
  await using serving = await serve(dir, point)
  await using store = await Store.open(join(dir, 'store'))

  t.equal((await store.runs.live()).length, 1)
  await serving.job[Symbol.asyncDispose]()
  t.strictSame(await store.runs.live(), [])
  t.strictSame(await store.runs.dead(), [])
})

t.test('a point that was deleted before the lease is not served', async t => {
  const { dir, point } = await made(t, patchyDisk(50))
  await using store = await Store.open(join(dir, 'store'))
  await store.points.remove(point)
  const ports = { store, listen: () => Promise.reject(new Error('not reached')), onDamage: () => undefined }

  await t.rejects(ServeJob.start(ports, { point, cacheBytes: MIB }), { code: 'E_NOT_FOUND' })
  t.strictSame(await store.runs.live(), [])
})

t.test('what the store lost is an error for its reader, and all else is served', async t => {
  const disk = patchyDisk(300)
  const { dir, point, truth } = await made(t, disk)
  const bytes = await readFile(truth)
  await using serving = await serve(dir, point)
  const { socket, job, complaints } = serving
  // One byte of one record near the middle of the only pack of data.
  const lost = await spoilOneChunk(join(dir, 'store'))
  const connection = await connectTo(t, socket)

  const whole = Buffer.alloc(disk.size)
  const failed: number[] = []
  for (let chunk = 0; chunk * CHUNK < disk.size; chunk++) {
    const length = Math.min(CHUNK, disk.size - chunk * CHUNK)
    await connection
      .read(Float64Array.of(chunk * CHUNK, length, chunk * CHUNK), whole, MIB, 1)
      .catch((error: unknown) => {
        t.match(error, { code: 'E_NBD_READ' })
        failed.push(chunk)
      })
  }

  t.equal(lost, 1)
  t.equal(failed.length, 1)
  t.ok(job.failedReads >= 1)
  t.match(complaints, [{ code: 'E_DAMAGED', message: /web01@/ }])
  bytes.copy(whole, failed[0]! * CHUNK, failed[0]! * CHUNK, (failed[0]! + 1) * CHUNK)
  t.ok(whole.equals(bytes))
})

t.test('a socket path that is taken is refused, one that a dead server left is not', async t => {
  const { dir, point } = await made(t, patchyDisk(20))
  await using serving = await serve(dir, point)
  const { socket } = serving
  const again = () => ExportServer.listen({ kind: 'unix', path: socket }, { exports: [] })
  await t.rejects(again(), { code: 'E_EXISTS' })

  const dead = newSocket()
  const child = spawn(process.execPath, [
    '-e',
    `require('net').createServer().listen(${JSON.stringify(dead)}, () => process.kill(process.pid, 'SIGKILL'))`,
  ])
  await once(child, 'exit')
  t.ok((await stat(dead)).isSocket())
  await using server = await ExportServer.listen({ kind: 'unix', path: dead }, { exports: [] })
  t.equal(server.connections, 0)

  const file = join(sockets, 'file')
  await writeFile(file, 'precious')
  await t.rejects(ExportServer.listen({ kind: 'unix', path: file }, { exports: [] }), { code: 'E_EXISTS' })
  t.equal(await readFile(file, 'utf8'), 'precious')
})

t.test('over TCP with TLS, only encrypted clients that are known get in', requires('openssl', 'nbdcopy'), async t => {
  const { dir, point, truth } = await made(t, patchyDisk(200))
  const pki = join(dir, 'pki')
  await makeCertificates(pki)
  await using serving = await serve(dir, point, {
    address: { kind: 'tcp', host: '127.0.0.1', port: 0 },
    tls: await readServerCredentials(pki),
  })
  const { job } = serving
  const copy = join(dir, 'copy.raw')
  const at = `127.0.0.1:${job.server.port}/`

  await run('nbdcopy', [`nbds://${at}?tls-certificates=${pki}`, copy])
  await run('cmp', [copy, truth])
  await t.rejects(run('nbdcopy', [`nbd://${at}`, copy]))
  await rm(join(pki, 'client-cert.pem'))
  await rm(join(pki, 'client-key.pem'))
  await t.rejects(run('nbdcopy', [`nbds://${at}?tls-certificates=${pki}`, copy]))

  // In the clear, nothing but TLS is talked about.
  const plain = connect({ host: '127.0.0.1', port: job.server.port! })
  await once(plain, 'connect')
  plain.write(Buffer.from('00000003' + '49484156454f5054' + '00000003' + '00000000', 'hex'))
  let heard = ''
  for await (const part of plain) {
    heard += (part as Buffer).toString('latin1')
    if (heard.includes('TLS only')) break
  }
  t.notMatch(heard, /web01/)
})

async function makeCertificates(dir: string): Promise<void> {
  const script = `
    mkdir -p "$1" && cd "$1"
    key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1" 2>/dev/null; }
    key ca-key.pem; openssl req -x509 -new -key ca-key.pem -subj /CN=ca -days 2 -out ca-cert.pem
    for who in server client; do
      key $who-key.pem
      openssl req -new -key $who-key.pem -subj /CN=127.0.0.1 -out $who.csr
      printf 'subjectAltName=IP:127.0.0.1' > $who.ext
      openssl x509 -req -in $who.csr -CA ca-cert.pem -CAkey ca-key.pem -CAcreateserial -days 2 -extfile $who.ext -out $who-cert.pem 2>/dev/null
    done`
  await run('bash', ['-ec', script, 'bash', dir])
}

async function spoilOneChunk(location: string): Promise<number> {
  const listed = await run('find', [join(location, 'packs'), '-name', '*.pack', '-size', '+1M'])
  const [pack = ''] = listed.trim().split('\n')
  const bytes = await readFile(pack)
  const at = Math.floor(bytes.length / 2)
  bytes[at] = bytes[at]! ^ 0xff
  await writeFile(pack, bytes)
  return listed.trim().split('\n').length
}
