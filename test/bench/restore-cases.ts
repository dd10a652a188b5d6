import { open, rm } from 'node:fs/promises'
import { join } from 'node:path'

import { Lab } from '../lab/lab.js'
import { startDomain, virtnbdbackup, virtnbdrestore } from './bench-domain.js'
import { changeBytes, chooseChanges, makeDisk } from './data.js'
import { ServedFile } from './served-file.js'
import {
  type Bench,
  type BenchCase,
  type CaseResult,
  type Contestant,
  emptyFolder,
  expectSame,
  freshStore,
  interleave,
  measure,
  ours,
} from './suite.js'

/** Points before the one that is restored; each has 1 % of the disk in packs of its own. */
const OLD_POINTS = 12

export const restoreCases: readonly BenchCase[] = [
  { name: 'restore', about: 'restore to qcow2 and raw, of a first full and of a fragmented point', run: restore },
]

async function restore(bench: Bench): Promise<CaseResult[]> {
  const at = (name: string) => join(bench.folder, name)
  const [raw, store, out, peer, fragmented] = [at('disk.raw'), at('store'), at('out'), at('peer'), at('fragmented')]
  await makeDisk(raw, bench.size, 1)
  await emptyFolder(peer)
  await using lab = await Lab.start()
  {
    const domain = await startDomain(lab, 'bench', [{ target: 'vda', size: bench.size, raw }])
    await measure({ name: 'set-up', command: virtnbdbackup(lab, domain.name, peer, ['-z', '-l', 'copy']) })
    await domain.destroy()
  }
  const nbd = new ServedFile(raw, bench.folder)
  await freshStore(store)
  await freshStore(fragmented)
  await nbd.during(async () => {
    await measure({ name: 'set-up', command: ours('pull', store, nbd.socket, 'vda') })
    await measure({ name: 'set-up', command: ours('pull', fragmented, nbd.socket, 'vda') })
  })
  const mine = (name: string, words: readonly string[], image: string): Contestant => ({
    name,
    command: ours('restore', ...words),
    prepare: () => emptyFolder(out),
    inspect: async () => {
      await expectSame(join(out, image), raw)
      return {}
    },
  })
  const peers = (name: string, command: readonly string[]): Contestant => ({
    name,
    command,
    prepare: () => emptyFolder(out),
  })
  const convert = (format: string) => ['qemu-img', 'convert', '-O', format, raw, join(out, 'image')]
  const rows = await interleave(bench, [
    mine('virtvault to qcow2', [store, out, 'qcow2'], 'vda.qcow2'),
    peers('qemu-img convert to qcow2', convert('qcow2')),
    peers('virtnbdrestore -z to qcow2', [...virtnbdrestore(lab), '-i', peer, '-o', out, '-f', at('r.sock'), '-n']),
    mine('virtvault to raw', [store, out, 'raw'], 'vda.raw'),
    peers('qemu-img convert to raw', convert('raw')),
  ])
  await rm(peer, { recursive: true, force: true })
  await rm(store, { recursive: true, force: true })

  for (let point = 0; point < OLD_POINTS; point++) {
    await changeFile(raw, bench.size, point)
    await nbd.during(async () => {
      await measure({ name: 'set-up', command: ours('pull', fragmented, nbd.socket, 'vda') })
    })
  }
  const old = await interleave(bench, [
    mine('virtvault to qcow2, fragmented point', [fragmented, out, 'qcow2'], 'vda.qcow2'),
    peers('qemu-img convert to qcow2', convert('qcow2')),
  ])
  for (const path of [raw, out, fragmented]) await rm(path, { recursive: true, force: true })

  const ratio = (what: string, of: string, against: string, reach?: number) => ({
    what,
    of,
    against,
    by: 'wall' as const,
    reach,
  })
  return [
    {
      title: 'Restore',
      rows,
      ratios: [
        ratio('to qcow2 / qemu-img convert', 'virtvault to qcow2', 'qemu-img convert to qcow2', 1),
        ratio('to qcow2 / virtnbdrestore', 'virtvault to qcow2', 'virtnbdrestore -z to qcow2', 1 / 3),
        ratio('to raw / qemu-img convert', 'virtvault to raw', 'qemu-img convert to raw'),
      ],
    },
    {
      title: `Restore of a point that ${OLD_POINTS} incrementals made`,
      rows: old,
      ratios: [
        ratio('to qcow2 / qemu-img convert', 'virtvault to qcow2, fragmented point', 'qemu-img convert to qcow2'),
      ],
    },
  ]
}

async function changeFile(path: string, size: number, seed: number): Promise<void> {
  const file = await open(path, 'r+')
  try {
    for (const [i, { offset, length }] of chooseChanges(size, 0.01, 'scattered').entries()) {
      await file.write(changeBytes(length, 1000 * (seed + 1) + i), 0, length, offset)
    }
  } finally {
    await file.close()
  }
}
