import { rm } from 'node:fs/promises'
import { join } from 'node:path'

import { Lab } from '../lab/lab.js'
import type { LabDomain } from '../lab/lab-domain.js'
import { dropCheckpoints, pullCommand, startDomain } from './bench-domain.js'
import { makeDisk } from './data.js'
import { type Bench, type BenchCase, type CaseResult, freshStore, interleave, storeFigures } from './suite.js'

const DOMAINS = 10
const DISKS = 4

export const domainCases: readonly BenchCase[] = [
  { name: 'domains', about: '10 domains at once', run: domains },
  { name: 'memory', about: 'four disks at once, for the peak memory', run: memory },
]

async function domains(bench: Bench): Promise<CaseResult[]> {
  const size = Math.floor(bench.size / DOMAINS / 2 ** 20) * 2 ** 20
  const raw = join(bench.folder, 'disk.raw')
  await using lab = await Lab.start()
  const all: LabDomain[] = []
  for (let i = 0; i < DOMAINS; i++) {
    await makeDisk(raw, size, i + 1)
    all.push(await startDomain(lab, `bench${i}`, [{ target: 'vda', size, raw }]))
  }
  await rm(raw)
  const store = join(bench.folder, 'store')
  const contestant = (parallel: number) => ({
    name: `virtvault backup pull --all --parallel ${parallel}`,
    ...pullCommand(lab, store, '--all', '--parallel', String(parallel)),
    prepare: async () => {
      for (const domain of all) await dropCheckpoints(lab, domain)
      await freshStore(store)
    },
    inspect: () => storeFigures(store),
  })
  const rows = await interleave(bench, [1, 4, DOMAINS].map(contestant))
  await rm(store, { recursive: true, force: true })
  return [
    {
      title: `${DOMAINS} domains, a tenth of the size each`,
      rows,
      ratios: [
        {
          what: 'all at once / one after the other',
          of: contestant(DOMAINS).name,
          against: contestant(1).name,
          by: 'wall',
        },
      ],
    },
  ]
}

async function memory(bench: Bench): Promise<CaseResult[]> {
  const size = Math.floor(bench.size / DISKS / 2 ** 20) * 2 ** 20
  const targets = ['vda', 'vdb', 'vdc', 'vdd'].slice(0, DISKS)
  const disks = []
  for (const [i, target] of targets.entries()) {
    const raw = join(bench.folder, `${target}.raw`)
    await makeDisk(raw, size, i + 1)
    disks.push({ target, size, raw })
  }
  await using lab = await Lab.start()
  const domain = await startDomain(lab, 'bench', disks)
  for (const { raw } of disks) await rm(raw)
  const store = join(bench.folder, 'store')
  const rows = await interleave(bench, [
    {
      name: `virtvault backup pull, ${DISKS} disks`,
      ...pullCommand(lab, store, domain.name),
      prepare: async () => {
        await dropCheckpoints(lab, domain)
        await freshStore(store)
      },
    },
  ])
  await rm(store, { recursive: true, force: true })
  return [{ title: `${DISKS} disks at once (peak memory wanted: under 300 MiB)`, rows, ratios: [] }]
}
