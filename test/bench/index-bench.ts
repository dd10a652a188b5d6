/**
 * How long a process waits for the index while another one holds it:
 *
 *     UV_THREADPOOL_SIZE=12 node dist/test/bench/index-bench.js
 *
 * The holder is this process, idle first and then pulling random data as fast
 * as it can; the client is one of its own. No numbers are checked.
 */
import { randomBytes } from 'node:crypto'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import { Store } from '../../src/store/store.js'
import { CHUNK, never } from '../store/harness.js'
import { StoreProcess } from '../store/store-processes.js'

const ENTRIES = 1_000_000
const CHUNKS_PER_BATCH = 128
const BATCHES_UNDER_WAY = 3
const LOOKS = 300

const parent = mkdtempSync(join(process.env['BENCH_DIR'] ?? tmpdir(), 'vv-index-bench-'))
const directory = join(parent, 'store')
await Store.init(directory)
const store = await Store.open(directory)
const ids = randomBytes(ENTRIES * 32)
await store.index.use(index => index.putBatch({ ids, values: new Uint8Array(ENTRIES * 40).fill(1), packs: [] }))
const client = await StoreProcess.open(directory)
try {
  await measure('idle')
  const end = new AbortController()
  const pulled = pullUntil(end.signal)
  await measure('pulling')
  end.abort()
  const { bytes, seconds } = await pulled
  console.log(`the pull meanwhile: ${(bytes / seconds / 2 ** 20).toFixed(0)} MiB/s`)
} finally {
  await client[Symbol.asyncDispose]()
  await store[Symbol.asyncDispose]()
  rmSync(parent, { recursive: true, force: true })
}

async function measure(what: string): Promise<void> {
  for (const count of [128, 256]) {
    for (const kind of ['present', 'absent'] as const) {
      const from = Math.floor(Math.random() * (ENTRIES - count)) * 32
      const wanted = kind === 'present' ? ids.subarray(from, from + count * 32) : randomBytes(count * 32)
      const { times } = await client.order<{ times: number[] }>({
        kind: 'look',
        ids: wanted.toString('base64'),
        times: LOOKS,
      })
      times.sort((a, b) => a - b)
      const at = (part: number) => (times[Math.floor(part * (times.length - 1))] ?? 0).toFixed(2)
      console.log(`holder ${what}, ${count} ${kind}: median ${at(0.5)}, 90 % ${at(0.9)}, 99 % ${at(0.99)} ms`)
    }
  }
}

/** Every chunk is new, so that every stage works. */
async function pullUntil(signal: AbortSignal): Promise<{ bytes: number; seconds: number }> {
  const start = performance.now()
  await using run = await store.runs.begin('pull')
  await using draft = await store.draft(run)
  const spans = Uint32Array.from({ length: CHUNKS_PER_BATCH * 2 }, (_, at) => (at % 2 === 0 ? (at / 2) * CHUNK : CHUNK))
  let bytes = 0
  const lane = async (): Promise<void> => {
    const batch = randomBytes(CHUNKS_PER_BATCH * CHUNK)
    while (!signal.aborted) {
      for (let at = 0; at < CHUNKS_PER_BATCH; at++) batch.set(randomBytes(16), at * CHUNK)
      await draft.storeChunks(batch, spans, never)
      bytes += batch.length
    }
  }
  await Promise.all(Array.from({ length: BATCHES_UNDER_WAY }, lane))
  await run.finish()
  return { bytes, seconds: (performance.now() - start) / 1000 }
}
