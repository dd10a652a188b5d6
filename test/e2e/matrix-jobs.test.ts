import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { rm, writeFile } from 'node:fs/promises'
import { setTimeout as delay } from 'node:timers/promises'

import t, { type Test } from 'tap'

import { cliEnvironment } from '../demo/virtvault-cli.js'
import { Matrix } from '../harness/matrix.js'
import { requires } from '../harness/requires.js'
import { runCli } from '../harness/run-cli.js'
import { pullByShadow } from '../harness/shadow-pull.js'
import { KIB, MIB } from '../lab/fill.js'
import type { LabDomain } from '../lab/lab-domain.js'
import type { Lab } from '../lab/lab.js'

t.setTimeout(300_000)
const CLUSTER = 64 * KIB
/** libvirt itself would say so after 30 s. */
const AT_ONCE_MS = 20_000

/** A domain that runs, with 8 MiB of data and one point. */
async function setUp(matrix: Matrix, name: string): Promise<LabDomain> {
  const domain = await matrix.lab.domain({ name, disks: [{ target: 'vda', size: 64 * MIB }] })
  await domain.write('vda', 0, 8 * MIB, { seed: 1 })
  await domain.start()
  await matrix.puller.pull(domain)
  await domain.write('vda', MIB, CLUSTER, { seed: 2 })
  return domain
}

async function refusedAtOnce(t: Test, { puller }: Matrix, domain: LabDomain, why: RegExp): Promise<void> {
  const from = performance.now()
  await t.rejects(puller.pull(domain), { code: 'E_DOMAIN_BUSY', why })
  t.ok(performance.now() - from < AT_ONCE_MS, 'at once')
}

/** By `doctor`. */
async function isToldAtOnce(t: Test, { lab }: Matrix, domain: LabDomain, why: RegExp): Promise<void> {
  const env = { ...process.env, ...cliEnvironment(lab), VIRTVAULT_TARGET: lab.path('store') }
  const from = performance.now()
  const { code, stdout } = await runCli(['doctor', domain.name, '-c', lab.uri, '--json'], env)
  t.equal(code, 3)
  t.ok(performance.now() - from < AT_ONCE_MS, 'at once')
  const { findings } = JSON.parse(stdout) as { findings: { area: string; state: string; message: string }[] }
  t.match(
    findings.filter(({ area, state }) => area === 'domain' && state === 'mend'),
    [{ message: why }],
  )
}

/** Until libvirt says that a save or a dump runs. */
async function untilJob(lab: Lab, domain: LabDomain): Promise<void> {
  while (!/Save|Dump/.test((await lab.tryVirsh('domjobinfo', domain.uuid)).stdout)) await delay(20)
}

class Virsh {
  readonly child: ChildProcess
  readonly #ended: Promise<unknown[]>
  #said = ''

  constructor(lab: Lab, ...args: string[]) {
    this.child = spawn('virsh', ['-q', '-c', lab.uri, ...args], { stdio: ['ignore', 'pipe', 'pipe'] })
    this.child.stdout?.on('data', (text: Buffer) => (this.#said += text.toString()))
    this.child.stderr?.on('data', (text: Buffer) => (this.#said += text.toString()))
    this.#ended = once(this.child, 'close')
  }

  /** Exit code, and all it said. */
  async ended(): Promise<string> {
    const [code] = await this.#ended
    return `${String(code)} ${this.#said.trim()}`
  }
}

/** Makes what libvirt saves and dumps pass through a program of ours, which waits as long as there is `hold`. */
async function holdSaves({ lab }: Matrix): Promise<string> {
  const [hold, program] = [lab.path('hold'), lab.path('xz')]
  // Where the real one would compress: a FIFO as the target makes libvirtd itself wait, with all it knows of the domain.
  await writeFile(program, `#!/bin/sh\nwhile [ -e '${hold}' ]; do sleep 0.02; done\nexec cat\n`)
  await lab.inside(
    `chmod +x '${program}' && mount --bind '${program}' "$(readlink -f /usr/bin/xz)" &&
     printf '%s_image_format = "xz"\\n' save dump >>/etc/libvirt/qemu.conf`,
  )
  await lab.restartDaemon({ signal: 'SIGTERM' })
  return hold
}

t.test('while a domain is saved or dumped a pull is refused, and theirs is whole', requires('lab', 'xz'), async t => {
  await using matrix = await Matrix.start()
  const { lab } = matrix
  const hold = await holdSaves(matrix)
  for (const { name, verb, args, why, after } of [
    { name: 'save', verb: 'save', args: [lab.path('saved')], why: /a save is under way/, after: 'shut off' },
    { name: 'managed', verb: 'managedsave', args: [], why: /a save is under way/, after: 'shut off' },
    { name: 'live', verb: 'dump', args: [lab.path('live'), '--live'], why: /a dump is under way/, after: 'running' },
  ]) {
    await t.test(name, async t => {
      const domain = await setUp(matrix, name)
      await writeFile(hold, '')
      const theirs = new Virsh(lab, verb, domain.uuid, ...args)
      await untilJob(lab, domain)

      await refusedAtOnce(t, matrix, domain, why)
      await isToldAtOnce(t, matrix, domain, why)

      await untilJob(lab, domain)
      await rm(hold)
      t.match(await theirs.ended(), /^0/, 'theirs completes')
      t.equal(await domain.state(), after)
      const next = await pullByShadow(matrix, domain)
      t.strictSame([next.difference, next.read, next.warned], [undefined, [`vda incremental ${CLUSTER}`], []])
      if (after === 'shut off') {
        t.match(next.consistency, { kind: 'crash', reason: /saved/ })
        await (name === 'save' ? lab.virsh('restore', lab.path('saved')) : domain.start())
        t.match(await lab.virsh('domstate', domain.uuid, '--reason'), /running \(restored\)/)
      }
      await domain.destroy()
    })
  }
})

/** A snapshot on top, with 8 MiB in it. */
async function putOnTop({ lab }: Matrix, domain: LabDomain, name: string): Promise<string> {
  const file = lab.path(`${domain.name}.${name}`)
  const spec = ['--disk-only', '--no-metadata', '--diskspec', `vda,file=${file}`]
  await lab.virsh('snapshot-create-as', domain.uuid, name, ...spec)
  await domain.write('vda', 16 * MIB, 8 * MIB, { seed: 3 })
  return file
}

async function hasBlockJob(lab: Lab, domain: LabDomain): Promise<boolean> {
  return (await lab.virsh('blockjob', domain.uuid, 'vda', '--raw')) !== ''
}

interface BlockJob {
  readonly name: string
  readonly says: RegExp
  /** Starts it as slow as libvirt can. */
  readonly start: (matrix: Matrix, domain: LabDomain) => Promise<unknown>
  /** It waits for somebody to pivot at its end. */
  readonly pivots: boolean
  readonly after: { readonly mode: 'incremental' | 'full'; readonly warned: readonly string[] }
}

const SLOWLY = ['--bandwidth', '1', '--bytes']

const BLOCK_JOBS: readonly BlockJob[] = [
  {
    name: 'active-commit',
    says: /active block commit/,
    start: async (matrix, domain) => {
      await putOnTop(matrix, domain, 'top')
      await matrix.lab.virsh('blockcommit', domain.uuid, 'vda', '--active', ...SLOWLY)
    },
    pivots: true,
    after: { mode: 'incremental', warned: [] },
  },
  {
    name: 'commit',
    says: /block commit/,
    start: async (matrix, domain) => {
      const below = await putOnTop(matrix, domain, 'below')
      await putOnTop(matrix, domain, 'top')
      await matrix.lab.virsh('blockcommit', domain.uuid, 'vda', '--top', below, '--shallow', ...SLOWLY)
    },
    pivots: false,
    after: { mode: 'incremental', warned: [] },
  },
  {
    name: 'pull',
    says: /block pull/,
    start: async (matrix, domain) => {
      await putOnTop(matrix, domain, 'top')
      await matrix.lab.virsh('blockpull', domain.uuid, 'vda', ...SLOWLY)
    },
    pivots: false,
    // Nothing tells this from another image in its place.
    after: { mode: 'full', warned: ['W_DISK_CHANGED'] },
  },
  {
    name: 'copy',
    says: /block copy/,
    start: ({ lab }, domain) =>
      lab.virsh('blockcopy', domain.uuid, 'vda', lab.path('copy.qcow2'), '--transient-job', ...SLOWLY),
    pivots: true,
    after: { mode: 'full', warned: ['W_DISK_CHANGED'] },
  },
]

t.test('while a block job runs a pull is refused; afterwards it is right', requires('lab'), async t => {
  await using matrix = await Matrix.start()
  const { lab } = matrix
  for (const { name, says, start, pivots, after } of BLOCK_JOBS) {
    await t.test(name, async t => {
      const domain = await setUp(matrix, name)
      await start(matrix, domain)

      await refusedAtOnce(t, matrix, domain, says)
      await isToldAtOnce(t, matrix, domain, says)

      t.ok(await hasBlockJob(lab, domain), 'it goes on')
      await lab.virsh('blockjob', domain.uuid, 'vda', '0')
      if (pivots) {
        while (!/ready='yes'/.test(await lab.virsh('dumpxml', domain.uuid))) await delay(20)
        await refusedAtOnce(t, matrix, domain, says)
        await lab.virsh('blockjob', domain.uuid, 'vda', '--pivot')
      }
      while (await hasBlockJob(lab, domain)) await delay(20)
      const next = await pullByShadow(matrix, domain)
      t.equal(next.difference, undefined)
      t.match(next.read, [new RegExp(`^vda ${after.mode}`)])
      t.strictSame(next.warned, after.warned)
      await domain.write('vda', 40 * MIB, CLUSTER, { seed: 4 })
      const last = await pullByShadow(matrix, domain)
      t.strictSame([last.difference, last.read], [undefined, [`vda incremental ${CLUSTER}`]])
      await domain.destroy()
    })
  }
})

t.test('images of the last point, committed into one another below the top', requires('lab'), async t => {
  await using matrix = await Matrix.start()
  const domain = await setUp(matrix, 'below')
  const below = await putOnTop(matrix, domain, 'below')
  await putOnTop(matrix, domain, 'top')
  const before = await pullByShadow(matrix, domain)
  await domain.write('vda', 40 * MIB, CLUSTER, { seed: 5 })
  await matrix.lab.virsh('blockcommit', domain.uuid, 'vda', '--top', below, '--shallow', '--wait')

  const next = await pullByShadow(matrix, domain)

  t.equal(before.difference, undefined)
  t.equal(next.difference, undefined)
  t.match(next.read, [/^vda full/])
  t.strictSame(next.warned, ['W_DISK_CHANGED'])
})
