import { randomFillSync } from 'node:crypto'
import { mkdtempSync, rmSync } from 'node:fs'
import { join } from 'node:path'

import type { TreeRoot } from '../../src/model/recovery-point.js'
import { Store } from '../../src/store/store.js'
import type { StoredChunks } from '../../src/store/store-types.js'
import { contentsOf, never } from '../store/harness.js'

/*
 * What the store itself costs, without NBD: new data, data that it knows, a
 * walk with reads, and 1,000 scattered changes of a 1 TiB disk.
 *
 *     node dist/test/bench/store-bench.js [batches of 16 MiB] [directory]
 */
const CHUNK = 65_536
const BATCH = 16 * 1024 * 1024
const CHUNKS = BATCH / CHUNK
const batches = Number(process.argv[2] ?? 64)
const geometry = { size: batches * BATCH, chunkSize: CHUNK }
const spans = Uint32Array.from({ length: 2 * CHUNKS }, (_, at) => (at % 2 === 0 ? (at / 2) * CHUNK : CHUNK))

/** Half of it compresses. */
const sample = randomFillSync(Buffer.alloc(BATCH))
for (let at = 0; at < BATCH; at += 2) sample[at] = 0x20
const buffers = Array.from({ length: 3 }, () => Buffer.from(sample))

const directory = mkdtempSync(join(process.argv[3] ?? '/dev/shm', 'store-bench-'))
await Store.init(join(directory, 'store'))
await using store = await Store.open(join(directory, 'store'))

function report(what: string, since: { readonly wall: number; readonly cpu: NodeJS.CpuUsage }, bytes: number): void {
  const seconds = (performance.now() - since.wall) / 1000
  const { user, system } = process.cpuUsage(since.cpu)
  const rate = bytes === 0 ? '' : `${(bytes / 2 ** 30 / seconds).toFixed(2)} GiB/s, `
  const memory = (process.memoryUsage().rss / 2 ** 20).toFixed(0)
  process.stdout.write(
    `${what}: ${rate}${seconds.toFixed(2)} s, cpu ${((user + system) / 1e6).toFixed(2)} s, ${memory} MiB\n`,
  )
}

const begin = () => ({ wall: performance.now(), cpu: process.cpuUsage() })

async function storeAll(what: string): Promise<TreeRoot> {
  const since = begin()
  await using run = await store.runs.begin('bench')
  await using draft = await store.draft(run)
  const tree = draft.tree(geometry, undefined)
  const stored: StoredChunks[] = []
  let next = 0
  const worker = async (bytes: Buffer) => {
    for (let batch = next++; batch < batches; batch = next++) {
      for (let at = 0; at < CHUNKS; at++) bytes.writeUInt32LE(1 + batch * CHUNKS + at, at * CHUNK)
      stored[batch] = await draft.storeChunks(bytes, spans, never)
    }
  }
  await Promise.all(buffers.map(worker))
  for (const [batch, one] of stored.entries()) {
    await tree.putChunks(
      Float64Array.from({ length: CHUNKS }, (_, at) => batch * CHUNKS + at),
      one,
    )
  }
  const { root } = await tree.finish()
  await draft.commit(contentsOf(geometry, root))
  await run.finish()
  report(what, since, geometry.size)
  return root
}

async function readAll(root: TreeRoot): Promise<void> {
  const since = begin()
  const out = Buffer.alloc(128 * CHUNK)
  for await (const run of store.walkTree(root, geometry)) {
    if (run.kind === 'data') await store.chunks.read(run.ids, out, spans.subarray(0, 2 * run.count), never)
  }
  report('read', since, geometry.size)
}

async function scatter(): Promise<void> {
  const large = { size: 2 ** 40, chunkSize: CHUNK }
  let parent: TreeRoot = { kind: 'hole' }
  for (const turn of ['first', 'next', 'unchanged']) {
    const since = begin()
    await using run = await store.runs.begin('bench')
    await using draft = await store.draft(run)
    const tree = draft.tree(large, { root: parent, geometry: large })
    const offset = turn === 'first' ? 0 : 11
    for (let from = 0; from < 1000 && turn !== 'unchanged'; from += 250) {
      const part = buffers[0]!.subarray(0, 250 * CHUNK)
      for (let at = 0; at < 250; at++) part.writeUInt32LE(2 ** 31 + from + at + offset * 5000, at * CHUNK)
      const stored = await draft.storeChunks(part, spans.subarray(0, 500), never)
      const indexes = Float64Array.from({ length: 250 }, (_, at) => (from + at) * 16_777 + offset)
      await tree.putChunks(indexes, stored)
    }
    const { root, newNodes, storedBytes } = await tree.finish()
    await draft.commit(contentsOf(large, root))
    await run.finish()
    parent = root
    report(`1,000 changes of 1 TiB, ${turn}: ${newNodes} nodes, ${storedBytes} bytes`, since, 0)
  }
}

const root = await storeAll('new')
await storeAll('known')
await storeAll('known again')
await readAll(root)
await scatter()
rmSync(directory, { recursive: true })
