import t from 'tap'

import { codes, Matrix, readings, redefine } from '../harness/matrix.js'
import { requires } from '../harness/requires.js'
import { KIB, MIB } from '../lab/fill.js'
import { run } from '../lab/run-program.js'

t.setTimeout(300_000)

t.test(
  'a domain that is off is pulled in full, then incrementally, and so on over starts and stops',
  requires('lab'),
  async t => {
    await using matrix = await Matrix.start()
    const domain = await matrix.lab.domain({
      name: 'off01',
      disks: [
        { target: 'vda', size: 64 * MIB, content: [{ kind: 'write', offset: 0, length: 8 * MIB, fill: { seed: 1 } }] },
        { target: 'vdb', size: 16 * MIB + 512, format: 'raw' },
      ],
    })

    const full = await matrix.pull(domain)
    t.equal(full.difference, undefined)
    t.match(full.point.consistency, { kind: 'offline', reason: undefined })
    t.equal(await domain.state(), 'shut off', 'left as found')

    const unchanged = await matrix.pull(domain)
    t.equal(unchanged.difference, undefined)
    t.strictSame(readings(unchanged.point)[0], 'vda incremental 0')

    await domain.write('vda', 20 * MIB, 64 * KIB, { seed: 2 })
    const offline = await matrix.pull(domain)
    t.equal(offline.difference, undefined)
    t.strictSame(readings(offline.point)[0], `vda incremental ${64 * KIB}`, 'written to while off')

    await domain.start()
    await domain.write('vda', 30 * MIB, 128 * KIB, { seed: 3 })
    const running = await matrix.pull(domain)
    t.equal(running.difference, undefined)
    t.strictSame(readings(running.point)[0], `vda incremental ${128 * KIB}`, 'from the checkpoint made while off')

    await domain.write('vda', 40 * MIB, 64 * KIB, { seed: 4 })
    await domain.discard('vda', 0, MIB)
    await domain.destroy()
    await domain.write('vda', 41 * MIB, 64 * KIB, { seed: 5 })
    const off = await matrix.pull(domain)
    t.equal(off.difference, undefined)
    t.strictSame(readings(off.point)[0], `vda incremental ${128 * KIB}`, 'what was written running and off alike')
    t.match(off.point.consistency, { kind: 'crash', reason: 'it was switched off, not shut down' })

    const left = await domain.leftovers()
    const kept = [running, off].map(({ point }) => point.checkpoint!.name)
    t.strictSame([...left.checkpoints].sort(), [...kept].sort())
    t.strictSame([...left.bitmaps].sort(), kept.map(name => `vda:${name}`).sort(), 'older bitmaps are out of the image')
    t.strictSame([left.files, left.jobs], [[], []])
  },
)

t.test(
  'while it is read a domain cannot be started, not even on a raw disk; afterwards it can',
  requires('lab'),
  async t => {
    await using matrix = await Matrix.start()
    const domain = await matrix.lab.domain({ name: 'off02', disks: [{ target: 'vda', size: 16 * MIB, format: 'raw' }] })
    await domain.write('vda', 0, MIB, { seed: 1 })
    const ports = matrix.puller.ports()
    let refusal = ''
    const openExport: typeof ports.openExport = async (...args) => {
      refusal = (await matrix.lab.tryVirsh('start', domain.uuid)).stderr
      return await ports.openExport(...args)
    }

    const { difference } = await matrix.pull(domain, { ports: { openExport } })

    t.match(refusal, /lock/)
    t.equal(difference, undefined)
    await domain.start()
    t.equal(await domain.state(), 'running')
  },
)

t.test(
  'a pull of a domain that is off fails and leaves neither bitmap, checkpoint nor lock',
  requires('lab'),
  async t => {
    await using matrix = await Matrix.start()
    const domain = await matrix.lab.domain({ name: 'off03', disks: [{ target: 'vda', size: 16 * MIB }] })
    await domain.write('vda', 0, MIB, { seed: 1 })
    const first = await matrix.pull(domain)
    await domain.write('vda', 2 * MIB, 64 * KIB, { seed: 2 })
    const broken = matrix.puller.ports()
    const openExport: typeof broken.openExport = async (...args) => {
      const source = await broken.openExport(...args)
      source.read = () => Promise.reject(new Error('injected'))
      return source
    }

    await t.rejects(matrix.puller.pull(domain, { ports: { openExport } }), /injected/)

    const left = await domain.leftovers()
    t.strictSame(left.checkpoints, [first.point.checkpoint!.name])
    t.strictSame(left.bitmaps, [`vda:${first.point.checkpoint!.name}`])
    t.strictSame(left.files, [])
    const next = await matrix.pull(domain)
    t.equal(next.difference, undefined)
    t.strictSame(readings(next.point), [`vda incremental ${64 * KIB}`])
  },
)

t.test('of a chain of images that is off, what every image recorded is read', requires('lab'), async t => {
  await using matrix = await Matrix.start()
  const { lab } = matrix
  const domain = await lab.domain({ name: 'off04', disks: [{ target: 'vda', size: 32 * MIB }] })
  await domain.start()
  await domain.write('vda', 0, 4 * MIB, { seed: 1 })
  const full = await matrix.puller.pull(domain)
  await domain.write('vda', 8 * MIB, 64 * KIB, { seed: 2 })
  await lab.virsh('snapshot-create-as', domain.uuid, 'snap', '--disk-only', '--no-metadata')
  await domain.write('vda', 9 * MIB, 64 * KIB, { seed: 3 })
  await domain.destroy()
  const reference = lab.path('chain.raw')
  await run('cp', ['--sparse=always', domain.disk('vda').shadow, reference])

  const { point, warnings } = await matrix.puller.pull(domain)

  t.strictSame(warnings, [])
  t.strictSame(readings(point), [`vda incremental ${128 * KIB}`], `since ${full.point.id}`)
  t.equal(await matrix.difference(point, 'vda', reference), undefined)
})

for (const state of ['off', 'running'] as const) {
  const title = `an image put on top while the domain was off makes the pull full, not wrong (${state})`
  t.test(title, requires('lab'), async t => {
    await using matrix = await Matrix.start()
    const { lab } = matrix
    const domain = await lab.domain({ name: 'off05', disks: [{ target: 'vda', size: 32 * MIB }] })
    await domain.start()
    await domain.write('vda', 0, 4 * MIB, { seed: 1 })
    await matrix.puller.pull(domain)
    await domain.destroy()
    // What qemu-img makes, and libvirt for a domain that is off, has no bitmap: what goes there is not recorded.
    const { path, shadow } = domain.disk('vda')
    const overlay = `${path}.overlay`
    await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', path, '-F', 'qcow2', overlay])
    await redefine(lab, domain, xml => xml.replace(path, overlay))
    await run('qemu-io', ['-f', 'qcow2', '-c', 'write -P 0x55 8M 64k', overlay])
    await domain.disk('vda').changeShadow([{ kind: 'write', offset: 8 * MIB, length: 64 * KIB, fill: 0x55 }])
    if (state === 'running') {
      await domain.start()
      await domain.write('vda', 9 * MIB, 64 * KIB, { seed: 3 })
    }
    const reference = lab.path('overlay.raw')
    await run('cp', ['--sparse=always', shadow, reference])

    const result = await matrix.puller.pull(domain)

    t.equal(await matrix.difference(result.point, 'vda', reference), undefined)
    t.strictSame(codes(result), ['W_CHAIN'])
    t.equal(result.point.disks[0]!.mode, 'full')
  })
}
