import { setTimeout as delay } from 'node:timers/promises'

import t, { type Test } from 'tap'

import { guestDoes, PANIC_DEVICE } from '../lab/guest-ports.js'
import type { PullResult } from '../../src/jobs/pull-job.js'
import { Matrix, redefine } from '../harness/matrix.js'
import { requires } from '../harness/requires.js'
import { pullByShadow } from '../harness/shadow-pull.js'
import { KIB, MIB } from '../lab/fill.js'
import type { LabDomain } from '../lab/lab-domain.js'
import { run } from '../lab/run-program.js'

t.setTimeout(300_000)
const CLUSTER = 64 * KIB
const DISK = 32 * MIB
/** Of 4 MiB each. The next one waits, here and not in QEMU, whose requests stay answered. */
const READS_BEFORE = 3
/** Longer than any of them takes by itself. */
const AWHILE_MS = 2000

/** A domain whose first pull is caught in its middle. */
interface Scene {
  readonly matrix: Matrix
  readonly domain: LabDomain
  readonly pulling: Promise<PullResult>
  /** What the disk held at the begin. */
  readonly held: string
  /** Lets the pull go on. */
  release(): void
}

const devices = `${PANIC_DEVICE}
  <disk type='file' device='cdrom'><target dev='hda' bus='ide'/><readonly/></disk>`

/** A domain whose first pull has read something, and waits before it reads on. */
async function caught(matrix: Matrix, name: string, change?: (xml: string) => string): Promise<Scene> {
  const { lab, puller } = matrix
  const disks = [
    { target: 'vda', size: DISK },
    { target: 'vdb', size: 16 * MIB },
  ]
  const domain = await lab.domain({ name, disks, devices })
  if (change !== undefined) await redefine(lab, domain, change)
  await domain.write('vda', 0, DISK, { seed: 1 })
  await domain.start()
  const held = lab.path(`${name}.held`)
  await run('cp', ['--sparse=always', domain.disk('vda').shadow, held])
  const [waits, released] = [signal(), signal()]
  const ports = puller.ports()
  const pulling = puller.pull(domain, {
    ports: {
      openExport: async (address, disk, abort) => {
        const source = await ports.openExport(address, disk, abort)
        const read = source.read.bind(source)
        let reads = 0
        source.read = async (...args) => {
          if (++reads > READS_BEFORE) {
            waits.resolve()
            await released.promise
          }
          await read(...args)
        }
        return source
      },
    },
  })
  // Whoever waits for it hears of its failure.
  pulling.catch(() => undefined)
  await Promise.race([waits.promise, pulling])
  return { matrix, domain, pulling, held, release: released.resolve }
}

function signal(): { readonly promise: Promise<void>; readonly resolve: () => void } {
  let resolve = () => undefined as void
  const promise = new Promise<void>(done => (resolve = done))
  return { promise, resolve }
}

/** The pull has its point, with what the disk held at its begin, and nothing is left behind. */
async function isRight(t: Test, { matrix, domain, pulling, held }: Scene): Promise<void> {
  const { point } = await pulling
  t.strictSame(
    point.disks.map(({ target }) => target),
    ['vda', 'vdb'],
  )
  t.equal(await matrix.difference(point, 'vda', held), undefined)
  const left = await domain.leftovers()
  t.strictSame([left.jobs, left.exports, left.files], [[], [], []])
  await nextIsRight(t, { matrix, domain }, 'incremental')
}

async function nextIsRight(
  t: Test,
  { matrix, domain }: Pick<Scene, 'domain' | 'matrix'>,
  mode: 'full' | 'incremental',
): Promise<void> {
  await domain.write('vda', 24 * MIB, CLUSTER, { seed: 9 })
  const next = await matrix.pull(domain)
  t.equal(next.difference, undefined, 'the next is right')
  t.equal(next.point.disks[0]?.mode, mode)
  const left = await domain.leftovers()
  t.strictSame([left.jobs, left.exports, left.files], [[], [], []])
  t.ok(left.checkpoints.length <= 2)
  if ((await domain.state()) !== 'shut off') await domain.destroy()
}

t.test('what happens to a domain in the middle of a pull does not touch what is read', requires('lab'), async t => {
  await using matrix = await Matrix.start()
  const { lab } = matrix
  await t.test('it is suspended, and stays so', async t => {
    const scene = await caught(matrix, 'suspended')
    await scene.domain.suspend()
    scene.release()
    await scene.pulling
    t.equal(await scene.domain.state(), 'paused')
    await isRight(t, scene)
  })
  await t.test('it is suspended and resumed, reset, and writes', async t => {
    const scene = await caught(matrix, 'reset')
    const { domain } = scene
    await domain.suspend()
    await domain.resume()
    await lab.virsh('reset', domain.uuid)
    await domain.write('vda', 20 * MIB, 4 * MIB, { seed: 5 })
    scene.release()
    await scene.pulling
    t.equal(await domain.state(), 'running')
    await isRight(t, scene)
  })
  await t.test('its guest reboots', async t => {
    const scene = await caught(matrix, 'reboot')
    await guestDoes(lab, scene.domain, 'reboot')
    await scene.domain.write('vda', 20 * MIB, MIB, { seed: 5 })
    scene.release()
    await isRight(t, scene)
  })
  await t.test('its guest crashes and is preserved', async t => {
    const preserve = (xml: string) => xml.replace(/<on_crash>.*?</, '<on_crash>preserve<')
    const scene = await caught(matrix, 'panic', preserve)
    await guestDoes(lab, scene.domain, 'panic')
    // libvirt calls it crashed only when the backup's job is over.
    await scene.domain.waitFor('paused')
    scene.release()
    await isRight(t, scene)
  })
  await t.test('disks are plugged, unplugged and resized, a CD is changed', async t => {
    const scene = await caught(matrix, 'plugged')
    const { domain } = scene
    await run('truncate', ['--size', '1M', lab.path('cd.iso')])
    const refused = await Promise.all([
      lab.tryVirsh('detach-disk', domain.uuid, 'vda'),
      lab.tryVirsh('blockresize', domain.uuid, 'vdb', '32M'),
      lab.tryVirsh('blockcopy', domain.uuid, 'vdb', lab.path('copy.qcow2'), '--transient-job'),
      lab.tryVirsh('blockpull', domain.uuid, 'vda'),
    ])
    t.strictSame(
      refused.map(({ code }) => code),
      [1, 1, 1, 1],
      'libvirt keeps what is read',
    )
    await lab.virsh('change-media', domain.uuid, 'hda', lab.path('cd.iso'), '--insert')
    await lab.virsh('change-media', domain.uuid, 'hda', '--eject')
    await domain.attachDisk({ target: 'vdc', size: 8 * MIB })
    await domain.write('vdc', 0, MIB, { seed: 6 })
    scene.release()
    await isRight(t, scene)
  })
})

t.test('who asks for the domain in the middle of a pull is served when it is over', requires('lab'), async t => {
  await using matrix = await Matrix.start()
  const { lab } = matrix
  for (const { name, command, after } of [
    { name: 'managed save', command: ['managedsave'], after: 'shut off' },
    { name: 'save', command: ['save', '--file', lab.path('saved')], after: 'shut off' },
    { name: 'dump', command: ['dump', '--live', '--file', lab.path('dumped')], after: 'running' },
    {
      name: 'external',
      command: ['snapshot-create-as', '--name', 'external', '--disk-only', '--no-metadata'],
      after: 'running',
    },
    { name: 'internal', command: ['snapshot-create-as', '--name', 'internal'], after: 'running' },
  ]) {
    await t.test(name, async t => {
      const scene = await caught(matrix, name.replace(' ', '-'))
      const { domain } = scene
      const theirs = lab.tryVirsh(...command, '--domain', domain.uuid)
      t.equal(await Promise.race([theirs, delay(AWHILE_MS)]), undefined, 'it waits')
      scene.release()

      const { point, warnings } = await scene.pulling

      t.strictSame(warnings, [])
      t.equal(await matrix.difference(point, 'vda', scene.held), undefined)
      t.match(await theirs, { code: 0 })
      t.equal(await domain.state(), after)
      if (after === 'running') await domain.write('vda', 24 * MIB, CLUSTER, { seed: 9 })
      const next = await pullByShadow(matrix, domain)
      t.equal(next.difference, undefined)
      t.strictSame(next.warned, [])
      t.match(next.read, [/^vda incremental/, /^vdb incremental/])
      const left = await domain.leftovers()
      const files = left.files.filter(file => !file.endsWith('.external'))
      t.strictSame([left.jobs, left.exports, files], [[], [], []])
      if (after === 'running') await domain.destroy()
    })
  }
})

t.test(
  'a domain that goes off in the middle of a pull gives no point, and the next is right',
  requires('lab'),
  async t => {
    await using matrix = await Matrix.start()
    const { lab, store } = matrix
    await t.test('its guest switches it off', async t => {
      const scene = await caught(matrix, 'poweroff')
      await guestDoes(lab, scene.domain, 'powerOff')
      scene.release()
      await t.rejects(scene.pulling, { code: /E_(SOURCE_GONE|NBD|DOMAIN_STATE|LIBVIRT)/ })
      t.strictSame(await store.points.list(scene.domain.uuid), [])
      await scene.domain.waitFor('shut off')
      await scene.domain.start()
      await nextIsRight(t, scene, 'full')
    })
  },
)
