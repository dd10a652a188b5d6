import t from 'tap'

import type { PullHypervisor } from '../../src/jobs/pull-ports.js'
import { Matrix, readings } from '../harness/matrix.js'
import { requires } from '../harness/requires.js'
import { MIB } from '../lab/fill.js'
import { run } from '../lab/run-program.js'

t.setTimeout(120_000)

t.test(
  'scratch on a block device takes what the domain overwrites, and can be used again',
  requires('lab'),
  async t => {
    await using matrix = await Matrix.start()
    const { lab, puller } = matrix
    const image = lab.path('scratch.img')
    await run('truncate', ['--size', String(32 * MIB), image])
    const device = (await run('losetup', ['--find', '--show', image])).stdout.trim()
    try {
      const domain = await lab.domain({ name: 'web01', disks: [{ target: 'vda', size: 16 * MIB }] })
      await domain.start()
      await domain.write('vda', 0, 4 * MIB, { seed: 1 })
      const ports = puller.ports()
      const { hypervisor } = ports
      const name: PullHypervisor['namePlaces'] = hypervisor.namePlaces.bind(hypervisor)
      hypervisor.namePlaces = (...args) => ({
        ...name(...args),
        scratch: new Map([['vda', { kind: 'block', path: device }]]),
      })
      const overwriting: typeof ports.openExport = async (...args) => {
        const source = await ports.openExport(...args)
        await domain.write('vda', 0, 2 * MIB, { seed: Math.floor(Math.random() * 1e6) })
        return source
      }

      const first = await matrix.pull(domain, { ports: { hypervisor, openExport: overwriting } })
      const second = await matrix.pull(domain, { ports: { hypervisor, openExport: overwriting } })

      t.strictSame([first.difference, second.difference], [undefined, undefined])
      t.strictSame(
        [...readings(first.point), ...readings(second.point)],
        [`vda full ${4 * MIB}`, `vda incremental ${2 * MIB}`],
      )
      t.equal(
        (await run('dd', [`if=${device}`, 'bs=3', 'count=1', 'status=none'])).stdout,
        'QFI',
        'libvirt leaves its qcow2 there',
      )
      t.equal(await domain.state(), 'running')
    } finally {
      await run('losetup', ['--detach', device])
    }
  },
)
