import t from 'tap'

import { BITMAP_ACKNOWLEDGED } from '../../src/jobs/pull-base.js'
import { Store } from '../../src/store/store.js'
import { LabPuller } from '../harness/pull.js'
import { requires } from '../harness/requires.js'
import { MIB } from '../lab/fill.js'
import type { LabDomain } from '../lab/lab-domain.js'
import { Lab } from '../lab/lab.js'

t.setTimeout(180_000)

/** Makes QEMU forget what was written since a checkpoint, as a bug in it would. */
async function clearBitmap(lab: Lab, domain: LabDomain, name: string): Promise<void> {
  const qmp = async (command: string, args: object): Promise<{ return: unknown }> =>
    JSON.parse(
      await lab.virsh('qemu-monitor-command', domain.uuid, JSON.stringify({ execute: command, arguments: args })),
    ) as { return: unknown }
  const nodes = (await qmp('query-named-block-nodes', { flat: true })).return as {
    'node-name': string
    'dirty-bitmaps'?: { name?: string }[]
  }[]
  const node = nodes.find(one => one['dirty-bitmaps']?.some(bitmap => bitmap.name === name))!
  await qmp('block-dirty-bitmap-clear', { node: node['node-name'], name })
}

t.test(
  'a dirty bitmap that lost writes is caught, and trusted again only when somebody says so',
  requires('lab'),
  async t => {
    await using lab = await Lab.start()
    const path = lab.path('store')
    await Store.init(path)
    await using store = await Store.open(path)
    await using puller = await LabPuller.open(lab, store)
    const domain = await lab.domain({ name: 'db01', disks: [{ target: 'vda', size: 64 * MIB }] })
    await domain.start()
    await domain.write('vda', 0, 16 * MIB, { seed: 1 })
    const first = await puller.pull(domain)
    await domain.write('vda', 8 * MIB, 4 * MIB, { seed: 2 })
    await clearBitmap(lab, domain, first.point.checkpoint!.name)

    const caught = await puller.pull(domain)
    const marked = await puller.pull(domain)
    await store.points.annotate(marked.point, { tags: [BITMAP_ACKNOWLEDGED] })
    const trusted = await puller.pull(domain)

    t.match(caught.warnings, [{ code: 'W_BITMAP', message: /vda: \d+ of 25[67] chunks/ }])
    t.equal(caught.point.mode, 'full')
    t.equal(caught.point.disks[0]!.statistics.newBytes, 4 * MIB, 'it has what the bitmap missed')
    t.equal(marked.point.mode, 'full')
    t.match(marked.warnings, [{ code: 'W_BITMAP', message: /says so/ }])
    t.equal(trusted.point.mode, 'incremental')
    t.strictSame(trusted.warnings, [])
  },
)

t.test('mode full tells how much the bitmap missed', requires('lab'), async t => {
  await using lab = await Lab.start()
  const path = lab.path('store')
  await Store.init(path)
  await using store = await Store.open(path)
  await using puller = await LabPuller.open(lab, store)
  const domain = await lab.domain({ name: 'db02', disks: [{ target: 'vda', size: 64 * MIB }] })
  await domain.start()
  await domain.write('vda', 0, 16 * MIB, { seed: 1 })
  const first = await puller.pull(domain)
  const audit = { wish: { mode: 'full', only: [], except: [] } } as const

  const clean = await puller.pull(domain, { request: audit })
  await domain.write('vda', MIB, MIB, { seed: 2 })
  await domain.discard('vda', 4 * MIB, MIB)
  await clearBitmap(lab, domain, clean.point.checkpoint!.name)
  const missed = await puller.pull(domain, { request: audit })

  t.equal(first.point.mode, 'full')
  t.strictSame(clean.warnings, [])
  t.match(missed.warnings, [{ code: 'W_BITMAP', message: /vda: 32 of 1024 chunks/ }])
})
