import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'

import t from 'tap'

import type { PullHypervisor } from '../../src/jobs/pull-ports.js'
import { Matrix, readings } from '../harness/matrix.js'
import { requires } from '../harness/requires.js'
import { KIB, MIB } from '../lab/fill.js'

t.setTimeout(300_000)
const CLUSTER = 64 * KIB

/** The hypervisor, with something happening between the look at the domain and the begin. */
function beforeBegin(matrix: Matrix, happens: () => Promise<unknown>): { readonly hypervisor: PullHypervisor } {
  const { hypervisor } = matrix.puller.ports()
  const begin = hypervisor.beginBackup.bind(hypervisor)
  hypervisor.beginBackup = async (...args) => {
    await happens()
    return await begin(...args)
  }
  return { hypervisor }
}

t.test(
  'a domain that starts or stops between the look and the begin is pulled as it is then',
  requires('lab'),
  async t => {
    await using matrix = await Matrix.start()
    const domain = await matrix.lab.domain({ name: 'moving', disks: [{ target: 'vda', size: 16 * MIB }] })
    await domain.write('vda', 0, MIB, { seed: 1 })
    await matrix.pull(domain)
    await domain.write('vda', 0, CLUSTER, { seed: 2 })

    const started = await matrix.pull(domain, { ports: beforeBegin(matrix, () => domain.start()) })
    t.equal(started.difference, undefined)
    t.strictSame([readings(started.point), started.warnings], [[`vda incremental ${CLUSTER}`], []])
    t.equal(await domain.state(), 'running')

    await domain.write('vda', MIB, CLUSTER, { seed: 3 })
    const stopped = await matrix.pull(domain, { ports: beforeBegin(matrix, () => domain.destroy()) })
    t.equal(stopped.difference, undefined)
    t.strictSame([readings(stopped.point), stopped.warnings], [[`vda incremental ${CLUSTER}`], []])
    t.match(stopped.point.consistency, { kind: 'crash' })
    t.equal(await domain.state(), 'shut off')
  },
)

t.test('a domain with a block job is busy, whose end makes it free', requires('lab'), async t => {
  await using matrix = await Matrix.start()
  const { lab, puller } = matrix
  const domain = await lab.domain({ name: 'copying', disks: [{ target: 'vda', size: 16 * MIB }] })
  await domain.start()
  await domain.write('vda', 0, MIB, { seed: 1 })
  await lab.virsh('blockcopy', domain.uuid, 'vda', lab.path('copy.qcow2'), '--transient-job', '--wait')

  await t.rejects(puller.pull(domain), { code: 'E_DOMAIN_BUSY', why: /block job/ })

  t.match(await lab.virsh('blockjob', domain.uuid, 'vda', '--raw'), /Block Copy|type=/, 'it goes on')
  await lab.virsh('blockjob', domain.uuid, 'vda', '--abort')
  t.equal((await matrix.pull(domain)).difference, undefined)
})

/** What libvirt keeps of a running domain, for when it is restarted. */
function statusOf(folder: string, name: string): string {
  try {
    return readFileSync(join(folder, 'run', 'qemu', `${name}.xml`), 'utf8')
  } catch {
    return ''
  }
}

t.test(
  'libvirtd killed inside begin: the domain is E_LIBVIRT_STUCK, others are not, and the remedy helps',
  requires('lab'),
  async t => {
    await using matrix = await Matrix.start()
    const { lab, puller } = matrix
    const domain = await lab.domain({ name: 'stuck', disks: [{ target: 'vda', size: 16 * MIB }] })
    const other = await lab.domain({ name: 'other', disks: [{ target: 'vda', size: 16 * MIB }] })
    await other.start()
    await domain.start()
    await domain.write('vda', 0, MIB, { seed: 1 })
    const ports = puller.ports()
    const killed = t.rejects(
      puller.pull(domain, {
        ports: {
          startGuardian: async () => {
            const guardian = await ports.startGuardian()
            await domain.signal('SIGSTOP')
            return guardian
          },
        },
      }),
    )
    while (!/async='backup'/.test(statusOf(lab.folder, 'stuck'))) await delay(20)
    await lab.stopDaemon({ signal: 'SIGKILL' })
    await domain.signal('SIGCONT')
    await lab.startDaemon()
    await killed

    await t.rejects(puller.pull(domain), { code: 'E_LIBVIRT_STUCK' })

    await puller.pull(other)
    await domain.destroy()
    await lab.restartDaemon({ signal: 'SIGTERM' })
    await domain.start()
    const { difference } = await matrix.pull(domain)
    t.equal(difference, undefined)
  },
)
