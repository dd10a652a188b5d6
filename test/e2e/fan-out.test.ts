import { mkdirSync, writeFileSync } from 'node:fs'
import { open } from 'node:fs/promises'

import t from 'tap'

import { PullJob, type TargetOutcome } from '../../src/jobs/pull-job.js'
import type { PullPorts } from '../../src/jobs/pull-ports.js'
import type { RecoveryPoint } from '../../src/model/recovery-point.js'
import { Store } from '../../src/store/store.js'
import { cliEnvironment } from '../demo/virtvault-cli.js'
import { readings } from '../harness/matrix.js'
import { diskBytes, LabPuller } from '../harness/pull.js'
import { requires } from '../harness/requires.js'
import { runCli } from '../harness/run-cli.js'
import { MIB } from '../lab/fill.js'
import { imageDifference } from '../lab/images.js'
import type { LabDomain } from '../lab/lab-domain.js'
import { Lab } from '../lab/lab.js'
import { run } from '../lab/run-program.js'

t.setTimeout(300_000)
const never = new AbortController().signal

/** Several stores, and pulls into all of them whose reads are counted. */
class FanOut implements AsyncDisposable {
  readonly lab: Lab
  readonly stores: readonly Store[]
  readonly #puller: LabPuller
  #bytes = 0
  #sessions = 0

  private constructor(lab: Lab, stores: readonly Store[], puller: LabPuller) {
    this.lab = lab
    this.stores = stores
    this.#puller = puller
  }

  static async start(places: (lab: Lab) => Promise<readonly string[]>): Promise<FanOut> {
    const lab = await Lab.start()
    const stores: Store[] = []
    for (const path of await places(lab)) {
      await Store.init(path)
      stores.push(await Store.open(path))
    }
    return new FanOut(lab, stores, await LabPuller.open(lab, stores[0]!))
  }

  /** Into the stores of these numbers; what was read over NBD, canaries too, and in how many sessions. */
  async pull(domain: LabDomain, ...numbers: readonly number[]) {
    this.#bytes = 0
    this.#sessions = 0
    const targets = numbers.map(i => ({ name: String(i), store: this.stores[i]! }))
    const plain = this.#puller.ports({ targets })
    const ports: PullPorts = {
      ...plain,
      openExport: async (address, disk, signal) => {
        const source = await plain.openExport(address, disk, signal)
        this.#sessions++
        const read = source.read.bind(source)
        source.read = (pieces, buffer, until) => {
          for (let i = 1; i < pieces.length; i += 3) this.#bytes += pieces[i]!
          return read(pieces, buffer, until)
        }
        return source
      },
    }
    const request = {
      domain: { uuid: domain.uuid, name: domain.name },
      wish: { mode: 'auto', only: [], except: [] },
      freeze: { mode: 'off', mountpoints: [], timeoutSeconds: 5 },
      scratchLimits: { minFreeBytes: 0, maxUsedBytes: undefined, intervalMs: 500 },
      tags: [],
    } as const
    const held = await domain.referenceImage('vda', `held-${Math.random()}`)
    const outcomes = await new PullJob(ports).run(request, never)
    return { outcomes, held, bytes: this.#bytes, reads: this.#sessions }
  }

  /** How the disk of a point differs from an image; undefined where it does not. */
  async difference(outcome: TargetOutcome | undefined, reference: string): Promise<string | undefined> {
    const { target } = outcome!
    const { point } = made(outcome)
    const disk = point.disks[0]!
    const path = this.lab.path(`${point.id}.raw`)
    const file = await open(path, 'w')
    await file.truncate(disk.size)
    for await (const [offset, bytes] of diskBytes(target.store, disk)) await file.write(bytes, 0, bytes.length, offset)
    await file.close()
    return await imageDifference({ path, format: 'raw' }, { path: reference, format: 'raw' })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#puller[Symbol.asyncDispose]()
    for (const store of this.stores) await store[Symbol.asyncDispose]()
    await this.lab[Symbol.asyncDispose]()
  }
}

function made(outcome: TargetOutcome | undefined): { readonly point: RecoveryPoint } {
  if (outcome?.kind !== 'made') throw outcome?.kind === 'failed' ? outcome.error : new Error('skipped')
  return outcome
}

const twoFolders = (lab: Lab) => Promise.resolve([lab.path('nas'), lab.path('offsite')])

t.test('two targets share one read, night after night, and each can be restored', requires('lab'), async t => {
  await using fan = await FanOut.start(twoFolders)
  const domain = await fan.lab.domain({ name: 'web01', disks: [{ target: 'vda', size: 256 * MIB }] })
  await domain.start()
  await domain.write('vda', 0, 24 * MIB, { seed: 1 })

  const full = await fan.pull(domain, 0, 1)
  await domain.write('vda', 100 * MIB, 3 * MIB, { seed: 2 })
  await domain.discard('vda', 4 * MIB, 2 * MIB)
  const next = await fan.pull(domain, 0, 1)
  await domain.destroy()
  const off = await fan.pull(domain, 0, 1)

  const canaries = (256 + 1) * 64 * 1024
  t.equal(full.bytes, 24 * MIB, 'each byte was read over NBD once')
  t.ok(next.bytes >= 3 * MIB && next.bytes <= 3 * MIB + canaries, 'so was what changed, and the canaries')
  t.strictSame([full.reads, next.reads, off.reads], [1, 1, 1], 'one session each')
  for (const { outcomes, held } of [full, next, off]) {
    for (const outcome of outcomes) t.equal(await fan.difference(outcome, held), undefined)
  }
  t.strictSame(
    next.outcomes.map(outcome => readings(made(outcome).point)),
    [[`vda incremental ${3 * MIB}`], [`vda incremental ${3 * MIB}`]],
  )
  t.strictSame(
    off.outcomes.map(outcome => made(outcome).point.mode),
    ['incremental', 'incremental'],
  )
  const { jobs, files, checkpoints } = await domain.leftovers()
  t.strictSame({ jobs, files, checkpoints: checkpoints.length }, { jobs: [], files: [], checkpoints: 4 })
})

t.test(
  'a target that missed a night reads its own part once, and shares again the night after',
  requires('lab'),
  async t => {
    await using fan = await FanOut.start(twoFolders)
    const domain = await fan.lab.domain({ name: 'db01', disks: [{ target: 'vda', size: 256 * MIB }] })
    await domain.start()
    await domain.write('vda', 0, 8 * MIB, { seed: 1 })
    await fan.pull(domain, 0, 1)
    await domain.write('vda', 20 * MIB, 2 * MIB, { seed: 2 })
    const alone = await fan.pull(domain, 0)
    await domain.write('vda', 40 * MIB, MIB, { seed: 3 })

    const apart = await fan.pull(domain, 0, 1)
    await domain.write('vda', 60 * MIB, MIB, { seed: 4 })
    const together = await fan.pull(domain, 0, 1)

    t.equal(alone.reads, 1)
    t.equal(apart.reads, 2)
    t.strictSame(
      apart.outcomes.map(outcome => readings(made(outcome).point)),
      [[`vda incremental ${MIB}`], [`vda incremental ${3 * MIB}`]],
    )
    t.equal(together.reads, 1)
    for (const { outcomes, held } of [apart, together]) {
      for (const outcome of outcomes) t.equal(await fan.difference(outcome, held), undefined)
    }
  },
)

t.test('a new target joins the read of the old one', requires('lab'), async t => {
  await using fan = await FanOut.start(twoFolders)
  const domain = await fan.lab.domain({ name: 'new01', disks: [{ target: 'vda', size: 256 * MIB }] })
  await domain.start()
  await domain.write('vda', 0, 8 * MIB, { seed: 1 })
  await fan.pull(domain, 1)
  await domain.write('vda', 20 * MIB, 2 * MIB, { seed: 2 })

  const joined = await fan.pull(domain, 0, 1)

  t.equal(joined.reads, 1)
  t.strictSame(
    joined.outcomes.map(outcome => readings(made(outcome).point)),
    [[`vda full ${10 * MIB}`], [`vda incremental ${2 * MIB}`]],
  )
  for (const outcome of joined.outcomes) t.equal(await fan.difference(outcome, joined.held), undefined)
})

t.test('a full target fails alone: the other is good, and the command says partial', requires('lab'), async t => {
  await using fan = await FanOut.start(async lab => {
    mkdirSync(lab.path('tiny'))
    await run('mount', ['-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', lab.path('tiny')])
    return [lab.path('nas'), `${lab.path('tiny')}/store`]
  })
  t.teardown(() => run('umount', ['--lazy', fan.lab.path('tiny')]))
  const domain = await fan.lab.domain({ name: 'db02', disks: [{ target: 'vda', size: 256 * MIB }] })
  await domain.start()
  await domain.write('vda', 0, 16 * MIB, { seed: 1 })
  const config = fan.lab.path('config.yml')
  writeFileSync(
    config,
    `uri: ${fan.lab.uri}\ntargets: { nas: { path: ${fan.lab.path('nas')} }, tiny: { path: ${fan.lab.path('tiny')}/store } }\n` +
      `default: { quiesce: false }\ngroups: { prod: { targets: [tiny, nas], hosts: [db02] } }\n`,
    { mode: 0o600 },
  )
  const env = { ...process.env, ...cliEnvironment(fan.lab), VIRTVAULT_CONFIG: config }

  const pulled = await fan.pull(domain, 1, 0)
  const told = await runCli(['backup', 'pull', '-g', 'prod', '--json'], env)
  const history = await runCli(['job', 'history', '--json'], env)

  t.match(pulled.outcomes, [{ kind: 'failed', error: { code: 'E_NO_SPACE' } }, { kind: 'made' }])
  t.equal(await fan.difference(pulled.outcomes[1], pulled.held), undefined)
  t.equal(told.code, 3)
  t.match(JSON.parse(told.stdout), {
    status: 'partial',
    targets: ['tiny', 'nas'],
    totals: { domains: 1, points: 1, failed: 1 },
    results: [
      { target: 'tiny', status: 'failed', error: { code: 'E_NO_SPACE' } },
      { target: 'nas', status: 'success', mode: 'incremental' },
    ],
  })
  t.match(JSON.parse(history.stdout), {
    entries: [
      { target: 'tiny', status: 'failed', error: { code: 'E_NO_SPACE' } },
      { target: 'nas', status: 'success' },
    ],
  })
  const { jobs, files, checkpoints } = await domain.leftovers()
  t.strictSame({ jobs, files }, { jobs: [], files: [] })
  t.strictSame(
    checkpoints.filter(name => name.includes(fan.stores[1]!.id.slice(0, 8))),
    [],
    'the one that failed leaves no checkpoint',
  )
})
