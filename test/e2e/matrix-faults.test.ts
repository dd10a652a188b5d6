import { rm, writeFile } from 'node:fs/promises'

import t, { type Test } from 'tap'

import { Store } from '../../src/store/store.js'
import { codes, Matrix, readings } from '../harness/matrix.js'
import { LabPuller } from '../harness/pull.js'
import { requires } from '../harness/requires.js'
import { KIB, MIB } from '../lab/fill.js'
import type { LabDomain } from '../lab/lab-domain.js'
import { run } from '../lab/run-program.js'

t.setTimeout(600_000)
const SIZE = 16 * MIB
const CLUSTER = 64 * KIB

/** A running domain with two disks and one recovery point of them, each 2 MiB of data. */
async function setUp(matrix: Matrix, name: string): Promise<{ domain: LabDomain; checkpoint: string }> {
  const domain = await matrix.lab.domain({
    name,
    disks: [
      { target: 'vda', size: SIZE },
      { target: 'vdb', size: SIZE },
    ],
  })
  await domain.start()
  for (const { target } of domain.disks) await domain.write(target, 0, 2 * MIB, { seed: 1 })
  const { point } = await matrix.puller.pull(domain)
  for (const { target } of domain.disks) await domain.write(target, 0, CLUSTER, { seed: 2 })
  return { domain, checkpoint: point.checkpoint!.name }
}

const BOTH_FULL = [`vda full ${2 * MIB}`, `vdb full ${2 * MIB}`]
const BOTH_INCREMENTAL = [`vda incremental ${CLUSTER}`, `vdb incremental ${CLUSTER}`]

interface Fault {
  readonly title: string
  readonly provoke: (matrix: Matrix, domain: LabDomain, checkpoint: string) => Promise<unknown>
  readonly read: readonly string[]
  readonly warned: readonly string[]
}

const FAULTS: readonly Fault[] = [
  {
    title: 'a checkpoint deleted by hand makes the pull full',
    provoke: ({ lab }, { uuid }, checkpoint) => lab.virsh('checkpoint-delete', uuid, checkpoint),
    read: BOTH_FULL,
    warned: ['W_CHAIN', 'W_CHAIN'],
  },
  {
    title: 'a checkpoint whose metadata alone was deleted is made known again',
    provoke: ({ lab }, { uuid }, checkpoint) => lab.virsh('checkpoint-delete', uuid, checkpoint, '--metadata'),
    read: BOTH_INCREMENTAL,
    warned: [],
  },
  {
    title: 'a bitmap that was taken out of one image makes that disk full, and no other',
    provoke: async (_matrix, domain, checkpoint) => {
      await domain.destroy()
      await run('qemu-img', ['bitmap', '--remove', '-f', 'qcow2', domain.disk('vdb').path, checkpoint])
      await domain.start()
    },
    read: [`vda incremental ${CLUSTER}`, `vdb full ${2 * MIB}`],
    warned: ['W_CHAIN'],
  },
  {
    title: 'a bitmap that does not record any more is not relied on',
    provoke: async (_matrix, domain, checkpoint) => {
      await domain.destroy()
      await run('qemu-img', ['bitmap', '--disable', '-f', 'qcow2', domain.disk('vdb').path, checkpoint])
      await domain.start()
    },
    read: [`vda incremental ${CLUSTER}`, `vdb full ${2 * MIB}`],
    warned: ['W_CHAIN'],
  },
  {
    title: 'a killed QEMU makes the pull full, and the broken bitmaps go',
    provoke: async (_matrix, domain) => {
      await domain.kill9()
      await domain.start()
    },
    read: BOTH_FULL,
    warned: ['W_CHAIN', 'W_CHAIN'],
  },
  {
    title: 'a killed QEMU makes the pull full also while the domain stays off',
    provoke: (_matrix, domain) => domain.kill9(),
    read: BOTH_FULL,
    warned: ['W_CHAIN', 'W_CHAIN'],
  },
  {
    title: 'an undefined and redefined domain goes on incrementally',
    provoke: async ({ lab }, domain) => {
      const file = lab.path('domain.xml')
      await domain.destroy()
      await writeFile(file, await lab.virsh('dumpxml', '--inactive', domain.uuid))
      await lab.virsh('undefine', domain.uuid, '--checkpoints-metadata')
      await lab.virsh('define', file)
      await domain.start()
    },
    read: BOTH_INCREMENTAL,
    warned: [],
  },
  {
    title: 'a transient domain that stopped and started again goes on incrementally',
    provoke: async ({ lab }, domain) => {
      const file = lab.path('transient.xml')
      await writeFile(file, await lab.virsh('dumpxml', '--inactive', domain.uuid))
      await lab.virsh('undefine', domain.uuid)
      await domain.destroy()
      await lab.virsh('create', file)
    },
    read: BOTH_INCREMENTAL,
    warned: [],
  },
  {
    title: 'a renamed domain goes on incrementally after libvirtd restarted',
    provoke: async ({ lab }, domain) => {
      await domain.destroy()
      await lab.virsh('domrename', domain.uuid, 'renamed')
      await lab.restartDaemon({ signal: 'SIGTERM' })
      await domain.start()
    },
    read: BOTH_INCREMENTAL,
    warned: [],
  },
  {
    title: 'a saved and restored domain goes on incrementally',
    provoke: async ({ lab }, domain) => {
      await lab.virsh('managedsave', domain.uuid)
      await domain.start()
    },
    read: BOTH_INCREMENTAL,
    warned: [],
  },
  {
    title: 'a saved domain is pulled as after a power cut, and its saved memory stays',
    provoke: ({ lab }, domain) => lab.virsh('managedsave', domain.uuid),
    read: BOTH_INCREMENTAL,
    warned: [],
  },
  {
    title: 'a paused domain is pulled and stays paused',
    provoke: (_matrix, domain) => domain.suspend(),
    read: BOTH_INCREMENTAL,
    warned: [],
  },
  {
    title: 'a snapshot taken and merged back since the last point costs nothing',
    provoke: async ({ lab }, domain) => {
      await lab.virsh(
        'snapshot-create-as',
        domain.uuid,
        's',
        '--disk-only',
        '--no-metadata',
        '--diskspec',
        'vdb,snapshot=no',
      )
      const overlay = (await lab.virsh('domblklist', domain.uuid)).split(/\s+/)[1]!
      await lab.virsh('blockcommit', domain.uuid, 'vda', '--active', '--pivot', '--wait')
      await rm(overlay)
    },
    read: BOTH_INCREMENTAL,
    warned: [],
  },
  {
    title: 'foreign checkpoints are left alone',
    provoke: ({ lab }, domain) => lab.virsh('checkpoint-create-as', domain.uuid, 'foreign'),
    read: BOTH_INCREMENTAL,
    warned: [],
  },
]

t.test('what can happen to a checkpoint costs the smallest correct read', requires('lab'), async t => {
  await using matrix = await Matrix.start()
  for (const [n, fault] of FAULTS.entries()) await meet(t, matrix, { ...fault, name: `fault${n}` })
})

/** Provokes the fault, then pulls twice: right bytes, right reading, right warnings, and nothing left behind. */
async function meet(t: Test, matrix: Matrix, { title, name, provoke, read, warned }: Fault & { name: string }) {
  await t.test(title, async t => {
    const { domain, checkpoint } = await setUp(matrix, name)
    await provoke(matrix, domain, checkpoint)
    const [state, foreign] = [await domain.state(), (await domain.checkpoints()).filter(name => name === 'foreign')]

    const result = await matrix.pull(domain)

    t.equal(result.difference, undefined)
    t.strictSame(readings(result.point), read)
    t.strictSame(codes(result), warned)
    t.equal(await domain.state(), state, 'left as found')

    for (const { target } of domain.disks) await domain.write(target, MIB, CLUSTER, { seed: 3 })
    const next = await matrix.pull(domain)
    t.equal(next.difference, undefined)
    t.strictSame([readings(next.point), codes(next)], [BOTH_INCREMENTAL, []], 'the next is incremental again')
    const kept = [result, next].map(({ point }) => point.checkpoint!.name)
    const left = await domain.leftovers()
    t.strictSame([...left.checkpoints].sort(), [...foreign, ...kept].sort())
    const bitmaps = [...foreign, ...kept].flatMap(name => [`vda:${name}`, `vdb:${name}`])
    t.strictSame([...new Set(left.bitmaps)].sort(), bitmaps.sort())
    t.strictSame([left.jobs, left.files, left.exports], [[], [], []])
    if ((await domain.state()) !== 'shut off') await domain.destroy()
  })
}

t.test('an image restored from an older copy makes that disk full, not wrong', requires('lab'), async t => {
  await using matrix = await Matrix.start()
  const { lab } = matrix
  const { domain } = await setUp(matrix, 'rollback')
  const { path, shadow } = domain.disk('vdb')
  await domain.destroy()
  await run('cp', [path, lab.path('old.qcow2')])
  await run('cp', ['--sparse=always', shadow, lab.path('old.raw')])
  await domain.start()
  await domain.write('vdb', 0, MIB, { seed: 4 })
  await matrix.pull(domain)
  await domain.destroy()
  // Into the same file: nothing but the bitmap tells.
  await run('cp', ['--no-preserve=all', lab.path('old.qcow2'), path])
  await run('cp', ['--sparse=always', lab.path('old.raw'), shadow])
  await domain.start()

  const rolledBack = await matrix.pull(domain)

  t.equal(rolledBack.difference, undefined)
  t.strictSame(readings(rolledBack.point), ['vda incremental 0', `vdb full ${2 * MIB}`])
  t.match(codes(rolledBack), ['W_CHAIN'])
})

t.test('two stores back up one domain, each from its own point', requires('lab'), async t => {
  await using matrix = await Matrix.start()
  const { lab } = matrix
  const { domain } = await setUp(matrix, 'shared')
  await Store.init(lab.path('second'))
  await using second = await Store.open(lab.path('second'))
  await using other = await LabPuller.open(lab, second)
  const first = await other.pull(domain)
  t.strictSame(readings(first.point), BOTH_FULL)
  await domain.write('vda', 4 * MIB, CLUSTER, { seed: 3 })

  const mine = await matrix.pull(domain)
  t.strictSame(readings(mine.point), [`vda incremental ${2 * CLUSTER}`, `vdb incremental ${CLUSTER}`])
  const theirs = await other.pull(domain)
  t.strictSame(readings(theirs.point), [`vda incremental ${CLUSTER}`, 'vdb incremental 0'])
  const again = await matrix.pull(domain)
  t.strictSame(readings(again.point), ['vda incremental 0', 'vdb incremental 0'])
  t.equal(mine.difference ?? again.difference, undefined)
  const kept = [mine, again, first, theirs].map(({ point }) => point.checkpoint!.name)
  t.strictSame((await domain.checkpoints()).sort(), kept.sort())
})

t.test('bitmaps of ours that libvirt does not know are removed, running and off', requires('lab'), async t => {
  await using matrix = await Matrix.start()
  const { domain, checkpoint } = await setUp(matrix, 'orphans')
  const orphan = checkpoint.replace(/[0-9a-f]{4}$/, 'dead')
  for (const state of ['running', 'off']) {
    await domain.destroy()
    for (const name of [orphan, 'somebody-elses']) {
      const path = domain.disk('vda').path
      await run('qemu-img', ['bitmap', '--add', '-f', 'qcow2', path, name], { check: false })
    }
    if (state === 'running') await domain.start()

    const result = await matrix.pull(domain)

    t.equal(result.difference, undefined)
    t.strictSame(codes(result), ['W_RECOVERED'], state)
    const { bitmaps } = await domain.leftovers()
    t.notOk(bitmaps.includes(`vda:${orphan}`))
    t.ok(bitmaps.includes('vda:somebody-elses'))
  }
})

t.test('two hundred old checkpoints are deleted by one pull', requires('lab'), async t => {
  await using matrix = await Matrix.start()
  const { domain, checkpoint } = await setUp(matrix, 'many')
  const names = Array.from({ length: 200 }, (_, i) => `${checkpoint.slice(0, -4)}${String(i).padStart(4, '0')}`)
  await matrix.lab.virshScript(names.map(name => `checkpoint-create-as ${domain.uuid} ${name}`))
  const from = performance.now()

  const result = await matrix.pull(domain)

  t.comment(`pull and deletion of 200 checkpoints: ${Math.round(performance.now() - from)} ms`)
  t.equal(result.difference, undefined)
  t.strictSame([readings(result.point), codes(result)], [BOTH_INCREMENTAL, []])
  t.strictSame((await domain.checkpoints()).sort(), [checkpoint, result.point.checkpoint!.name].sort())
})
