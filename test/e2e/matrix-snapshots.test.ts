import { rename } from 'node:fs/promises'

import t, { type Test } from 'tap'

import { Matrix } from '../harness/matrix.js'
import { requires } from '../harness/requires.js'
import { seededRandom } from '../harness/seeded-random.js'
import { pullByShadow } from '../harness/shadow-pull.js'
import { KIB, MIB } from '../lab/fill.js'
import type { LabDomain } from '../lab/lab-domain.js'
import { run } from '../lab/run-program.js'

t.setTimeout(300_000)
const CLUSTER = 64 * KIB
/** Small enough for the canaries to read every clean chunk: what a bitmap hides is W_BITMAP for certain. */
const SIZE = 8 * MIB
const STEPS = 24

const targets = ['vda', 'vdb'] as const

/** The shadows go back in time with the disks; the lab keeps them by snapshot. */
class TimeMachine {
  readonly #matrix: Matrix
  readonly #domain: LabDomain
  readonly names: string[] = []
  #made = 0

  constructor(matrix: Matrix, domain: LabDomain) {
    this.#matrix = matrix
    this.#domain = domain
  }

  /** Refused by libvirt for a domain that is off and has checkpoints. */
  async take(): Promise<boolean> {
    const name = `s${++this.#made}`
    const { code } = await this.#matrix.lab.tryVirsh('snapshot-create-as', this.#domain.uuid, name)
    if (code !== 0) return false
    for (const target of targets) await this.#copy(this.#domain.disk(target).shadow, this.#kept(name, target))
    this.names.push(name)
    return true
  }

  /** What `revert` did to the disks is done to the shadows, where it did. */
  async revert(name: string, revert: () => Promise<boolean>): Promise<boolean> {
    if (!(await revert())) return false
    for (const target of targets) await this.#copy(this.#kept(name, target), this.#domain.disk(target).shadow)
    return true
  }

  async #copy(from: string, to: string): Promise<void> {
    await run('cp', ['--sparse=always', from, to])
  }

  #kept(name: string, target: string): string {
    return this.#matrix.lab.path(`${this.#domain.name}-${target}-${name}.raw`)
  }
}

async function setUp(matrix: Matrix, name: string): Promise<LabDomain> {
  const domain = await matrix.lab.domain({ name, disks: targets.map(target => ({ target, size: SIZE })) })
  for (const target of targets) await domain.write(target, 0, 4 * MIB, { seed: 1 })
  await domain.start()
  return domain
}

/** As somebody does who wants to revert: our checkpoints, and all others, go. */
async function dropCheckpoints({ lab }: Matrix, domain: LabDomain): Promise<void> {
  if ((await domain.state()) === 'shut off') await domain.start()
  for (const name of await domain.checkpoints()) {
    const { code } = await lab.tryVirsh('checkpoint-delete', domain.uuid, name)
    // Its bitmap is broken.
    if (code !== 0) await lab.virsh('checkpoint-delete', domain.uuid, name, '--metadata')
  }
}

const revertByLibvirt = (matrix: Matrix, domain: LabDomain, name: string) => async () =>
  (await matrix.lab.tryVirsh('snapshot-revert', domain.uuid, name)).code === 0

t.test(
  'with our checkpoints a revert is refused and costs a full read; without them it works, and so does the next pull',
  requires('lab'),
  async t => {
    await using matrix = await Matrix.start()
    const domain = await setUp(matrix, 'reverted')
    const time = new TimeMachine(matrix, domain)
    t.ok(await time.take())
    await domain.write('vda', 0, CLUSTER, { seed: 2 })
    await pullByShadow(matrix, domain)
    await domain.write('vda', MIB, CLUSTER, { seed: 3 })
    t.ok(await time.take())
    const over = await pullByShadow(matrix, domain)
    t.strictSame([over.difference, over.read], [undefined, [`vda incremental ${CLUSTER}`, 'vdb incremental 0']])

    t.notOk(await time.revert('s1', revertByLibvirt(matrix, domain, 's1')), 'QEMU refuses')
    t.equal(await domain.state(), 'shut off', 'and libvirt leaves it off')
    const refused = await pullByShadow(matrix, domain)
    t.equal(refused.difference, undefined)
    t.strictSame(refused.warned, ['W_CHAIN', 'W_CHAIN'])

    await dropCheckpoints(matrix, domain)
    t.ok(await time.revert('s1', revertByLibvirt(matrix, domain, 's1')))
    const back = await pullByShadow(matrix, domain)
    t.equal(back.difference, undefined, 'the first state')
    t.strictSame(back.warned, ['W_CHAIN', 'W_CHAIN'])
    await domain.write('vdb', MIB, CLUSTER, { seed: 4 })
    await matrix.lab.virsh('snapshot-delete', domain.uuid, 's2')
    const next = await pullByShadow(matrix, domain)
    t.strictSame([next.difference, next.warned], [undefined, []])
    t.strictSame(next.read, ['vda incremental 0', `vdb incremental ${CLUSTER}`])
  },
)

/** One random step; says what it was. */
async function step(
  scene: { matrix: Matrix; domain: LabDomain; time: TimeMachine },
  random: () => number,
): Promise<string> {
  const { matrix, domain, time } = scene
  const dice = random()
  const off = (await domain.state()) === 'shut off'
  const name = time.names[Math.floor(random() * time.names.length)]
  if (dice < 0.4) {
    const target = targets[Math.floor(random() * 2)]!
    const offset = Math.floor((random() * SIZE) / CLUSTER) * CLUSTER
    if (random() < 0.3) await domain.zero(target, offset, CLUSTER)
    else await domain.write(target, offset, CLUSTER, { seed: Math.floor(random() * 1e6) })
    return `write ${target} ${offset}`
  }
  if (dice < 0.6) return `snapshot: ${await time.take()}`
  if (dice < 0.7) {
    await (off ? domain.start() : domain.destroy())
    return off ? 'start' : 'stop'
  }
  if (name === undefined) return 'nothing'
  if (dice < 0.8) return `revert ${name}: ${await time.revert(name, revertByLibvirt(matrix, domain, name))}`
  if (dice < 0.9) {
    await dropCheckpoints(matrix, domain)
    return `revert ${name} without checkpoints: ${await time.revert(name, revertByLibvirt(matrix, domain, name))}`
  }
  if (!off) await domain.destroy()
  // Past libvirt, which goes on believing in its checkpoints.
  for (const target of targets) {
    for (const checkpoint of await domain.checkpoints()) {
      const path = domain.disk(target).path
      await run('qemu-img', ['bitmap', '--remove', '-f', 'qcow2', path, checkpoint], { check: false })
    }
  }
  const apply = async () => {
    for (const target of targets) {
      const { code } = await run('qemu-img', ['snapshot', '-a', name, domain.disk(target).path], { check: false })
      if (code !== 0) throw new Error(`snapshot ${name} of ${target} was not applied`)
    }
    return true
  }
  return `qemu-img snapshot -a ${name}: ${await time.revert(name, apply)}`
}

async function history(t: Test, matrix: Matrix, seed: number): Promise<void> {
  const random = seededRandom(seed)
  const domain = await setUp(matrix, `history${seed}`)
  const scene = { matrix, domain, time: new TimeMachine(matrix, domain) }
  const log: string[] = []
  for (let i = 0; i < STEPS; i++) {
    log.push(await step(scene, random))
    if (i % 2 === 0 && i < STEPS - 1) continue
    const { difference, read, warned } = await pullByShadow(matrix, domain)
    log.push(`pull: ${read.join(', ')} ${warned.join()}`)
    t.equal(difference, undefined, log.join('\n'))
    t.notOk(warned.includes('W_BITMAP'), log.join('\n'))
  }
  t.comment(log.join('\n'))
  if ((await domain.state()) !== 'shut off') await domain.destroy()
}

t.test('whatever is written, kept and reverted, no pull takes a bitmap of another time', requires('lab'), async t => {
  await using matrix = await Matrix.start()
  for (const seed of [1, 2]) await t.test(`seed ${seed}`, t => history(t, matrix, seed))
})

interface Change {
  readonly name: string
  readonly change: (path: string, shadow: string) => Promise<unknown>
  readonly read: RegExp
  readonly warned: readonly string[]
}

const img = (...args: string[]) => run('qemu-img', args)
const CUT = 7 * MIB

const OFF: readonly Change[] = [
  {
    name: 'committed',
    change: path => img('commit', '-q', '-f', 'qcow2', path),
    read: /^vda incremental 65536$/,
    warned: [],
  },
  {
    name: 'flattened',
    change: path => img('rebase', '-f', 'qcow2', '-b', '', path),
    read: /^vda full/,
    warned: ['W_DISK_CHANGED'],
  },
  {
    name: 'moved-base',
    change: async (path, shadow) => {
      await rename(`${shadow}.base`, `${shadow}.moved`)
      await img('rebase', '-u', '-f', 'qcow2', '-F', 'qcow2', '-b', `${shadow}.moved`, path)
    },
    read: /^vda incremental 65536$/,
    warned: [],
  },
  {
    name: 'other-base',
    change: async (path, shadow) => {
      await run('cp', [`${shadow}.base`, `${shadow}.other`])
      await run('qemu-io', ['-f', 'qcow2', '-c', `write -P 7 ${3 * MIB} 64k`, `${shadow}.other`])
      await img('rebase', '-u', '-f', 'qcow2', '-F', 'qcow2', '-b', `${shadow}.other`, path)
      await img('convert', '-f', 'qcow2', '-O', 'raw', path, shadow)
    },
    read: /^vda full/,
    warned: ['W_DISK_CHANGED'],
  },
  {
    name: 'replaced-base',
    change: async (path, shadow) => {
      await run('cp', [`${shadow}.base`, `${shadow}.other`])
      await run('qemu-io', ['-f', 'qcow2', '-c', `write -P 7 ${3 * MIB} 64k`, `${shadow}.other`])
      await rename(`${shadow}.other`, `${shadow}.base`)
      await img('convert', '-f', 'qcow2', '-O', 'raw', path, shadow)
    },
    read: /^vda full/,
    warned: ['W_DISK_CHANGED'],
  },
  {
    name: 'grown',
    change: async (path, shadow) => {
      await img('resize', '-q', '-f', 'qcow2', path, String(2 * SIZE))
      await run('truncate', ['--size', String(2 * SIZE), shadow])
    },
    read: /^vda incremental 65536$/,
    warned: [],
  },
  {
    name: 'shrunk-and-grown',
    change: async (path, shadow) => {
      await img('resize', '-q', '--shrink', '-f', 'qcow2', path, String(CUT))
      await img('resize', '-q', '-f', 'qcow2', path, String(SIZE))
      await run('truncate', ['--size', String(CUT), shadow])
      await run('truncate', ['--size', String(SIZE), shadow])
    },
    read: /^vda full/,
    warned: ['W_CHAIN'],
  },
]

t.test('what qemu-img does to the images of a domain that is off is never missed', requires('lab'), async t => {
  await using matrix = await Matrix.start()
  for (const { name, change, read, warned } of OFF) {
    await t.test(name, async t => {
      const content = [{ kind: 'write', offset: 0, length: SIZE, fill: { seed: 1 } }] as const
      const domain = await matrix.lab.domain({ name, disks: [{ target: 'vda', size: SIZE, backed: true, content }] })
      await matrix.puller.pull(domain)
      await domain.write('vda', MIB, CLUSTER, { seed: 2 })
      const { path, shadow } = domain.disk('vda')

      await change(path, shadow)

      const next = await pullByShadow(matrix, domain)
      t.equal(next.difference, undefined)
      t.match(next.read, [read])
      t.strictSame(next.warned, warned)
      const last = await pullByShadow(matrix, domain)
      t.strictSame([last.difference, last.read, last.warned], [undefined, ['vda incremental 0'], []])
    })
  }
})
