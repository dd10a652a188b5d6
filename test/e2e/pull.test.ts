import { open, readdir, stat, truncate } from 'node:fs/promises'

import t from 'tap'

import type { RecoveryPoint } from '../../src/model/recovery-point.js'
import { Store } from '../../src/store/store.js'
import type { StorePort } from '../../src/store/store-types.js'
import { diskBytes, LabPuller } from '../harness/pull.js'
import { requires } from '../harness/requires.js'
import { MIB } from '../lab/fill.js'
import { imageDifference } from '../lab/images.js'
import type { LabDomain } from '../lab/lab-domain.js'
import { Lab } from '../lab/lab.js'

t.setTimeout(300_000)
const CHUNK = 64 * 1024

/** The disk of a point, written out as a raw image and compared with what the domain showed at that time. */
async function difference(lab: Lab, store: StorePort, point: RecoveryPoint, target: string, reference: string) {
  const disk = point.disks.find(one => one.target === target)!
  const path = lab.path(`${point.id}-${target}.raw`)
  const file = await open(path, 'w')
  await file.truncate(disk.size)
  for await (const [offset, bytes] of diskBytes(store, disk)) await file.write(bytes, 0, bytes.length, offset)
  await file.close()
  return await imageDifference({ path, format: 'raw' }, { path: reference, format: 'raw' })
}

async function setUp() {
  const lab = await Lab.start()
  const path = lab.path('store')
  await Store.init(path)
  const store = await Store.open(path)
  const puller = await LabPuller.open(lab, store)
  return {
    lab,
    store,
    puller,
    [Symbol.asyncDispose]: async () => {
      await puller[Symbol.asyncDispose]()
      await store[Symbol.asyncDispose]()
      await lab[Symbol.asyncDispose]()
    },
  }
}

const nothingLeft = async (domain: LabDomain, checkpoints: readonly string[]) => {
  const left = await domain.leftovers()
  return (
    left.jobs.length === 0 &&
    left.exports.length === 0 &&
    left.files.length === 0 &&
    JSON.stringify([...left.checkpoints].sort()) === JSON.stringify([...checkpoints].sort())
  )
}

t.test('every point of a chain of pulls restores alone, and each reads only what changed', requires('lab'), async t => {
  await using set = await setUp()
  const { lab, store, puller } = set
  const domain = await lab.domain({
    name: 'web01',
    disks: [
      { target: 'vda', size: 8192 * MIB },
      { target: 'vdb', size: 64 * MIB + 512 },
    ],
  })
  await domain.start()
  await domain.write('vda', 0, 24 * MIB, { seed: 1 })
  await domain.write('vda', 5000 * MIB, 3 * MIB, 0x33)
  await domain.write('vdb', 0, 64 * MIB, { seed: 2 })
  const shown: { point: RecoveryPoint; vda: string; vdb: string }[] = []
  const pull = async (n: number) => {
    const [vda, vdb] = [await domain.referenceImage('vda', `a${n}`), await domain.referenceImage('vdb', `b${n}`)]
    const { point } = await puller.pull(domain)
    shown.push({ point, vda, vdb })
    return point
  }

  const full = await pull(1)
  await domain.write('vda', 100, 512, 0x44)
  await domain.discard('vda', 4 * MIB, 2 * MIB)
  await domain.zero('vda', 10 * MIB, 1 * MIB)
  await domain.write('vdb', 30 * MIB, MIB, { seed: 3 })
  const second = await pull(2)
  await domain.write('vda', 6000 * MIB, 2 * MIB, { seed: 4 })
  const third = await pull(3)
  const unchanged = await pull(4)

  t.equal(full.mode, 'full')
  t.strictSame([second.mode, third.mode, unchanged.mode], ['incremental', 'incremental', 'incremental'])
  t.equal(full.disks[0]!.statistics.readBytes, 27 * MIB)
  t.equal(second.disks[0]!.statistics.readBytes, CHUNK, 'the zeroes and discards are not read')
  t.equal(second.disks[1]!.statistics.readBytes, MIB)
  t.match(third.disks[0]!.statistics, { readBytes: 2 * MIB, newChunks: 32 })
  for (const disk of unchanged.disks) t.match(disk.statistics, { readBytes: 0, newChunks: 0, newNodes: 0 })
  for (const { point, vda, vdb } of shown) {
    t.equal(await difference(lab, store, point, 'vda', vda), undefined, `vda of ${point.sequence}`)
    t.equal(await difference(lab, store, point, 'vdb', vdb), undefined, `vdb of ${point.sequence}`)
  }
  t.ok(await nothingLeft(domain, [third.checkpoint!.name, unchanged.checkpoint!.name]), 'two checkpoints, nothing else')
})

t.test(
  'a pull that fails leaves no point, no job, no checkpoint and no file, and the next is right',
  requires('lab'),
  async t => {
    await using set = await setUp()
    const { lab, store, puller } = set
    const domain = await lab.domain({ name: 'db01', disks: [{ target: 'vda', size: 64 * MIB }] })
    await domain.start()
    await domain.write('vda', 0, 16 * MIB, { seed: 1 })
    const first = await puller.pull(domain)
    await domain.write('vda', 8 * MIB, MIB, { seed: 2 })

    const broken = puller.ports()
    const openExport: typeof broken.openExport = async (...args) => {
      const source = await broken.openExport(...args)
      source.read = () => Promise.reject(new Error('injected'))
      return source
    }
    await t.rejects(puller.pull(domain, { ports: { openExport } }), /injected/)
    const afterFailure = await nothingLeft(domain, [first.point.checkpoint!.name])
    const reference = await domain.referenceImage('vda', 'a')
    const next = await puller.pull(domain)

    t.ok(afterFailure, 'nothing but the old checkpoint was left')
    t.equal((await store.points.list()).length, 2)
    t.equal(next.point.mode, 'incremental')
    t.equal(next.point.disks[0]!.statistics.readBytes, MIB)
    t.equal(await difference(lab, store, next.point, 'vda', reference), undefined)
  },
)

t.test('an interrupted pull ends its job and says so', requires('lab'), async t => {
  await using set = await setUp()
  const { lab, puller } = set
  const domain = await lab.domain({ name: 'db02', disks: [{ target: 'vda', size: 64 * MIB }] })
  await domain.start()
  await domain.write('vda', 0, 48 * MIB, { seed: 1 })
  const aborter = new AbortController()
  const ports = puller.ports()
  const openExport: typeof ports.openExport = async (...args) => {
    aborter.abort()
    return await ports.openExport(...args)
  }

  await t.rejects(puller.pull(domain, { ports: { openExport }, signal: aborter.signal }), { code: 'E_INTERRUPTED' })

  t.ok(await nothingLeft(domain, []))
})

t.test('a domain that somebody else backs up is busy, and their job goes on', requires('lab'), async t => {
  await using set = await setUp()
  const { lab, puller } = set
  const domain = await lab.domain({ name: 'db03', disks: [{ target: 'vda', size: 16 * MIB }] })
  await domain.start()
  const { writeFile } = await import('node:fs/promises')
  const xml = lab.path('foreign.xml')
  await writeFile(
    xml,
    `<domainbackup mode='pull'><server transport='unix' socket='${lab.path('f.sock')}'/><disks><disk name='vda' type='file'><scratch file='${lab.path('f.qcow2')}'/></disk></disks></domainbackup>`,
  )
  await lab.virsh('backup-begin', domain.uuid, xml)

  await t.rejects(puller.pull(domain), { code: 'E_DOMAIN_BUSY' })

  t.match(await lab.virsh('domjobinfo', domain.uuid), /Backup/)
  await lab.virsh('domjobabort', domain.uuid)
})

t.test('a damaged point or tree makes the next pull full, not impossible', requires('lab'), async t => {
  await using set = await setUp()
  const { lab, puller } = set
  const domain = await lab.domain({ name: 'db04', disks: [{ target: 'vda', size: 32 * MIB }] })
  await domain.start()
  await domain.write('vda', 0, 8 * MIB, { seed: 1 })
  const { point } = await puller.pull(domain)
  const packs = (await readdir(lab.path('store/packs'), { recursive: true })).filter(name => name.endsWith('.pack'))

  // Nodes are in the smallest pack. What remains of it cannot be read.
  const sizes = await Promise.all(packs.map(async name => (await stat(lab.path(`store/packs/${name}`))).size))
  const meta = packs[sizes.indexOf(Math.min(...sizes))]!
  await truncate(lab.path(`store/packs/${meta}`), 150)
  await domain.write('vda', MIB, CHUNK, { seed: 2 })
  const withoutTree = await puller.pull(domain)
  await truncate(lab.path(`store/points/${domain.uuid}/${point.id}.point`), 100)
  // Another process: this one has the point in memory.
  await using reopened = await Store.open(lab.path('store'))
  await using second = await LabPuller.open(lab, reopened)
  const withoutPoint = await second.pull(domain)

  t.equal(withoutTree.point.mode, 'full')
  t.match(withoutTree.warnings, [{ code: 'W_CHAIN', message: /vda: the store has lost/ }])
  t.equal(withoutPoint.point.mode, 'full')
  t.match(withoutPoint.warnings[0], { code: 'W_CHAIN', message: /cannot be read/ })
  const reference = await domain.referenceImage('vda', 'a')
  t.equal(await difference(lab, reopened, withoutPoint.point, 'vda', reference), undefined)
})
