import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import t from 'tap'

import { encodeOption, NBD_OPT } from '../../src/format/nbd-options.js'
import { encodeRequest, NBD_CMD } from '../../src/format/nbd-wire.js'
import { ExportServer } from '../../src/nbd/export-server.js'
import type { ReadableDisk, ServedExtent } from '../../src/nbd/served-export.js'

const SIZE = 3 * 1024 * 1024 + 777
const EXTENT = 100_000
const SEED = Number(process.env['FUZZ_SEED'] ?? Date.now() % 1_000_000)
const CONNECTIONS = 1500

/** A disk in memory, a third of whose extents are holes. */
class MemoryDisk implements ReadableDisk {
  readonly size = SIZE
  readonly bytes = Buffer.alloc(SIZE)

  constructor() {
    for (let at = 0; at < SIZE; at += EXTENT) {
      if (this.#isHole(at)) continue
      for (let i = at; i < Math.min(SIZE, at + EXTENT); i += 32)
        createHash('sha256').update(String(i)).digest().copy(this.bytes, i)
      this.bytes.fill(0, Math.min(SIZE, at + EXTENT), Math.min(SIZE, at + EXTENT + 32))
    }
  }

  #isHole(offset: number): boolean {
    return Math.floor(offset / EXTENT) % 3 === 2
  }

  async *extents(from: number, to: number): AsyncGenerator<ServedExtent> {
    for (let offset = from; offset < to; ) {
      const end = Math.min(to, (Math.floor(offset / EXTENT) + 1) * EXTENT)
      yield { offset, length: end - offset, kind: this.#isHole(offset) ? 'hole' : 'data' }
      offset = end
    }
  }

  read(offset: number, out: Uint8Array): Promise<void> {
    if (offset < 0 || offset + out.length > SIZE) throw new Error('a read beyond the disk came through')
    out.set(this.bytes.subarray(offset, offset + out.length))
    return Promise.resolve()
  }
}

class Dice {
  #state: number

  constructor(seed: number) {
    this.#state = seed
  }

  below(limit: number): number {
    this.#state = (Math.imul(this.#state ^ (this.#state >>> 15), 0x2c1b3c6d) + 0x9e3779b9) >>> 0
    const mixed = Math.imul(this.#state ^ (this.#state >>> 12), 0x297a2d39) >>> 0
    return Math.floor((mixed / 2 ** 32) * limit)
  }

  pick<T>(list: readonly T[]): T {
    return list[this.below(list.length)]!
  }

  bytes(length: number): Buffer {
    return Buffer.from(Array.from({ length }, () => this.below(256)))
  }
}

const folder = mkdtempSync(join(tmpdir(), 'vv-hostile-'))
t.teardown(() => rmSync(folder, { recursive: true, force: true }))
t.setTimeout(240_000)

const CLIENT_FLAGS = Buffer.from('00000003', 'hex')
const STRUCTURED = encodeOption(NBD_OPT.structuredReply, Buffer.alloc(0))
const META = encodeOption(
  NBD_OPT.setMetaContext,
  Buffer.concat([Buffer.alloc(4), Buffer.from('000000010000000f', 'hex'), Buffer.from('base:allocation')]),
)
const GO = encodeOption(NBD_OPT.go, Buffer.alloc(6))

/** Something a client could say, right or wrong in one of many ways. */
function utterance(dice: Dice): Buffer {
  const options = Array.from({ length: dice.below(4) }, () => {
    const data = dice.pick([
      () => Buffer.alloc(0),
      () => dice.bytes(dice.below(40)),
      () => Buffer.concat([Buffer.from([0, 0, 0, dice.below(9)]), dice.bytes(dice.below(30))]),
      () => Buffer.alloc(dice.below(70_000)),
    ])()
    return encodeOption(dice.below(13), data)
  })
  const requests = Array.from({ length: dice.below(12) }, () =>
    encodeRequest({
      flags: dice.pick([0, 0, 0, 4, 8, dice.below(65_536)]),
      type: dice.pick([0, 0, 0, 0, 1, 3, 4, 5, 6, 7, 7, dice.below(65_536)]),
      cookie: dice.bytes(8),
      offset: dice.pick([0, dice.below(SIZE), dice.below(SIZE), SIZE, SIZE - 1, 2 ** 40, Number.MAX_SAFE_INTEGER]),
      length: dice.pick([0, 1, dice.below(SIZE), dice.below(4096), 0xffff_ffff, 33 * 2 ** 20, 32 * 2 ** 20]),
    }),
  )
  const said = Buffer.concat([
    CLIENT_FLAGS,
    ...(dice.below(5) === 0 ? [] : [STRUCTURED]),
    ...options,
    ...(dice.below(3) === 0 ? [] : [META]),
    ...(dice.below(8) === 0 ? [] : [GO]),
    ...requests,
  ])
  switch (dice.below(4)) {
    case 0:
      for (let flips = 1 + dice.below(4); flips > 0; flips--) said[dice.below(said.length)] = dice.below(256)
      return said
    case 1:
      return said.subarray(0, dice.below(said.length))
    case 2:
      return dice.bytes(dice.below(200))
    default:
      return said
  }
}

t.test(`whatever clients say, the server lives and stays right (seed ${SEED})`, async t => {
  const disk = new MemoryDisk()
  const failures: unknown[] = []
  const path = join(folder, 'a.sock')
  await using server = await ExportServer.listen(
    { kind: 'unix', path },
    {
      exports: [{ name: 'disk', description: '', disk, preferredBlock: 65_536 }],
      onReadFailure: error => failures.push(error),
    },
  )
  const dice = new Dice(SEED)

  let heard = 0
  let base = 0
  for (let round = 0; round < CONNECTIONS; round += 10) {
    await Promise.all(
      Array.from({ length: 10 }, async () => {
        heard += await say(path, utterance(dice), { hangUp: dice.below(3) === 0 })
      }),
    )
    if (process.env['DBG']) console.error(round, heard, process.memoryUsage().heapUsed >> 20)
    if (round % 150 === 0) await readsRight(path, disk, dice)
    if (round === CONNECTIONS / 3) base = process.memoryUsage().rss
  }

  t.strictSame(failures, [], 'no read beyond the disk, no error of ours')
  t.ok(heard > CONNECTIONS * 18, 'it answered')
  // Buffers of a few connections, and what a collector leaves for later.
  t.ok(process.memoryUsage().rss - base < 100 * 2 ** 20, 'memory is flat')
  for (let turn = 0; server.connections > 0 && turn < 1000; turn++) await new Promise(resolve => setImmediate(resolve))
  t.equal(server.connections, 0)
})

t.test('a client that asks and does not listen costs a bounded amount of memory', async t => {
  const disk = new MemoryDisk()
  const path = join(folder, 'b.sock')
  await using server = await ExportServer.listen(
    { kind: 'unix', path },
    { exports: [{ name: 'disk', description: '', disk, preferredBlock: 65_536 }] },
  )
  const deaf = connect({ path })
  deaf.on('error', () => undefined)
  deaf.pause()
  const before = process.memoryUsage()
  deaf.write(Buffer.concat([CLIENT_FLAGS, STRUCTURED, GO]))
  const request = encodeRequest({ flags: 0, type: NBD_CMD.read, cookie: Buffer.alloc(8), offset: 0, length: SIZE })
  // 20,000 x 3 MiB: sixty gigabytes of answers.
  for (let i = 0; i < 20_000; i++) deaf.write(request)

  for (let round = 0; round < 20; round++) await readsRight(path, disk, new Dice(round))

  const after = process.memoryUsage()
  t.ok(after.rss - before.rss < 120 * 2 ** 20, `grew by ${(after.rss - before.rss) >> 20} MiB`)
  t.equal(server.connections, 1)
  deaf.destroy()
})

/** Says it all and hangs up, or waits until it is hung up on or nothing more comes. Bytes heard. */
async function say(path: string, words: Buffer, { hangUp }: { readonly hangUp: boolean }): Promise<number> {
  const socket = connect({ path })
  let heard = 0
  socket.on('error', () => undefined)
  socket.on('data', part => (heard += part.length))
  const closed = once(socket, 'close').catch(() => undefined)
  await once(socket, 'connect').catch(() => undefined)
  socket.write(words)
  if (hangUp) setImmediate(() => socket.destroy())
  else socket.end()
  await closed
  return heard
}

/** An honest client beside them, without structured replies: header and bytes. */
async function readsRight(path: string, disk: MemoryDisk, dice: Dice): Promise<void> {
  const socket = connect({ path })
  const ear = new Ear(socket)
  await once(socket, 'connect')
  const offset = dice.below(SIZE - 1)
  const length = 1 + dice.below(SIZE - offset)
  socket.write(Buffer.concat([CLIENT_FLAGS, encodeOption(NBD_OPT.exportName, Buffer.from('disk'))]))
  const greeting = await ear.take(18 + 10)
  if (Number(greeting.readBigUInt64BE(18)) !== SIZE) throw new Error('wrong size')
  const cookie = dice.bytes(8)
  socket.write(encodeRequest({ flags: 0, type: NBD_CMD.read, cookie, offset, length }))
  const reply = await ear.take(16 + length)
  if (reply.readUInt32BE(4) !== 0 || !reply.subarray(8, 16).equals(cookie)) throw new Error('wrong reply')
  if (!reply.subarray(16).equals(disk.bytes.subarray(offset, offset + length))) throw new Error('wrong bytes')
  socket.write(encodeRequest({ flags: 0, type: NBD_CMD.disconnect, cookie, offset: 0, length: 0 }))
  await once(socket, 'close')
}

/** Collects what comes; gives it out in exact pieces. */
class Ear {
  #parts: Buffer[] = []
  #length = 0
  #isOver = false
  #wake: () => void = () => undefined

  constructor(socket: Socket) {
    socket.on('data', (part: Buffer) => {
      this.#parts.push(part)
      this.#length += part.length
      this.#wake()
    })
    socket.on('close', () => {
      this.#isOver = true
      this.#wake()
    })
  }

  async take(length: number): Promise<Buffer> {
    while (this.#length < length) {
      if (this.#isOver) throw new Error('the server hung up on an honest client')
      await new Promise<void>(resolve => (this.#wake = resolve))
    }
    const all = Buffer.concat(this.#parts)
    this.#parts = [all.subarray(length)]
    this.#length -= length
    return all.subarray(0, length)
  }
}
