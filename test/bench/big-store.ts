/**
 * `node dist/test/bench/big-store.js FOLDER [CHUNKS] [DOMAINS]`: makes a store
 * of many chunks without their bulk (each chunk is 8 bytes, in a record, a
 * pack, a tree and an index as any other), forgets every tenth point, replaces
 * every fifth by one that needs half of it (so that gc has packs to rewrite),
 * and measures verify --level quick, gc --dry-run, gc of what is wholly dead and
 * gc that rewrites (here all: packs so small are merged): time and peak memory
 * of a process each. Prints a table row per step. Give CHUNKS as `make:NUMBER`
 * to keep the store, and as `step:NAME` to run one step on it.
 */
import { execFile } from 'node:child_process'
import { rm } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

import { systemClock } from '../../src/base/clock.js'
import { fromHex } from '../../src/base/hex.js'
import { systemRandom } from '../../src/base/random.js'
import { PACK_KIND } from '../../src/format/pack.js'
import { RECORD_KIND } from '../../src/format/record.js'
import { GcJob } from '../../src/jobs/gc-job.js'
import { SILENT_PROGRESS } from '../../src/jobs/progress.js'
import { VerifyJob } from '../../src/jobs/verify-job.js'
import { TREE_FANOUT, chunkCount } from '../../src/model/disk-tree.js'
import { native } from '../../src/native/binding.js'
import { indexBatchOf } from '../../src/store/pack-catalog.js'
import { PackWriter } from '../../src/store/pack-writer.js'
import { plainKeys } from '../../src/store/keys.js'
import { Store } from '../../src/store/store.js'
import { TreeEditor } from '../../src/store/tree-draft.js'
import { CHUNK, contentsOf, never, sideOf } from '../store/harness.js'

const run = promisify(execFile)
const SELF = fileURLToPath(import.meta.url)
const CHUNK_BYTES = 8
/** As many as a pack of 64 MiB has of chunks of 64 KiB that compress to half. */
const CHUNKS_PER_PACK = 2048

const [folder = '/dev/shm/virtvault-big', first = '1000000', domains = '20'] = process.argv.slice(2)
if (first.startsWith('step:')) await step(first.slice('step:'.length))
else if (first.startsWith('make:')) await make(Number(first.slice('make:'.length)), Number(domains))
else await bench(Number(first), Number(domains))

async function bench(chunks: number, count: number): Promise<void> {
  await rm(folder, { recursive: true, force: true })
  const started = performance.now()
  await make(chunks, count)
  print(`made ${chunks} chunks in ${count} domains: ${seconds(performance.now() - started)}`)
  for (const name of ['verify', 'gc-plan', 'thin', 'gc', 'gc-rewrite', 'verify']) {
    const { stdout } = await run(process.execPath, [SELF, folder, `step:${name}`], { maxBuffer: 1 << 20 })
    print(stdout.trim())
  }
  await rm(folder, { recursive: true, force: true })
}

async function make(chunks: number, count: number): Promise<void> {
  await Store.init(folder, { level: 0 })
  await using store = await Store.open(folder)
  const options = {
    objects: store.objects,
    storeId: fromHex(store.id),
    keys: plainKeys,
    random: systemRandom,
    level: 0,
  }
  const onSealed: ConstructorParameters<typeof PackWriter>[0]['onSealed'] = (pack, contents) =>
    store.index.use(index => index.putBatch(indexBatchOf(pack, contents)))
  const data = new PackWriter({ ...options, kind: PACK_KIND.data, onSealed })
  const meta = new PackWriter({ ...options, kind: PACK_KIND.meta, onSealed })
  const perDomain = Math.floor(chunks / count)
  const geometry = { size: perDomain * CHUNK, chunkSize: CHUNK }
  for (let domain = 0; domain < count; domain++) {
    const tree = new TreeEditor(
      {
        load: () => Promise.reject(new Error('a new tree loads nothing')),
        store: async (bytes, spans) => {
          const { ids } = await native().hashChunks(bytes, spans, { kind: RECORD_KIND.node })
          const storedBytes = await meta.append({ bytes, spans, ids, kind: RECORD_KIND.node })
          return { ids, newCount: spans.length / 2, storedBytes }
        },
      },
      geometry,
      undefined,
    )
    for (let from = 0; from < perDomain; from += CHUNKS_PER_PACK) {
      const size = Math.min(CHUNKS_PER_PACK, perDomain - from)
      const bytes = Buffer.alloc(size * CHUNK_BYTES)
      const spans = new Uint32Array(size * 2)
      for (let at = 0; at < size; at++) {
        bytes.writeUInt32LE(domain + 1, at * CHUNK_BYTES)
        bytes.writeUInt32LE(from + at, at * CHUNK_BYTES + 4)
        spans.set([at * CHUNK_BYTES, CHUNK_BYTES], 2 * at)
      }
      const { ids, zero } = await native().hashChunks(bytes, spans, { kind: RECORD_KIND.chunk })
      const storedBytes = await data.append({ bytes, spans, ids, kind: RECORD_KIND.chunk })
      await data.seal()
      const stored = { count: size, ids, zero, newChunks: size, newBytes: bytes.length, storedBytes }
      await tree.putChunks(
        Float64Array.from({ length: size }, (_, at) => from + at),
        stored,
      )
    }
    const { root } = await tree.finish()
    await meta.seal()
    const uuid = `6f0c2a1e-8d53-4a97-b1c4-${domain.toString(16).padStart(12, '0')}`
    await store.points.commit({ ...contentsOf(geometry, root), domain: { uuid, name: `web${domain}` } }, 'a'.repeat(32))
  }
}

async function step(name: string): Promise<void> {
  await using store = await Store.open(folder)
  const ports = { progress: SILENT_PROGRESS, clock: systemClock }
  const started = performance.now()
  let result = ''
  if (name === 'verify') {
    const job = new VerifyJob({ ...ports, points: store.points, verifier: store.verifier() })
    const { points, lostIds, neededBytes } = await job.run({ level: 'quick', isMeant: () => true }, never)
    result = `${points} points, ${lostIds} lost, ${mib(neededBytes)} needed`
  } else if (name === 'thin') {
    result = await thin(store)
  } else {
    const job = new GcJob({ ...ports, collector: store.collector(), confirmMuch: () => Promise.resolve() })
    if (name === 'gc-plan') {
      const plan = await job.plan({ threshold: 0 }, never)
      result = `${mib(plan.storeBytes)} in packs, ${plan.dead.length} packs dead`
    } else {
      const { plan, swept } = await job.run(name === 'gc' ? { threshold: 0 } : {}, never)
      const gone = `${plan.dead.length} packs dead, ${plan.rewritten.length} rewritten`
      result = `${gone}, ${mib(swept.deletedBytes)} deleted, ${mib(swept.writtenBytes)} written`
    }
  }
  const elapsed = performance.now() - started
  // Kilobytes; user and system time in microseconds.
  const { maxRSS, userCPUTime, systemCPUTime } = process.resourceUsage()
  const cpu = seconds((userCPUTime + systemCPUTime) / 1000)
  print(`${name.padEnd(8)} ${seconds(elapsed)} wall, ${cpu} CPU, peak ${mib(maxRSS * 1024)}: ${result}`)
}

/** Makes garbage: of whole packs, and of every second leaf in others. */
async function thin(store: Store): Promise<string> {
  const points = await store.points.list()
  let replaced = 0
  for (const [at, point] of points.entries()) {
    if (at % 10 !== 0 && at % 5 !== 1) continue
    if (at % 5 === 1) {
      const side = sideOf(point)
      const chunks = chunkCount(side.geometry)
      await using run = await store.runs.begin('pull')
      await using draft = await store.draft(run)
      const tree = draft.tree(side.geometry, side)
      for (let first = 0; first < chunks; first += 2 * TREE_FANOUT) {
        await tree.putRun(first, Math.min(TREE_FANOUT, chunks - first), 'hole')
      }
      const { root } = await tree.finish()
      await draft.commit({ ...contentsOf(side.geometry, root, point), domain: point.domain })
      await run.finish()
      replaced++
    }
    await store.points.remove(point)
  }
  return `${replaced} points replaced by their half`
}

function seconds(ms: number): string {
  return `${(ms / 1000).toFixed(1)} s`
}

function mib(bytes: number): string {
  return `${Math.round(bytes / 1024 / 1024)} MiB`
}

function print(line: string): void {
  process.stdout.write(`${line}\n`)
}
