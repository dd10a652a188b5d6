import { rm } from 'node:fs/promises'
import { join } from 'node:path'

import { Lab } from '../lab/lab.js'
import { run } from '../lab/run-program.js'
import { beginExport, dropCheckpoints, endExport, pullCommand, startDomain, virtnbdbackup } from './bench-domain.js'
import { makeDisk } from './data.js'
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

export const fullCases: readonly BenchCase[] = [
  {
    name: 'full',
    about: 'first full and full of known data, from one libvirt export and as whole commands',
    run: full,
  },
  { name: 'files', about: 'restic and borg on the same image', run: files },
]

async function full(bench: Bench): Promise<CaseResult[]> {
  const raw = join(bench.folder, 'disk.raw')
  await makeDisk(raw, bench.size, 1)
  await using lab = await Lab.start()
  const domain = await startDomain(lab, 'bench', [{ target: 'vda', size: bench.size, raw }])
  await rm(raw)
  const at = (name: string) => join(bench.folder, name)
  const socket = join(lab.scratchFolder, 'bench.sock')
  const url = `nbd+unix:///vda?socket=${socket}`
  const [store, known, out] = [at('store'), at('known'), at('out')]
  const remove = async () => rm(out, { recursive: true, force: true })
  await freshStore(known)

  const engine = await interleave(
    bench,
    [
      { name: 'nbdcopy to null:', command: ['nbdcopy', url, 'null:'] },
      { name: 'nbdcopy to a file', command: ['nbdcopy', url, out], prepare: remove },
      { name: 'qemu-img convert to qcow2', command: ['qemu-img', 'convert', '-O', 'qcow2', url, out], prepare: remove },
      {
        name: 'virtvault, new store',
        command: ours('pull', store, socket, 'vda'),
        prepare: () => freshStore(store),
        inspect: () => storeFigures(store),
      },
      { name: 'virtvault, known data', command: ours('pull', known, socket, 'vda'), isPrimed: true },
    ],
    {
      before: async () => {
        await remove()
        await beginExport(lab, domain)
      },
      after: () => endExport(lab, domain),
    },
  )

  const peer = (name: string, words: readonly string[]): Contestant => ({
    name,
    command: virtnbdbackup(lab, domain.name, out, ['-l', 'copy', ...words]),
    prepare: () => emptyFolder(out),
    inspect: async () => ({ storedBytes: await bytesOf(out) }),
  })
  await rm(known, { recursive: true, force: true })
  await freshStore(known)
  const commands = await interleave(
    bench,
    [
      {
        name: 'virtvault backup pull',
        ...pullCommand(lab, store, domain.name),
        prepare: () => freshStore(store),
        inspect: () => storeFigures(store),
      },
      {
        name: 'virtvault backup pull --mode full, known data',
        ...pullCommand(lab, known, domain.name, '--mode', 'full'),
        isPrimed: true,
      },
      peer('virtnbdbackup', []),
      peer('virtnbdbackup -z', ['-z']),
    ],
    { before: () => dropCheckpoints(lab, domain) },
  )
  await Promise.all([store, known, out].map(path => rm(path, { recursive: true, force: true })))

  const [copy, command] = ['nbdcopy to null:', 'virtvault backup pull']
  return [
    {
      title: 'Full, from one libvirt export',
      rows: engine,
      ratios: [
        { what: 'first full / nbdcopy to null:', of: 'virtvault, new store', against: copy, by: 'wall', reach: 3 },
        { what: 'known data / nbdcopy to null:', of: 'virtvault, known data', against: copy, by: 'wall', reach: 1.5 },
        {
          what: 'first full / qemu-img convert',
          of: 'virtvault, new store',
          against: 'qemu-img convert to qcow2',
          by: 'wall',
        },
      ],
    },
    {
      title: 'Full, whole commands',
      rows: commands,
      ratios: [
        { what: 'wall, pull / virtnbdbackup -z', of: command, against: 'virtnbdbackup -z', by: 'wall', reach: 0.25 },
        { what: 'CPU, pull / virtnbdbackup -z', of: command, against: 'virtnbdbackup -z', by: 'cpu', reach: 0.5 },
        { what: 'wall, pull / virtnbdbackup', of: command, against: 'virtnbdbackup', by: 'wall' },
      ],
    },
  ]
}

/** restic and borg read the image as a file: no NBD, no libvirt, no consistency. */
async function files(bench: Bench): Promise<CaseResult[]> {
  const raw = join(bench.folder, 'disk.raw')
  await makeDisk(raw, bench.size, 1)
  const at = (name: string) => join(bench.folder, name)
  const [restic, borg, store] = [at('restic'), at('borg'), at('store')]
  const resticEnv = { RESTIC_PASSWORD: 'bench', RESTIC_REPOSITORY: restic, RESTIC_CACHE_DIR: at('restic-cache') }
  const borgEnv = { BORG_BASE_DIR: at('borg-home'), BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK: 'yes' }
  const served = new ServedFile(raw, bench.folder)
  return await served.during(async () => {
    const rows = await interleave(bench, [
      {
        name: 'virtvault, by qemu-nbd',
        command: ours('pull', store, served.socket, 'vda'),
        prepare: () => freshStore(store),
        inspect: () => storeFigures(store),
      },
      {
        name: 'restic backup',
        command: ['restic', 'backup', '--quiet', raw],
        env: resticEnv,
        prepare: async () => {
          await rm(restic, { recursive: true, force: true })
          await run('restic', ['init', '--quiet', '--repository-version', '2'], { env: resticEnv })
        },
        inspect: async () => ({ storedBytes: await bytesOf(restic) }),
      },
      {
        name: 'borg create, zstd,1',
        command: ['borg', 'create', '--sparse', '--compression', 'zstd,1', `${borg}::first`, raw],
        env: borgEnv,
        prepare: async () => {
          await rm(borg, { recursive: true, force: true })
          await run('borg', ['init', '-e', 'none', borg], { env: borgEnv })
        },
        inspect: async () => ({ storedBytes: await bytesOf(borg) }),
      },
    ])
    for (const path of [raw, restic, borg, store]) await rm(path, { recursive: true, force: true })
    return [
      {
        title: 'First full of one image, with the tools that back up files',
        rows,
        ratios: [
          { what: 'wall, virtvault / restic', of: 'virtvault, by qemu-nbd', against: 'restic backup', by: 'wall' },
          { what: 'wall, virtvault / borg', of: 'virtvault, by qemu-nbd', against: 'borg create, zstd,1', by: 'wall' },
          { what: 'CPU, virtvault / restic', of: 'virtvault, by qemu-nbd', against: 'restic backup', by: 'cpu' },
          { what: 'CPU, virtvault / borg', of: 'virtvault, by qemu-nbd', against: 'borg create, zstd,1', by: 'cpu' },
        ],
      },
    ]
  })
}
