import { setTimeout as delay } from 'node:timers/promises'

import t from 'tap'

import { guestDoes, PANIC_DEVICE } from '../lab/guest-ports.js'
import { Matrix, redefine } from '../harness/matrix.js'
import { requires } from '../harness/requires.js'
import { pullByShadow } from '../harness/shadow-pull.js'
import { KIB, MIB } from '../lab/fill.js'
import type { LabDomain } from '../lab/lab-domain.js'

t.setTimeout(300_000)
const CLUSTER = 64 * KIB
const PM = `<pm><suspend-to-mem enabled='yes'/></pm>`

/** A domain that runs, with a point and a cluster written since. */
async function setUp(matrix: Matrix, name: string, onCrash: string): Promise<LabDomain> {
  const disks = [{ target: 'vda', size: 64 * MIB }]
  const domain = await matrix.lab.domain({ name, disks, devices: PANIC_DEVICE, elements: PM })
  if (onCrash !== 'destroy') {
    await redefine(matrix.lab, domain, xml => xml.replace(/<on_crash>.*?</, `<on_crash>${onCrash}<`))
  }
  await domain.write('vda', 0, 2 * MIB, { seed: 1 })
  await domain.start()
  await matrix.puller.pull(domain)
  await domain.write('vda', MIB, CLUSTER, { seed: 2 })
  return domain
}

t.test('a domain whose guest has crashed is pulled incrementally, and the point says so', requires('lab'), async t => {
  await using matrix = await Matrix.start()
  const { lab } = matrix
  for (const { onCrash, state, reason } of [
    { onCrash: 'preserve', state: 'crashed', reason: /its guest had crashed/ },
    { onCrash: 'destroy', state: 'shut off', reason: /crashed/ },
    { onCrash: 'coredump-destroy', state: 'shut off', reason: /crashed/ },
    { onCrash: 'restart', state: 'running', reason: undefined },
  ]) {
    await t.test(onCrash, async t => {
      const domain = await setUp(matrix, onCrash, onCrash)

      await guestDoes(lab, domain, 'panic')

      // A core dump is made in the state `crashed`, before it is destroyed.
      const isThere = new RegExp(`^${state} \\((crashed|panicked)\\)`)
      while (!isThere.test(await lab.virsh('domstate', domain.uuid, '--reason'))) await delay(20)
      const crashed = await pullByShadow(matrix, domain)
      t.strictSame([crashed.difference, crashed.read, crashed.warned], [undefined, [`vda incremental ${CLUSTER}`], []])
      t.equal(crashed.consistency.kind, 'crash')
      if (reason !== undefined) t.match(crashed.consistency, { reason })
      t.equal(await domain.state(), state, 'left as found')
      t.strictSame((await domain.leftovers()).files, [])
      if (state === 'crashed') {
        await lab.virsh('reset', domain.uuid)
        await domain.resume()
      }
      if (state === 'shut off') await domain.start()
      await domain.waitFor('running')
      await domain.write('vda', 2 * MIB, CLUSTER, { seed: 3 })
      const next = await pullByShadow(matrix, domain)
      t.strictSame([next.difference, next.read], [undefined, [`vda incremental ${CLUSTER}`]])
      t.notMatch(next.consistency, { reason: /crashed/ })
      await domain.destroy()
    })
  }
})

t.test('a domain whose guest sleeps is pulled, and goes on sleeping', requires('lab'), async t => {
  await using matrix = await Matrix.start()
  const domain = await setUp(matrix, 'asleep', 'destroy')
  await guestDoes(matrix.lab, domain, 'sleep')
  await domain.waitFor('pmsuspended')

  const asleep = await pullByShadow(matrix, domain)

  t.strictSame([asleep.difference, asleep.read, asleep.warned], [undefined, [`vda incremental ${CLUSTER}`], []])
  t.equal(await domain.state(), 'pmsuspended')
})
