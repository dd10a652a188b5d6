import { rm } from 'node:fs/promises'
import { join } from 'node:path'

import { Lab } from '../lab/lab.js'
import { dropCheckpoints, exportXml, pullCommand, startDomain, virtnbdbackup } from './bench-domain.js'
import { chooseChanges, GIB, makeDisk } from './data.js'
import {
  type Bench,
  type BenchCase,
  bytesOf,
  type CaseResult,
  emptyFolder,
  freshStore,
  interleave,
  medianRow,
  type Ratio,
} from './suite.js'

const FRACTIONS = [0, 0.001, 0.01, 0.1] as const
const LAYOUTS = ['scattered', 'clustered'] as const
const SPARSE_SIZES = [GIB, 1024 * GIB, 16 * 1024 * GIB] as const

export const incrementalCases: readonly BenchCase[] = [
  {
    name: 'incremental',
    about: 'incrementals at 0 / 0.1 / 1 / 10 % scattered and clustered changes',
    run: incremental,
  },
  { name: 'unchanged', about: 'nothing changed, sparse disks of 1 GiB to 16 TiB', run: unchanged },
]

async function incremental(bench: Bench): Promise<CaseResult[]> {
  const raw = join(bench.folder, 'disk.raw')
  await makeDisk(raw, bench.size, 1)
  await using lab = await Lab.start()
  const domain = await startDomain(lab, 'ours', [{ target: 'vda', size: bench.size, raw }])
  // virtnbdbackup refuses a domain that has checkpoints of others: it gets a twin.
  const twin = await startDomain(lab, 'theirs', [{ target: 'vda', size: bench.size, raw }])
  await rm(raw)
  const [store, out] = [join(bench.folder, 'store'), join(bench.folder, 'out')]
  await freshStore(store)
  await emptyFolder(out)
  const once = { ...bench, rounds: 1 }
  const pull = { name: 'virtvault backup pull', ...pullCommand(lab, store, domain.name) }
  const peer = (level: string) => ({
    name: 'virtnbdbackup -z -l inc',
    command: virtnbdbackup(lab, twin.name, out, ['-z', '-l', level]),
  })
  await interleave(once, [pull, peer('full')])

  const results: CaseResult[] = []
  let seed = 0
  for (const layout of LAYOUTS) {
    for (const fraction of FRACTIONS) {
      if (fraction === 0 && layout === 'clustered') continue
      const title = fraction === 0 ? 'nothing changed' : `${fraction * 100} % changed, ${layout}`
      bench.say(title)
      const rows = await interleave(
        bench,
        [
          { ...pull, inspect: async () => ({ storedBytes: await bytesOf(join(store, 'packs')) }) },
          { ...peer('inc'), inspect: async () => ({ storedBytes: await bytesOf(out) }) },
        ],
        {
          before: async () => {
            const pattern = 1 + (++seed % 250)
            const places = chooseChanges(bench.size, fraction, layout)
            const writes = places.map(({ offset, length }) => `write -P ${pattern} ${offset} ${length}`)
            for (const one of [domain, twin]) await one.qemuIo('vda', ...writes, 'flush')
          },
        },
      )
      const ratio: Ratio = {
        what: 'pull / virtnbdbackup -z',
        of: pull.name,
        against: peer('inc').name,
        by: 'wall',
      }
      results.push({
        title: `Incremental: ${title}`,
        rows,
        ratios: [ratio, { ...ratio, what: `CPU, ${ratio.what}`, by: 'cpu' }],
      })
    }
  }
  for (const path of [store, out]) await rm(path, { recursive: true, force: true })
  return results
}

async function unchanged(bench: Bench): Promise<CaseResult[]> {
  await using lab = await Lab.start()
  const rows = []
  const ratios: Ratio[] = []
  for (const size of SPARSE_SIZES) {
    const label = size < 1024 * GIB ? `${size / GIB} GiB` : `${size / GIB / 1024} TiB`
    const domain = await startDomain(lab, `sparse${size / GIB}`, [{ target: 'vda', size }])
    await domain.qemuIo('vda', 'write -P 7 1M 64K', 'flush')
    const store = join(bench.folder, 'store')
    await freshStore(store)
    const pull = { name: `virtvault backup pull, ${label}`, ...pullCommand(lab, store, domain.name) }
    await interleave({ ...bench, rounds: 1 }, [pull])
    const xml = exportXml(lab, domain, join(lab.scratchFolder, 'alone.sock'))
    const alone = {
      name: `virsh backup-begin + domjobabort, ${label}`,
      command: ['virsh', '-q', '-c', lab.uri, `backup-begin ${domain.uuid} ${xml}; domjobabort ${domain.uuid}`],
    }
    rows.push(...(await interleave(bench, [alone, pull])))
    ratios.push({
      what: `more than begin + abort, ${label}`,
      of: pull.name,
      against: alone.name,
      by: 'wall',
      difference: true,
      reach: 0.5,
    })
    await dropCheckpoints(lab, domain)
    await domain.destroy()
    await rm(store, { recursive: true, force: true })
  }
  return [{ title: 'Nothing changed, sparse disks', rows: rows.map(medianRow), ratios }]
}
