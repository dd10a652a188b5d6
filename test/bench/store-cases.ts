import { rm } from 'node:fs/promises'
import { join } from 'node:path'

import { makeDisk, MIB } from './data.js'
import { ServedFile } from './served-file.js'
import {
  type Bench,
  type BenchCase,
  bytesOf,
  type CaseResult,
  type Contestant,
  emptyFolder,
  freshStore,
  interleave,
  ours,
  storeFigures,
} from './suite.js'

const CHUNK_SIZES = [64, 128, 256, 512, 1024] as const

export const storeCases: readonly BenchCase[] = [
  { name: 'layout', about: 'chunks as LevelDB values against packs (DESIGN.md §3)', run: layout },
  { name: 'chunks', about: 'chunk sizes of 64 KiB to 1 MiB', run: chunkSizes },
  { name: 'safety', about: 'the price of comparing new records, of sums and of syncs', run: safety },
]

async function layout(bench: Bench): Promise<CaseResult[]> {
  const folder = join(bench.folder, 'layout')
  const contestant = (kind: string): Contestant => ({
    name: kind === 'level' ? 'LevelDB holds the bytes' : 'packs hold the bytes, LevelDB their places',
    command: ours('layout', folder, kind, String(bench.size / MIB)),
    prepare: () => emptyFolder(folder),
    inspect: async () => ({ storedBytes: await bytesOf(folder) }),
  })
  const rows = await interleave(bench, [contestant('level'), contestant('packs')])
  await rm(folder, { recursive: true, force: true })
  const [level = '', packs = ''] = rows.map(({ name }) => name)
  return [
    {
      title: 'LevelDB values against packs, incompressible chunks of 64 KiB, both with naming them',
      rows,
      ratios: [
        { what: 'wall, packs / LevelDB values', of: packs, against: level, by: 'wall' },
        { what: 'CPU, packs / LevelDB values', of: packs, against: level, by: 'cpu' },
      ],
    },
  ]
}

async function chunkSizes(bench: Bench): Promise<CaseResult[]> {
  return await withExport(bench, async socket => {
    const store = join(bench.folder, 'store')
    const rows = await interleave(
      bench,
      CHUNK_SIZES.flatMap((kib): Contestant[] => [
        {
          name: `${kib} KiB, first full`,
          command: ours('pull', store, socket, 'vda'),
          prepare: () => freshStore(store, kib * 1024),
          inspect: () => storeFigures(store),
        },
        {
          name: `${kib} KiB, known data`,
          command: ours('pull', store, socket, 'vda'),
          inspect: () => storeFigures(store),
        },
      ]),
    )
    await rm(store, { recursive: true, force: true })
    return [{ title: 'Chunk sizes', rows, ratios: [] }]
  })
}

/** What each measure costs is the difference to the run without it. */
async function safety(bench: Bench): Promise<CaseResult[]> {
  return await withExport(bench, async socket => {
    const store = join(bench.folder, 'store')
    const contestant = (name: string, without: string): Contestant => ({
      name,
      command: ours('pull', store, socket, 'vda'),
      env: { BENCH_WITHOUT: without },
      prepare: () => freshStore(store),
    })
    const rows = await interleave(bench, [
      contestant('everything on', ''),
      contestant('new records not compared', 'verify'),
      contestant('sums not compared', 'sums'),
      contestant('no sync', 'sync'),
      contestant('none of these', 'verify,sums,sync'),
    ])
    const again = (name: string, without: string): Contestant => ({
      name,
      command: ours('again', store, socket, 'vda'),
      env: { BENCH_WITHOUT: without },
    })
    const [full, alone] = ['nothing changed, canaries read', 'nothing changed, none']
    const sampled = await interleave(bench, [again(full, ''), again(alone, 'canaries')])
    await rm(store, { recursive: true, force: true })
    const ratio = (of: string) => ({
      what: `CPU, ${of} / everything on`,
      of,
      against: 'everything on',
      by: 'cpu' as const,
    })
    return [
      {
        title: 'The price of safety (in memory: a sync costs what the disk takes)',
        rows,
        ratios: rows.slice(1).map(({ name }) => ratio(name)),
      },
      {
        title: 'The price of sampling the bitmap',
        rows: sampled,
        ratios: [
          { what: 'CPU, none / canaries read', of: alone, against: full, by: 'cpu' },
          { what: 'canaries read, more than none', of: full, against: alone, by: 'wall', difference: true },
        ],
      },
    ]
  })
}

async function withExport(bench: Bench, work: (socket: string) => Promise<CaseResult[]>): Promise<CaseResult[]> {
  const raw = join(bench.folder, 'disk.raw')
  await makeDisk(raw, bench.size, 1)
  try {
    const served = new ServedFile(raw, bench.folder)
    return await served.during(() => work(served.socket))
  } finally {
    await rm(raw, { force: true })
  }
}
