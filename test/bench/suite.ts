import { mkdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import { run } from '../lab/run-program.js'
import { makeBundle } from '../tools/make-bundle.js'
import { makeDisk, MIB } from './data.js'
import { ServedFile } from './served-file.js'

const MEASURE = fileURLToPath(new URL('../../../test/bench/measure.py', import.meta.url))
const CONTESTANT = fileURLToPath(new URL('./contestant-start.cjs', import.meta.url))
export const PROGRAM = fileURLToPath(new URL('../../src/cli/main.cjs', import.meta.url))

/** What one run of one command cost, as measure.py says. */
export interface Cost {
  readonly wall: number
  readonly user: number
  readonly system: number
  readonly peakMib: number
  readonly readBytes: number
  readonly writtenBytes: number
  readonly load: number
}

/** A command that takes part. Its first word is looked up in PATH. */
export interface Contestant {
  readonly name: string
  readonly command: readonly string[]
  readonly env?: NodeJS.ProcessEnv | undefined
  /** It runs once more, before all others: what it measures is there only then. */
  readonly isPrimed?: boolean | undefined
  /** Not measured; before each run. */
  readonly prepare?: (() => Promise<void>) | undefined
  /** Not measured; after each run. Figures that it gives are shown beside the costs; throws where the result is wrong. */
  readonly inspect?: (() => Promise<Readonly<Record<string, number>>>) | undefined
}

export interface Row extends Cost {
  readonly name: string
  readonly runs: readonly Cost[]
  readonly figures: Readonly<Record<string, number>>
}

/** `of` against `against`, two names of rows. */
export interface Ratio {
  readonly what: string
  readonly of: string
  readonly against: string
  readonly by: 'wall' | 'cpu'
  /** At most this is wanted. */
  readonly reach?: number | undefined
  /** A difference in seconds rather than a quotient. */
  readonly difference?: boolean | undefined
}

export interface CaseResult {
  readonly title: string
  readonly rows: readonly Row[]
  readonly ratios: readonly Ratio[]
}

export interface Bench {
  /** In memory; everything of this run is in here and goes with it. */
  readonly folder: string
  /** Of the virtual disk. */
  readonly size: number
  readonly rounds: number
  say(line: string): void
}

export interface BenchCase {
  readonly name: string
  readonly about: string
  run(bench: Bench): Promise<CaseResult[]>
}

/** Runs the contestants in turn, `rounds` times, so that a busy moment hits all alike. */
export async function interleave(
  bench: Bench,
  contestants: readonly Contestant[],
  around?: { readonly before?: () => Promise<void>; readonly after?: () => Promise<void> },
): Promise<Row[]> {
  const rows = contestants.map(({ name }) => ({ name, runs: [] as Cost[], figures: {} }))
  const first = contestants.some(({ isPrimed }) => isPrimed === true) ? -1 : 0
  for (let round = first; round < bench.rounds; round++) {
    await around?.before?.()
    for (const [at, contestant] of contestants.entries()) {
      if (round < 0 && contestant.isPrimed !== true) continue
      await contestant.prepare?.()
      await run('python3', [MEASURE, '--touch', String(Math.floor(bench.size / 2))])
      const cost = await measure(contestant)
      if (round < 0) continue
      rows[at]?.runs.push(cost)
      const figures = await contestant.inspect?.()
      const row = rows[at]
      if (row !== undefined && figures !== undefined) row.figures = figures
      bench.say(`  ${contestant.name}: ${cost.wall.toFixed(2)} s, CPU ${(cost.user + cost.system).toFixed(2)} s`)
    }
    await around?.after?.()
  }
  return rows.map(medianRow)
}

export async function measure(contestant: Contestant): Promise<Cost> {
  const env = { UV_THREADPOOL_SIZE: '12', ...contestant.env }
  const { code, stderr, stdout } = await run('python3', [MEASURE, ...contestant.command], { env, check: false })
  const line = stderr.split('\n').findLast(text => text.startsWith('measured '))
  if (code !== 0 || line === undefined) throw new Error(`${contestant.name}: exit code ${code}\n${stderr}${stdout}`)
  return JSON.parse(line.slice('measured '.length)) as Cost
}

export function medianRow(row: {
  readonly name: string
  readonly runs: readonly Cost[]
  readonly figures: Readonly<Record<string, number>>
}): Row {
  const middle = (of: (cost: Cost) => number) =>
    row.runs.map(of).toSorted((a, b) => a - b)[Math.floor(row.runs.length / 2)] ?? NaN
  return {
    ...row,
    wall: middle(cost => cost.wall),
    user: middle(cost => cost.user),
    system: middle(cost => cost.system),
    peakMib: Math.max(...row.runs.map(cost => cost.peakMib)),
    readBytes: middle(cost => cost.readBytes),
    writtenBytes: middle(cost => cost.writtenBytes),
    load: middle(cost => cost.load),
  }
}

/** The command line of contestant.ts, which bundleContestant() has made ready. */
export function ours(...words: readonly string[]): string[] {
  return [process.execPath, CONTESTANT, ...words]
}

/** Makes of contestant.ts what `npm run build` makes of the executable. */
export async function bundleContestant(folder: string): Promise<void> {
  const [entry, outfile] = ['contestant.js', 'contestant.bundle.cjs'].map(name => join(CONTESTANT, '..', name))
  await makeBundle({ entry: entry ?? '', outfile: outfile ?? '' })
  const [raw, store, out] = ['warm.raw', 'warm', 'warm-out'].map(name => join(folder, name))
  const { path } = await makeDisk(raw ?? '', 64 * MIB, 1)
  const served = new ServedFile(path, folder)
  const [node = '', ...words] = ours('all', store ?? '', served.socket, 'vda', out ?? '')
  await served.during(() => run(node, words, { env: { BENCH_COMPILE: '1' } }))
  for (const left of [raw, store, out]) await rm(left ?? '', { recursive: true, force: true })
}

export async function emptyFolder(path: string): Promise<void> {
  await rm(path, { recursive: true, force: true })
  await mkdir(path, { recursive: true })
}

/** Bytes that a folder's files take, by `du`. */
export async function bytesOf(path: string): Promise<number> {
  const { stdout } = await run('du', ['-s', '-B1', path])
  return Number(stdout.split('\t')[0])
}

/** A fresh store of ours. */
export async function freshStore(path: string, chunkSize = 65_536, level = 1): Promise<void> {
  await rm(path, { recursive: true, force: true })
  const [node = '', ...words] = ours('init', path, String(chunkSize), String(level))
  await run(node, words)
}

export async function storeFigures(path: string): Promise<Record<string, number>> {
  return { storedBytes: await bytesOf(join(path, 'packs')), indexBytes: await bytesOf(join(path, 'index')) }
}

/** Throws where two images differ. */
export async function expectSame(image: string, raw: string): Promise<void> {
  await run('qemu-img', ['compare', '-q', image, raw])
}
