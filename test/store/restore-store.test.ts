import { execFile } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { open, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'

import t from 'tap'

import { systemClock } from '../../src/base/clock.js'
import { LocalImages } from '../../src/image/local-images.js'
import { SILENT_PROGRESS } from '../../src/jobs/progress.js'
import { RestoreJob, type RestoreResult } from '../../src/jobs/restore-job.js'
import { planRestore } from '../../src/jobs/restore-plan.js'
import type { RecoveryPoint } from '../../src/model/recovery-point.js'
import { fromHex } from '../../src/base/hex.js'
import { RECORD_HEADER_BYTES } from '../../src/format/record.js'
import { plainKeys } from '../../src/store/keys.js'
import { packKeyOf } from '../../src/store/layout.js'
import { Locator } from '../../src/store/locator.js'
import { NodeReader } from '../../src/store/node-reader.js'
import { PackReader } from '../../src/store/pack-reader.js'
import { Store } from '../../src/store/store.js'
import { entriesOf } from '../../src/store/tree-nodes.js'
import { CHUNK, chunkBytes, never, pull } from './harness.js'

const run = promisify(execFile)

/** 300 leaf nodes' worth of chunks below two levels, with holes and zeros. */
const CHUNKS = 128 * 130
const SIZE = CHUNKS * CHUNK - CHUNK + 512

t.test('what a real store has comes back as an image, incrementals included', async t => {
  const folder = t.testdir({ out: {} })
  await using store = await makeStore(join(folder, 'store'))
  const first = new Map(range(0, 700).map(index => [index, index % 5 === 0 ? 0 : index + 1]))
  first.set(CHUNKS - 1, 99)
  const full = await pull(store, geometry(), sorted(first))
  const later = new Map([
    [3, 5000],
    [600, 0],
    [128 * 129, 5001],
  ] as const)
  const incremental = await pull(store, geometry(), sorted(later), full.point)

  await restore(store, incremental.point, join(folder, 'out'), 'stop')

  await holds(t, join(folder, 'out', 'vda.qcow2'), new Map([...first, ...later]))
})

t.test('of a damaged store, all that is whole comes back, and exactly what is lost is listed', async t => {
  const folder = t.testdir({ out: {} })
  const location = join(folder, 'store')
  let point: RecoveryPoint
  const disk = new Map(range(0, 900).map(index => [index, index + 1]))
  {
    await using store = await makeStore(location)
    point = (await pull(store, geometry(), sorted(disk))).point
  }
  const lostChunk = 450
  const lostLeaf = 2
  await spoil(location, point, { chunk: lostChunk, leaf: lostLeaf })

  await using store = await Store.open(location)
  await t.rejects(restore(store, point, join(folder, 'out'), 'stop'), { code: 'E_DAMAGED' })
  t.same(readdirSync(join(folder, 'out')), [])
  const result = await restore(store, point, join(folder, 'out'), 'keep')

  t.same(result.disks[0]?.lost, [
    { offset: lostLeaf * 128 * CHUNK, length: 128 * CHUNK },
    { offset: lostChunk * CHUNK, length: CHUNK },
  ])
  for (const index of [lostChunk, ...range(lostLeaf * 128, 128)]) disk.set(index, 0)
  await holds(t, join(folder, 'out', 'vda.damaged.qcow2'), disk)
})

async function makeStore(location: string): Promise<Store> {
  await Store.init(location)
  return await Store.open(location)
}

function geometry(): { size: number; chunkSize: number } {
  return { size: SIZE, chunkSize: CHUNK }
}

async function restore(
  store: Store,
  point: RecoveryPoint,
  path: string,
  onDamage: 'stop' | 'keep',
): Promise<RestoreResult> {
  const images = new LocalImages({ output: process.stdout, openExport: () => Promise.reject(new Error('none')) })
  const job = new RestoreJob({ store, images, progress: SILENT_PROGRESS, clock: systemClock })
  return await job.run(
    planRestore({ point, destination: { kind: 'directory', path, format: 'qcow2' }, onDamage }),
    never,
  )
}

/** Compares through qemu-img, hole for hole, with a sparse raw file made of the same seeds. */
async function holds(t: { equal(a: unknown, b: unknown): void }, image: string, disk: ReadonlyMap<number, number>) {
  await run('qemu-img', ['check', '-q', '-f', 'qcow2', image])
  const truth = `${image}.truth`
  const file = await open(truth, 'w')
  for (const [index, seed] of disk) {
    if (seed === 0) continue
    const bytes = chunkBytes(seed, Math.min(CHUNK, SIZE - index * CHUNK))
    await file.write(bytes, 0, bytes.length, index * CHUNK)
  }
  await file.truncate(SIZE)
  await file.close()
  const { stdout } = await run('qemu-img', ['compare', '-f', 'qcow2', '-F', 'raw', image, truth])
  t.equal(stdout.trim(), 'Images are identical.')
}

/** Flips a byte in the records of one chunk and of the leaf node that holds the chunks from `leaf * 128` on. */
async function spoil(location: string, point: RecoveryPoint, what: { chunk: number; leaf: number }): Promise<void> {
  await using store = await Store.open(location)
  const keys = plainKeys
  const locator = new Locator({ index: store.index, packs: store.packs, keys, storeId: fromHex(store.id) })
  const reader = new PackReader({ objects: store.objects, index: store.index, packs: store.packs, locator, keys })
  const nodes = new NodeReader(reader)
  const { root } = point.disks[0]!
  if (root.kind !== 'node') throw new Error('the disk has no tree')
  const [top] = await nodes.load(root.id, 2)
  const [middle] = await nodes.load(entriesOf(top!)[0]!.id!, 1)
  const leafId = entriesOf(middle!)[what.leaf]!.id!
  const [other] = await nodes.load(entriesOf(middle!)[Math.floor(what.chunk / 128)]!.id!, 0)
  const chunkId = entriesOf(other!)[what.chunk % 128]!.id!

  for (const place of await locator.locate(Buffer.concat([leafId, chunkId]))) {
    const file = join(location, packKeyOf(place!.pack))
    const bytes = await readFile(file)
    const at = place!.offset + RECORD_HEADER_BYTES + 5
    bytes[at] = bytes[at]! ^ 0xff
    await writeFile(file, bytes)
  }
}

function range(first: number, count: number): number[] {
  return Array.from({ length: count }, (_, i) => first + i)
}

function sorted(disk: ReadonlyMap<number, number>): [number, number][] {
  return [...disk].sort(([a], [b]) => a - b)
}
