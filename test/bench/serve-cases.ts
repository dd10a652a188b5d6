import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFile, rm } from 'node:fs/promises'
import { join } from 'node:path'

import { run } from '../lab/run-program.js'
import { makeDisk } from './data.js'
import { ServedFile } from './served-file.js'
import {
  type Bench,
  type BenchCase,
  type CaseResult,
  type Contestant,
  freshStore,
  interleave,
  measure,
  ours,
  PROGRAM,
} from './suite.js'

/** Clock ticks of /proc/PID/stat: fixed by the kernel's interface to programs. */
const TICKS_PER_SECOND = 100

export const serveCases: readonly BenchCase[] = [
  {
    name: 'serve',
    about: 'nbdcopy from our export, and from qemu-nbd on the same data in zstd-compressed qcow2',
    run: serve,
  },
]

interface Server extends AsyncDisposable {
  readonly pid: number
  readonly socket: string
}

async function serve(bench: Bench): Promise<CaseResult[]> {
  const at = (name: string) => join(bench.folder, name)
  const [raw, store, qcow2] = [at('disk.raw'), at('store'), at('disk.qcow2')]
  await makeDisk(raw, bench.size, 1)
  await freshStore(store)
  const nbd = new ServedFile(raw, bench.folder)
  await nbd.during(async () => {
    await measure({ name: 'set-up', command: ours('pull', store, nbd.socket, 'vda') })
  })
  await run('qemu-img', ['convert', '-c', '-O', 'qcow2', '-o', 'compression_type=zstd', raw, qcow2])
  await using mine = await started(at('ours'), [
    process.execPath,
    PROGRAM,
    'export',
    '@latest:vda',
    '-t',
    store,
    '--socket',
  ])
  await using peer = await started(at('peer'), ['qemu-nbd', '-r', '-t', '-e', '8', '-f', 'qcow2', qcow2, '-k'])
  const [copy, whole] = [at('copy.raw'), ['null:']]
  const contestant = (
    name: string,
    server: Server,
    to: readonly string[],
    words: readonly string[] = [],
  ): Contestant => {
    let before = 0
    return {
      name,
      command: ['nbdcopy', ...words, `nbd+unix:///?socket=${server.socket}`, ...to],
      prepare: async () => {
        await rm(copy, { force: true })
        before = await cpuSeconds(server.pid)
      },
      inspect: async () => {
        if (to[0] === copy) await run('cmp', [copy, raw])
        return { serverCpuSeconds: Math.round(100 * ((await cpuSeconds(server.pid)) - before)) / 100 }
      },
    }
  }
  const rows = await interleave(bench, [
    contestant('virtvault export to null:', mine, whole),
    contestant('qemu-nbd, zstd qcow2, to null:', peer, whole),
    contestant('virtvault export to a file', mine, [copy]),
    contestant('qemu-nbd, zstd qcow2, to a file', peer, [copy]),
    contestant('virtvault export, one connection', mine, whole, ['--connections=1']),
    contestant('qemu-nbd, zstd qcow2, one connection', peer, whole, ['--connections=1']),
  ])
  const ratio = (what: string, of: string, against: string) => ({
    what,
    of,
    against,
    by: 'wall' as const,
    reach: 1 / 0.6,
  })
  return [
    {
      title: 'Sequential read of an export',
      rows,
      ratios: [
        ratio('wall, export / qemu-nbd, to null:', 'virtvault export to null:', 'qemu-nbd, zstd qcow2, to null:'),
        ratio('wall, export / qemu-nbd, to a file', 'virtvault export to a file', 'qemu-nbd, zstd qcow2, to a file'),
        ratio(
          'wall, export / qemu-nbd, one connection',
          'virtvault export, one connection',
          'qemu-nbd, zstd qcow2, one connection',
        ),
      ],
    },
  ]
}

/** The last argument of `command` is the socket, at `socket`. */
async function started(socket: string, command: readonly string[]): Promise<Server> {
  const [program = '', ...args] = command
  const child = spawn(program, [...args, socket], { stdio: 'ignore' })
  const ended = once(child, 'exit')
  for (
    let tries = 0;
    (await run('nbdinfo', ['--size', `nbd+unix:///?socket=${socket}`], { check: false })).code !== 0;
  ) {
    if (child.exitCode !== null || ++tries > 300) throw new Error(`${command.join(' ')} does not serve`)
  }
  return {
    pid: child.pid ?? 0,
    socket,
    [Symbol.asyncDispose]: async () => {
      child.kill('SIGTERM')
      await ended
    },
  }
}

async function cpuSeconds(pid: number): Promise<number> {
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8')
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND
}
