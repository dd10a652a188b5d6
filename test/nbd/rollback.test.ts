import { execFile } from 'node:child_process'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'

import fc from 'fast-check'
import t from 'tap'

import { ExportImage, type WritableExport } from '../../src/image/export-image.js'
import { mergeRanges, measureRollback, type PresentDisk, rollbackDisk } from '../../src/jobs/rollback-disk.js'
import type { RecoveryPoint } from '../../src/model/recovery-point.js'
import { ExportReader } from '../../src/nbd/export-reader.js'
import { ExportWriter } from '../../src/nbd/export-writer.js'
import { Store } from '../../src/store/store.js'
import { CHUNK, chunkBytes, never, pull, sideOf } from '../store/harness.js'
import { qemuNbd } from './servers.js'

const run = promisify(execFile)
const CHUNKS = 400
const SIZE = CHUNKS * CHUNK - CHUNK + 512
const GEOMETRY = { size: SIZE, chunkSize: CHUNK }

const OLD = range(0, 300).map(index => [index, index + 1] as const)
/** From the old point to the new one: changed, zeroed, added, punched. */
const LATER = [
  [3, 1003],
  [50, 0],
  [51, -1],
  [310, 1310],
  [CHUNKS - 1, 77],
] as const

t.test('a disk goes back to an old point by writing the difference alone', async t => {
  const lab = await prepare(t)
  const server = await lab.serve()

  const size = await measureRollback(await lab.rollback(server), never)
  await lab.run(server, new AbortController().signal)
  await server.kill()

  // Differing: 3, 50, 51 as data, 310 and the last as zeros. Written by the guest: 7 (and 8) as data, 200.
  t.same(size, { dataBytes: 6 * CHUNK, zeroBytes: CHUNK + 512 })
  t.same(lab.written, { dataBytes: size.dataBytes, zeroBytes: size.zeroBytes })
  await lab.holdsOld(t)
})

t.test('an interrupted rollback is finished by the second one', async t => {
  const lab = await prepare(t)
  const first = await lab.serve()
  const stop = new AbortController()
  lab.onWrite = () => stop.abort(new Error('SIGINT'))
  await t.rejects(lab.run(first, stop.signal))
  await first.terminate()

  lab.onWrite = () => undefined
  const second = await lab.serve()
  await lab.run(second, never)
  await second.terminate()

  await lab.holdsOld(t)
})

t.test('a store that lost something needed leaves the disk as it is', async t => {
  const lab = await prepare(t)
  const before = await lab.content()
  const server = await lab.serve()
  const lost = {
    read: () => Promise.reject(Object.assign(new Error('lost'), { code: 'E_DAMAGED', pieces: [{ piece: 0 }] })),
  }

  await t.rejects(lab.run(server, never, lost), { code: 'E_DAMAGED' })
  await server.terminate()

  t.same(lab.written, { dataBytes: 0, zeroBytes: 0 })
  t.ok(before.equals(await lab.content()))
})

t.test('merged ranges hold what either has, ascending and apart', async () => {
  const ranges = fc
    .uniqueArray(fc.nat(60), { maxLength: 20 })
    .map(all => all.toSorted((a, b) => a - b).map(first => ({ first, count: 1 })))
  const long = fc.array(fc.tuple(fc.nat(9), fc.integer({ min: 1, max: 9 })), { maxLength: 8 }).map(pairs => {
    let at = 0
    return pairs.map(([gap, count]) => {
      const first = at + gap
      at = first + count
      return { first, count }
    })
  })
  await fc.assert(
    fc.asyncProperty(ranges, long, async (a, b) => {
      const merged = await collect(mergeRanges(stream(a), stream(b)))
      const members = (list: readonly { first: number; count: number }[]) =>
        [...new Set(list.flatMap(({ first, count }) => range(first, count)))].sort((x, y) => x - y)
      if (JSON.stringify(members(merged)) !== JSON.stringify(members([...a, ...b]))) throw new Error('other members')
      merged.slice(1).forEach((one, i) => {
        if (one.first <= merged[i]!.first + merged[i]!.count) throw new Error('not apart')
      })
    }),
  )
})

async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = []
  for await (const item of items) all.push(item)
  return all
}

async function* stream<T>(items: readonly T[]): AsyncGenerator<T> {
  yield* items
}

function range(first: number, count: number): number[] {
  return Array.from({ length: count }, (_, i) => first + i)
}

/** A qcow2 that holds the new point, with a bitmap since then and guest writes in it; and both points in a store. */
async function prepare(t: Parameters<typeof qemuNbd>[0]) {
  const folder = await mkdtemp(join(tmpdir(), 'vv-'))
  t.teardown(() => rm(folder, { recursive: true }))
  await Store.init(join(folder, 'store'))
  const store = await Store.open(join(folder, 'store'))
  t.teardown(() => store[Symbol.asyncDispose]())
  const old = (await pull(store, GEOMETRY, OLD)).point
  const base = (await pull(store, GEOMETRY, LATER, old)).point
  const image = join(folder, 'disk.qcow2')
  const raw = join(folder, 'new.raw')
  await writeFile(raw, contentOf([...OLD, ...LATER]))
  await run('qemu-img', ['convert', '-O', 'qcow2', raw, image])
  await run('qemu-img', ['bitmap', '--add', image, 'since'])
  await run('qemu-io', ['-c', `write -P 9 ${7 * CHUNK + 512} ${CHUNK}`, '-c', `write -z ${200 * CHUNK} 4k`, image])
  return new RollbackLab(t, folder, { store, old, base, image })
}

interface Parts {
  readonly store: Store
  readonly old: RecoveryPoint
  readonly base: RecoveryPoint
  readonly image: string
}

class RollbackLab {
  readonly written = { dataBytes: 0, zeroBytes: 0 }
  onWrite = (): void => undefined
  readonly #t: Parameters<typeof qemuNbd>[0]
  readonly #folder: string
  readonly #parts: Parts

  constructor(t: Parameters<typeof qemuNbd>[0], folder: string, parts: Parts) {
    this.#t = t
    this.#folder = folder
    this.#parts = parts
  }

  /** qemu-nbd on the image; its writes are recorded in the bitmap, as a domain's would be. */
  async serve() {
    const server = await qemuNbd(this.#t, this.#folder, ['-f', 'qcow2', '-B', 'since', '-x', 'disk', this.#parts.image])
    const terminate = async () => {
      const ended = new Promise(done => server.child.once('exit', done))
      server.child.kill('SIGTERM')
      await ended
    }
    return { socket: server.socket, terminate, kill: terminate }
  }

  async rollback(server: { readonly socket: string }) {
    const { store, old, base } = this.#parts
    const reader = await ExportReader.open(
      { socket: server.socket },
      { exportName: 'disk', dirtyBitmap: 'since', connections: 1, requestTimeoutMs: 10_000 },
      never,
    )
    this.#t.teardown(() => reader[Symbol.asyncDispose]())
    const extents = await collect(reader.extents(never))
    await reader[Symbol.asyncDispose]()
    const present: PresentDisk = { base: sideOf(base), extents: () => stream(extents) }
    return { store, wanted: sideOf(old), present }
  }

  async run(server: { readonly socket: string }, signal: AbortSignal, chunks?: Store['chunks']): Promise<void> {
    const rollback = await this.rollback(server)
    const writer = await ExportWriter.open(
      { socket: server.socket },
      { exportName: 'disk', connections: 2, requestTimeoutMs: 10_000 },
      never,
    )
    await using image = new ExportImage('disk', SIZE, this.#counted(writer))
    const store = rollback.store
    const source = {
      walkTree: store.walkTree.bind(store),
      diffTrees: store.diffTrees.bind(store),
      chunks: chunks ?? store.chunks,
    }
    await rollbackDisk({ ...rollback, store: source, image, onProgress: () => undefined }, signal)
    await image.commit(signal)
  }

  #counted(writer: ExportWriter): WritableExport {
    return {
      size: writer.size,
      write: async (pieces, buffer, signal) => {
        await writer.write(pieces, buffer, signal)
        for (let i = 1; i < pieces.length; i += 3) this.written.dataBytes += pieces[i]!
        this.onWrite()
      },
      zero: async (offset, length, options, signal) => {
        await writer.zero(offset, length, options, signal)
        this.written.zeroBytes += length
      },
      flush: signal => writer.flush(signal),
      [Symbol.asyncDispose]: () => writer[Symbol.asyncDispose](),
    }
  }

  async content(): Promise<Buffer> {
    const raw = join(this.#folder, 'now.raw')
    await run('qemu-img', ['convert', '-O', 'raw', this.#parts.image, raw])
    return await readFile(raw)
  }

  async holdsOld(t: { ok(value: unknown, message: string): void }): Promise<void> {
    await run('qemu-img', ['check', '-q', this.#parts.image])
    t.ok((await this.content()).equals(contentOf(OLD)), 'the image holds the old point')
  }
}

function contentOf(seeds: Iterable<readonly [number, number]>): Buffer {
  const disk = Buffer.alloc(SIZE)
  for (const [index, seed] of seeds) {
    const length = Math.min(CHUNK, SIZE - index * CHUNK)
    disk.fill(seed <= 0 ? Buffer.alloc(length) : chunkBytes(seed, length), index * CHUNK, index * CHUNK + length)
  }
  return disk
}
