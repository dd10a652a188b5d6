/**
 * What encryption costs: storeChunks() and reading back, plain and encrypted in
 * turn, in one run. `node dist/test/bench/encryption-bench.js [DIRECTORY] [MiB]`.
 */
import { createCipheriv } from 'node:crypto'
import { mkdtempSync, rmSync } from 'node:fs'
import { join } from 'node:path'

import { Store } from '../../src/store/store.js'
import { CHEAP_SCRYPT, CHUNK, contentsOf, given, readDisk, sideOf } from '../store/harness.js'

const [, , directory = '/dev/shm', size = '512'] = process.argv
const BATCH = 64
const BATCHES = Math.floor((Number(size) * 1024 * 1024) / (BATCH * CHUNK))
const ROUNDS = 8
const never = new AbortController().signal

interface Figures {
  readonly store: number
  readonly read: number
  readonly storeCpu: number
  readonly readCpu: number
}

/** Half of each chunk compresses, half does not; nothing comes twice. */
function batchOf(round: number, batch: number): Buffer {
  const bytes = Buffer.alloc(BATCH * CHUNK)
  const key = Buffer.alloc(32, `${round} ${batch} `)
  const noise = createCipheriv('aes-256-ctr', key, Buffer.alloc(16)).update(Buffer.alloc((BATCH * CHUNK) / 2))
  for (let chunk = 0; chunk < BATCH; chunk++) {
    noise.copy(bytes, chunk * CHUNK, (chunk * CHUNK) / 2, ((chunk + 1) * CHUNK) / 2)
    bytes.fill(`line ${chunk} of a log that repeats itself\n`, chunk * CHUNK + CHUNK / 2, (chunk + 1) * CHUNK)
  }
  return bytes
}

async function measure(kind: 'plain' | 'encrypted', round: number): Promise<Figures> {
  const folder = mkdtempSync(join(directory, 'encryption-bench-'))
  try {
    const location = join(folder, 'store')
    const encryption = kind === 'plain' ? undefined : { passphrase: 'x', cost: CHEAP_SCRYPT }
    await Store.init(location, { encryption })
    await using store = await Store.open(location, { passphrase: kind === 'plain' ? undefined : given('x') })
    const geometry = { size: BATCHES * BATCH * CHUNK, chunkSize: CHUNK }
    const batches = Array.from({ length: BATCHES }, (_, batch) => batchOf(round, batch))
    const spans = Uint32Array.from({ length: 2 * BATCH }, (_, at) => (at % 2 === 0 ? (at / 2) * CHUNK : CHUNK))

    const cpuBefore = process.cpuUsage()
    const began = performance.now()
    await using run = await store.runs.begin('bench')
    await using draft = await store.draft(run)
    const tree = draft.tree(geometry, undefined)
    for (let first = 0; first < BATCHES; first += 4) {
      const four = batches.slice(first, first + 4)
      const stored = await Promise.all(four.map(bytes => draft.storeChunks(bytes, spans, never)))
      for (const [at, one] of stored.entries()) {
        const indexes = Float64Array.from({ length: BATCH }, (_, chunk) => (first + at) * BATCH + chunk)
        await tree.putChunks(indexes, one)
      }
    }
    const { root } = await tree.finish()
    const point = await draft.commit(contentsOf(geometry, root))
    await run.finish()
    const storedAt = performance.now()
    const storeCpu = cpuSince(cpuBefore)
    const cpuBetween = process.cpuUsage()
    await readDisk(store, sideOf(point))
    const readCpu = cpuSince(cpuBetween)
    return { store: storedAt - began, read: performance.now() - storedAt, storeCpu, readCpu }
  } finally {
    rmSync(folder, { recursive: true })
  }
}

/** Milliseconds of all threads. */
function cpuSince(before: NodeJS.CpuUsage): number {
  const { user, system } = process.cpuUsage(before)
  return (user + system) / 1000
}

/** The round that others disturbed least. */
function least(values: readonly number[]): number {
  return Math.min(...values)
}

const found = { plain: new Array<Figures>(), encrypted: new Array<Figures>() }
for (let round = 0; round < ROUNDS; round++) {
  for (const kind of ['plain', 'encrypted'] as const) found[kind].push(await measure(kind, round))
}
for (const figure of ['store', 'storeCpu', 'read', 'readCpu'] as const) {
  const [plain, encrypted] = [found.plain, found.encrypted].map(list => least(list.map(one => one[figure])))
  if (plain === undefined || encrypted === undefined) continue
  console.log(
    `${figure.padEnd(9)} plain ${plain.toFixed(0)} ms, encrypted ${encrypted.toFixed(0)} ms, ratio ${(encrypted / plain).toFixed(3)}`,
  )
}
