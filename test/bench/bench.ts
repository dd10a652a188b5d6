/**
 * `npm run bench -- [--only CASE,…] [--size 4GiB] [--rounds 5] [--folder /dev/shm]
 * [--json FILE] [--markdown FILE] [--list]`: measures us and our peers in one
 * run, in turns, in memory. Prints medians and ratios as Markdown.
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { statfs } from 'node:fs/promises'
import { join } from 'node:path'
import { parseArgs } from 'node:util'

import { parseSize } from '../../src/model/size.js'
import { GIB } from './data.js'
import { domainCases } from './domain-cases.js'
import { fullCases } from './full-cases.js'
import { incrementalCases } from './incremental-cases.js'
import { makeReport, toMarkdown } from './report.js'
import { restoreCases } from './restore-cases.js'
import { serveCases } from './serve-cases.js'
import { startCases } from './start-cases.js'
import { storeCases } from './store-cases.js'
import { bundleContestant, type CaseResult } from './suite.js'

const CASES = [
  ...startCases,
  ...fullCases,
  ...incrementalCases,
  ...restoreCases,
  ...serveCases,
  ...domainCases,
  ...storeCases,
]
/** Images, exports, stores and copies of one disk at one time, and a half. */
const ROOM_FACTOR = 4

const { values } = parseArgs({
  options: {
    only: { type: 'string' },
    size: { type: 'string', default: '4GiB' },
    rounds: { type: 'string', default: '5' },
    folder: { type: 'string', default: '/dev/shm' },
    json: { type: 'string' },
    markdown: { type: 'string' },
    list: { type: 'boolean', default: false },
  },
})

if (values.list) for (const { name, about } of CASES) console.log(`${name.padEnd(12)} ${about}`)
else await main()

async function main(): Promise<void> {
  const wanted = values.only?.split(',') ?? CASES.map(({ name }) => name)
  const unknown = wanted.filter(name => !CASES.some(one => one.name === name))
  if (unknown.length > 0) throw new Error(`there is no case ${unknown.join(', ')}: see --list`)
  const size = parseSize(values.size)
  const { bavail, bsize } = await statfs(values.folder)
  if (bavail * bsize < ROOM_FACTOR * size) {
    throw new Error(`${values.folder} has ${(bavail * bsize) / GIB} GiB, ${(ROOM_FACTOR * size) / GIB} are needed`)
  }
  const folder = mkdtempSync(join(values.folder, 'vvbench-'))
  // A run that is interrupted leaves nothing in memory either.
  process.on('exit', () => rmSync(folder, { recursive: true, force: true }))
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => process.exit(130))

  const bench = { folder, size, rounds: Number(values.rounds), say: (line: string) => console.error(line) }
  await bundleContestant(folder)
  const results: CaseResult[] = []
  for (const one of CASES.filter(({ name }) => wanted.includes(name))) {
    bench.say(`${one.name}: ${one.about}`)
    results.push(...(await one.run(bench)))
  }
  const report = makeReport(results, { date: new Date().toISOString().slice(0, 10), size, rounds: bench.rounds })
  console.log(toMarkdown(report))
  if (values.markdown !== undefined) writeFileSync(values.markdown, toMarkdown(report))
  if (values.json !== undefined) writeFileSync(values.json, JSON.stringify(report, undefined, 2))
}
