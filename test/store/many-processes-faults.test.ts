import { randomBytes, randomInt, randomUUID } from 'node:crypto'
import { once } from 'node:events'
import {
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { type Socket, connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import t, { type Test } from 'tap'

import { systemClock } from '../../src/base/clock.js'
import { localFs } from '../../src/base/durable-fs.js'
import { encodeHello, encodeRequest } from '../../src/format/index-frame.js'
import { native } from '../../src/native/binding.js'
import { SharedIndex } from '../../src/store/shared-index.js'
import { Store } from '../../src/store/store.js'
import { CHUNK } from './harness.js'
import { StoreProcess, holderOf } from './store-processes.js'

t.setTimeout(240_000)

const SIZE = 100 * CHUNK
const SEEDS: [number, number][] = Array.from({ length: 50 }, (_, at) => [2 * at, 1 + at])
const TAKEOVERS = 10
const TAKEOVER_LIMIT_MS = 1_000

interface Check {
  readonly points: string[]
  readonly wrong: string[]
}

interface Look {
  readonly times: number[]
  readonly found: number
}

/** In a directory whose path is short enough for a socket, unlike that of t.testdir(). */
async function newStore(t: Test, name = 'store'): Promise<string> {
  const parent = mkdtempSync(join(tmpdir(), 'vv-'))
  t.teardown(() => rmSync(parent, { recursive: true, force: true }))
  const directory = join(parent, name)
  mkdirSync(join(directory, '..'), { recursive: true })
  await Store.init(directory)
  return directory
}

/** A holder first, then one that is not. */
async function openTwo(t: Test, directory: string): Promise<[StoreProcess, StoreProcess]> {
  const processes: StoreProcess[] = []
  t.teardown(() => Promise.all(processes.map(process => process[Symbol.asyncDispose]())))
  for (let at = 0; at < 2; at++) {
    const process = await StoreProcess.open(directory)
    processes.push(process)
    await process.order({ kind: 'look', ids: '', times: 1 })
  }
  t.equal(holderOf(directory), processes[0]!.pid)
  return [processes[0]!, processes[1]!]
}

function pullOf(seeds = SEEDS) {
  return { kind: 'pull', domain: randomUUID(), size: SIZE, seeds } as const
}

function newIds(count: number): string {
  return randomBytes(count * 32).toString('base64')
}

/** One that shares an index in this very process. */
function openIndex(meeting: string): Promise<SharedIndex> {
  return SharedIndex.open({
    fs: localFs(native()),
    clock: systemClock,
    directory: join(meeting, 'level'),
    meeting,
    repair: { fill: () => Promise.resolve(0), announce: () => undefined },
  })
}

t.test('a killed holder is replaced within a second, and what it acknowledged is there', async t => {
  const directory = await newStore(t)
  let [holder, other] = await openTwo(t, directory)
  const acknowledged: string[] = []
  const times: number[] = []

  for (let round = 0; round < TAKEOVERS; round++) {
    const ids = newIds(100)
    await other.order({ kind: 'put', ids })
    acknowledged.push(ids)
    const start = systemClock.monotonic()
    holder.kill()
    const { found } = await other.order<Look>({ kind: 'look', ids, times: 1 })
    times.push(systemClock.monotonic() - start)
    t.equal(found, 100)
    await holder[Symbol.asyncDispose]()
    t.ok((await other.order<Look>({ kind: 'look', ids, times: 1 })).found === 100)
    t.equal(holderOf(directory), other.pid)
    holder = other
    const next = await StoreProcess.open(directory)
    t.teardown(() => next[Symbol.asyncDispose]())
    other = next
    await other.order({ kind: 'look', ids, times: 1 })
  }

  for (const ids of acknowledged) t.equal((await other.order<Look>({ kind: 'look', ids, times: 1 })).found, 100)
  t.comment(`takeovers: ${times.map(time => time.toFixed(0)).join(' ')} ms`)
  t.ok(Math.max(...times) < TAKEOVER_LIMIT_MS, `${Math.max(...times)} ms`)
})

t.test('a holder that closes its store is replaced without anyone noticing', async t => {
  const directory = await newStore(t)
  const [holder, other] = await openTwo(t, directory)

  const pulls = Promise.all([other.order(pullOf()), holder.order({ kind: 'close' })])

  await t.resolves(pulls)
  t.equal(holderOf(directory), other.pid)
  t.strictSame(other.notices, [])
})

t.test('of many that start at once one holds the index, and all see what each puts', async t => {
  for (let round = 0; round < 10; round++) {
    const meeting = join(t.testdir(), `${round}`)
    mkdirSync(meeting)
    const indexes = await Promise.all(Array.from({ length: 6 }, () => openIndex(meeting)))
    const ids = randomBytes(6 * 32)
    const values = new Uint8Array(6 * 40).fill(round + 1)

    await Promise.all(
      indexes.map((index, at) =>
        index.putBatch({
          ids: ids.subarray(at * 32, at * 32 + 32),
          values: values.subarray(at * 40, at * 40 + 40),
          packs: [],
        }),
      ),
    )

    for (const index of indexes) t.ok(Buffer.from(values).equals(await index.getMany(ids)))
    // In any order, the holder among them: the rest goes on.
    for (const index of indexes.sort(() => randomInt(3) - 1)) {
      t.ok(Buffer.from(values).equals(await index.getMany(ids)))
      await index.close()
    }
  }
})

t.test('batches and scans larger than a frame work through the socket as they do without', async t => {
  const meeting = t.testdir()
  const [holder, other] = [await openIndex(meeting), await openIndex(meeting)]
  const ids = randomBytes(10_000 * 32)
  const values = randomBytes(10_000 * 40)
  const state = { size: 1000, entryCount: 3, kind: 1, sealed: true }
  const packs = Array.from({ length: 5_000 }, () => ({ id: randomBytes(16).toString('hex'), state }))

  await other.putBatch({ ids, values, packs })

  for (const index of [holder, other]) {
    t.ok(values.equals(await index.getMany(ids)))
    t.equal((await index.packs()).size, 5_000)
    t.strictSame(await index.getPacks([packs[7]!.id, '00'.repeat(16)]), [state, undefined])
    const scanned: string[] = []
    for await (const page of index.iterate()) {
      for (let at = 0; at < page.ids.length; at += 32) {
        scanned.push(Buffer.from(page.ids.subarray(at, at + 32)).toString('hex'))
      }
    }
    t.equal(scanned.length, 10_000)
    t.strictSame(scanned, [...scanned].sort())
  }
  const changed = Buffer.from(values)
  changed.fill(9, 0, 40)
  await other.deleteBatch(ids, changed)
  await other.deletePacks(packs.slice(1).map(({ id }) => id))
  const left = await holder.getMany(ids)
  t.ok(
    left.subarray(0, 40).some(byte => byte !== 0),
    'what has another value by now stays',
  )
  t.ok(left.subarray(40).every(byte => byte === 0))
  t.equal((await holder.packs()).size, 1)
  await holder.close()
  await other.close()
})

t.test('who sends garbage or huge frames is dropped, and nobody else notices', async t => {
  const directory = await newStore(t)
  const [holder, other] = await openTwo(t, directory)
  await other.order(pullOf())
  const path = join(directory, 'locks', 'index.sock')
  t.equal(statSync(path).mode & 0o777, 0o600)
  t.equal(statSync(join(directory, 'locks')).mode & 0o777, 0o700)
  const lookup = encodeRequest({ number: 1, content: { kind: 'get', ids: randomBytes(32) } })
  const huge = Buffer.alloc(4)
  huge.writeUInt32LE(2 ** 31)
  const attacks: Buffer[] = [
    randomBytes(4096),
    huge,
    Buffer.from(lookup),
    Buffer.concat([encodeHello(), huge, Buffer.alloc(4 * 1024 * 1024)]),
    Buffer.concat([encodeHello(), encodeHello()]),
    Buffer.concat([encodeHello(), lookup, randomBytes(200)]),
    ...Array.from({ length: 200 }, () => {
      // A good beginning with one byte changed, or a good frame with a lying length.
      const frames = Buffer.concat([encodeHello(), lookup, lookup])
      frames[randomInt(frames.length)] = randomInt(256)
      return Buffer.concat([frames, huge])
    }),
  ]

  const dropped = attacks.map(async attack => {
    const socket = connect(path)
    socket.on('error', () => undefined)
    socket.resume()
    socket.end(attack)
    await new Promise(resolve => socket.once('close', resolve))
  })
  const work = Promise.all([other.order(pullOf()), holder.order(pullOf([[3, 9]]))])

  await t.resolves(Promise.all(dropped))
  await t.resolves(work)
  t.ok(holder.isAlive)
  t.equal(holderOf(directory), holder.pid)
  t.strictSame((await other.order<Check>({ kind: 'check' })).wrong, [])
})

t.test('a client that never reads its answers holds up nobody, not even the end of the holder', async t => {
  const directory = await newStore(t)
  const [holder, other] = await openTwo(t, directory)
  const socket: Socket = connect(join(directory, 'locks', 'index.sock'))
  t.teardown(() => socket.destroy())
  socket.on('error', () => undefined)
  socket.pause()
  const ids = randomBytes(4096 * 32)
  socket.write(encodeHello())
  for (let number = 1; number < 100; number++) socket.write(encodeRequest({ number, content: { kind: 'get', ids } }))
  await once(socket, 'connect')

  await other.order(pullOf())
  await holder.order({ kind: 'close' })

  t.equal((await other.order<Check>({ kind: 'check' })).points.length, 1)
})

t.test('a store whose path is too long for a socket is shared like any other', async t => {
  const directory = await newStore(t, join('a'.repeat(100), 'b'.repeat(100), 'store'))
  const [holder, other] = await openTwo(t, directory)

  await other.order(pullOf())
  holder.kill()
  await other.order(pullOf())

  const { points, wrong } = await other.order<Check>({ kind: 'check' })
  t.strictSame([points.length, wrong.length], [2, 0])
  t.strictSame(other.notices, [])
})

t.test('where the holder is stopped, others go on with an index of their own and say so', async t => {
  const directory = await newStore(t)
  const [holder, other] = await openTwo(t, directory)
  await other.order(pullOf())
  holder.signal('SIGSTOP')

  const pulled = await other.order<{ newChunks: number }>(pullOf())

  t.equal(pulled.newChunks, 0)
  t.match(other.notices, [/cannot be written where it belongs/])
  holder.signal('SIGCONT')
  t.strictSame((await holder.order<Check>({ kind: 'check' })).points.length, 2)
})

t.test('listing points needs no index at all', async t => {
  const directory = await newStore(t)
  const process = await StoreProcess.open(directory)
  t.teardown(() => process[Symbol.asyncDispose]())

  t.strictSame(await process.order({ kind: 'list' }), [])

  t.notOk(existsSync(join(directory, 'index')))
  t.notOk(existsSync(join(directory, 'locks', 'index.lock')))
})

const DAMAGE: readonly (readonly [what: string, harm: (index: string) => void])[] = [
  ['deleted', index => rmSync(index, { recursive: true })],
  ['cut short', index => filesOf(index).forEach(file => truncateSync(file, Math.floor(statSync(file).size / 2)))],
  ['overwritten', index => filesOf(index).forEach(file => writeFileSync(file, randomBytes(statSync(file).size)))],
]

function filesOf(index: string): string[] {
  return readdirSync(index)
    .filter(name => name !== 'LOCK')
    .map(name => join(index, name))
}

for (const [what, harm] of DAMAGE) {
  t.test(`an index that is ${what} while its holder dies is rebuilt by the next, and that is announced`, async t => {
    const directory = await newStore(t)
    const [holder, other] = await openTwo(t, directory)
    await other.order(pullOf())
    await holder[Symbol.asyncDispose]()
    harm(join(directory, 'index'))

    const again = await other.order<{ newChunks: number }>(pullOf())

    t.equal(again.newChunks, 0)
    t.match(other.notices, [/index/])
    t.strictSame((await other.order<Check>({ kind: 'check' })).wrong, [])
  })
}

t.test('an index that breaks under its holder is rebuilt while the others wait', async t => {
  const directory = await newStore(t)
  const [first, other] = await openTwo(t, directory)
  await first.order(pullOf())
  await first.order({ kind: 'put', ids: newIds(4000) })
  // LevelDB moves what is in its log to a table only when it opens again.
  await first.order({ kind: 'close' })
  await other.order({ kind: 'look', ids: newIds(1), times: 1 })
  t.equal(holderOf(directory), other.pid)
  const client = await StoreProcess.open(directory)
  t.teardown(() => client[Symbol.asyncDispose]())
  // The blocks of entries, not those of packs behind them, nor what LevelDB has mapped and believes.
  for (const file of filesOf(join(directory, 'index')).filter(name => name.endsWith('.ldb'))) {
    const handle = openSync(file, 'r+')
    writeSync(handle, Buffer.alloc(200_000, 0xff))
    closeSync(handle)
  }

  const again = await client.order<{ newChunks: number }>(pullOf())

  t.equal(again.newChunks, 0)
  t.match(await noticesOf(other), [/unusable/])
  t.strictSame(client.notices, [])
  t.equal(holderOf(directory), other.pid)
  t.strictSame((await client.order<Check>({ kind: 'check' })).wrong, [])
  t.strictSame((await other.order<Check>({ kind: 'check' })).wrong, [])
})

/** Notices come with the next report. */
async function noticesOf(process: StoreProcess): Promise<string[]> {
  await process.order({ kind: 'list' })
  return process.notices
}

t.test('any process can have the index made anew, the others go on', async t => {
  const directory = await newStore(t)
  const [holder, other] = await openTwo(t, directory)
  await other.order(pullOf())

  const [packs] = await Promise.all([other.order<number>({ kind: 'rebuild' }), holder.order(pullOf([[1, 77]]))])

  t.ok(packs >= 2)
  t.equal((await holder.order<{ newChunks: number }>(pullOf())).newChunks, 0)
  t.strictSame((await holder.order<Check>({ kind: 'check' })).wrong, [])
  t.notOk(existsSync(join(directory, 'index.new')))
})
