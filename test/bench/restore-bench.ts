/**
 * `node dist/test/bench/restore-bench.js FOLDER [MIB] [ROUNDS]`: restores a
 * store of mixed data to qcow2 and raw, beside qemu-img convert of the same
 * data from a raw file and from a zstd-compressed qcow2. All runs are processes
 * of their own, interleaved; prints medians and ratios, and writes them as JSON.
 */
import { execFile } from 'node:child_process'
import { createHash, randomFillSync } from 'node:crypto'
import { mkdir, open, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

import { systemClock } from '../../src/base/clock.js'
import { LocalImages } from '../../src/image/local-images.js'
import { SILENT_PROGRESS } from '../../src/jobs/progress.js'
import { RestoreJob } from '../../src/jobs/restore-job.js'
import { planRestore } from '../../src/jobs/restore-plan.js'
import { Store } from '../../src/store/store.js'
import { contentsOf } from '../store/harness.js'

const run = promisify(execFile)
const never = new AbortController().signal
const MIB = 1 << 20
const STRIPE = 16 * MIB
const CHUNK = 64 * 1024

interface Run {
  readonly wallMs: number
  readonly cpuMs: number
  readonly peakMib: number
}

const SELF = fileURLToPath(import.meta.url)
const [folder = '/dev/shm/virtvault-bench', first = '2048', second = '5', third = ''] = process.argv.slice(2)
if (first === 'restore') await restoreOnce(second, third === 'raw' ? 'raw' : 'qcow2')
else await compare(Number(first), Number(second))

async function compare(mib: number, rounds: number): Promise<void> {
  await mkdir(folder, { recursive: true })
  const store = join(folder, 'store')
  const raw = join(folder, 'disk.raw')
  const packed = join(folder, 'disk-zstd.qcow2')
  const out = join(folder, 'out')
  await makeData(raw, store, mib)
  await run('qemu-img', ['convert', '-c', '-o', 'compression_type=zstd', '-O', 'qcow2', raw, packed])

  const convert = (format: string, from: string) => ['qemu-img', 'convert', '-O', format, from, join(out, 'q')]
  const ours = (format: string) => [process.execPath, SELF, store, 'restore', out, format]
  const contestants = {
    'virtvault qcow2': ours('qcow2'),
    'qemu-img raw to qcow2': convert('qcow2', raw),
    'qemu-img zstd qcow2 to qcow2': convert('qcow2', packed),
    'virtvault raw': ours('raw'),
    'qemu-img raw to raw': convert('raw', raw),
  }
  const results = new Map<string, Run[]>(Object.keys(contestants).map(name => [name, []]))
  for (let round = 0; round < rounds; round++) {
    for (const [name, command] of Object.entries(contestants)) {
      await rm(out, { recursive: true, force: true })
      await mkdir(out)
      results.get(name)?.push(await timed(command))
      if (round > 0) continue
      const image = join(out, name === 'virtvault qcow2' ? 'vda.qcow2' : name === 'virtvault raw' ? 'vda.raw' : 'q')
      await run('qemu-img', ['compare', '-q', image, raw])
    }
  }
  await rm(out, { recursive: true, force: true })

  const median = (name: string) => medianOf(results.get(name) ?? [])
  const table = Object.keys(contestants).map(name => ({ name, ...median(name) }))
  const ratio = (a: string, b: string) => Number((median(a).wallMs / median(b).wallMs).toFixed(2))
  const ratios = {
    'qcow2, against qemu-img from raw': ratio('virtvault qcow2', 'qemu-img raw to qcow2'),
    'qcow2, against qemu-img from zstd qcow2': ratio('virtvault qcow2', 'qemu-img zstd qcow2 to qcow2'),
    'raw, against qemu-img from raw': ratio('virtvault raw', 'qemu-img raw to raw'),
  }
  console.table(table)
  console.table(ratios)
  await writeFile(join(folder, 'restore-bench.json'), JSON.stringify({ mib, rounds, table, ratios }, undefined, 2))
}

/** The same bytes as a sparse raw file and as a recovery point. */
async function makeData(raw: string, location: string, mib: number): Promise<void> {
  await rm(location, { recursive: true, force: true })
  await Store.init(location)
  await using store = await Store.open(location)
  await using job = await store.runs.begin('pull')
  await using draft = await store.draft(job)
  const geometry = { size: mib * MIB, chunkSize: CHUNK }
  const tree = draft.tree(geometry, undefined)
  const file = await open(raw, 'w')
  await file.truncate(geometry.size)
  const stripe = Buffer.alloc(STRIPE)
  const spans = Uint32Array.from({ length: (STRIPE / CHUNK) * 2 }, (_, i) => (i % 2 === 0 ? (i / 2) * CHUNK : CHUNK))
  for (let at = 0; at < geometry.size; at += STRIPE) {
    const kind = (at / STRIPE) % 4
    const first = at / CHUNK
    if (kind === 3) {
      await tree.putRun(first, STRIPE / CHUNK, 'hole')
      continue
    }
    if (kind === 0) randomFillSync(stripe)
    else fillText(stripe, at)
    await file.write(stripe, 0, STRIPE, at)
    const stored = await draft.storeChunks(stripe, spans, never)
    await tree.putChunks(
      Float64Array.from({ length: STRIPE / CHUNK }, (_, i) => first + i),
      stored,
    )
  }
  await file.close()
  const { root } = await tree.finish()
  await draft.commit(contentsOf(geometry, root))
  await job.finish()
}

/** Lines such as logs and tables have: words, numbers, repetition. */
function fillText(into: Buffer, seed: number): void {
  let at = 0
  for (let line = 0; at < into.length; line++) {
    const id = createHash('md5')
      .update(`${seed} ${line >> 2}`)
      .digest('hex')
    const words = `2026-11-20T02:${line % 60}:11 web${line % 7} nginx[${line * 7}]: GET /api/${id}/items?page=${line % 91} 200 ${id.slice(3, 9)} ms\n`
    at += into.write(words, at, 'latin1')
  }
}

async function restoreOnce(out: string, format: 'qcow2' | 'raw'): Promise<void> {
  await using store = await Store.open(folder)
  const [point] = await store.points.list()
  if (point === undefined) throw new Error('the store has no point')
  const images = new LocalImages({ output: process.stdout, openExport: () => Promise.reject(new Error('none')) })
  const job = new RestoreJob({ store, images, progress: SILENT_PROGRESS, clock: systemClock })
  await job.run(planRestore({ point, destination: { kind: 'directory', path: out, format }, onDamage: 'stop' }), never)
}

/** Wall time is measured here, the rest by the kernel. */
async function timed(command: readonly string[]): Promise<Run> {
  const start = performance.now()
  const { stderr } = await run('/usr/bin/time', ['-f', '%U %S %M', ...command])
  const wallMs = performance.now() - start
  const [user = 0, system = 0, peakKib = 0] = stderr.trim().split('\n').at(-1)?.split(' ').map(Number) ?? []
  return { wallMs, cpuMs: (user + system) * 1000, peakMib: peakKib / 1024 }
}

function medianOf(runs: readonly Run[]): Run {
  const middle = (pick: (one: Run) => number) =>
    Math.round(runs.map(pick).toSorted((a, b) => a - b)[Math.floor(runs.length / 2)] ?? NaN)
  return { wallMs: middle(one => one.wallMs), cpuMs: middle(one => one.cpuMs), peakMib: middle(one => one.peakMib) }
}
