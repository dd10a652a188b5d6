import { rmSync } from 'node:fs'
import { join } from 'node:path'

import t from 'tap'

import type { Warning } from '../../src/base/errors.js'
import { Store } from '../../src/store/store.js'
import { CHUNK, UUID, contentsOf, diskBytes, incompressible, pull, putDisk, readDisk, sideOf } from './harness.js'

const geometry = { size: 300 * CHUNK + 4096, chunkSize: CHUNK }

t.test('a full and an incremental point give back their bytes, also after reopening', async t => {
  const directory = join(t.testdir(), 'store')
  await Store.init(directory)
  const first = new Map([
    [0, 1],
    [1, 0],
    [2, 7],
    [130, 7],
    [299, 4],
    [300, 5],
  ])
  const second = new Map([...first, [130, 9], [131, 10], [2, 0]])

  {
    await using store = await Store.open(directory)
    const full = await pull(store, geometry, first)
    const next = await pull(
      store,
      geometry,
      [
        [2, 0],
        [130, 9],
        [131, 10],
      ],
      full.point,
    )
    t.equal(full.newChunks, 4, 'a chunk that comes twice is stored once')
    t.equal(next.newChunks, 2)
    t.equal(next.newNodes, 3, 'two leaves and the root')
  }

  await using store = await Store.open(directory)
  const points = await store.points.list(UUID)
  t.strictSame(
    points.map(point => point.sequence),
    [1, 2],
  )
  t.ok((await readDisk(store, sideOf(points[0]!))).equals(diskBytes(geometry, first)))
  t.ok((await readDisk(store, sideOf(points[1]!))).equals(diskBytes(geometry, second)))
})

t.test('an unchanged disk adds no node and shares its root', async t => {
  const directory = join(t.testdir(), 'store')
  await Store.init(directory)
  await using store = await Store.open(directory)
  const full = await pull(store, geometry, [
    [0, 1],
    [200, 2],
  ])

  const again = await pull(store, geometry, [], full.point)
  const reread = await pull(store, geometry, [
    [0, 1],
    [200, 2],
  ])

  t.strictSame([again.newNodes, again.newChunks], [0, 0])
  t.strictSame([reread.newNodes, reread.newChunks], [0, 0])
  t.strictSame(again.point.disks[0]!.root, full.point.disks[0]!.root)
  t.strictSame(reread.point.disks[0]!.root, full.point.disks[0]!.root)
})

t.test('pulls that share one open store do not disturb each other', async t => {
  const directory = join(t.testdir(), 'store')
  await Store.init(directory)
  await using store = await Store.open(directory)
  await pull(store, geometry, [[0, 1]])
  await using run = await store.runs.begin('pull')
  await using draft = await store.draft(run)
  const relied = await putDisk(draft, geometry, [
    [0, 1],
    [1, 2],
  ])

  await using otherRun = await store.runs.begin('pull')
  await using other = await store.draft(otherRun)
  await draft.commit(contentsOf(geometry, relied.root))
  const same = await putDisk(other, geometry, [
    [0, 1],
    [1, 2],
  ])

  t.equal(relied.newChunks, 1, 'it relies on a pack that was there')
  t.strictSame([same.newChunks, same.newNodes], [0, 0], 'the other relies on what the first has stored')
  await other.commit(contentsOf(geometry, same.root))
  t.equal((await store.points.list()).length, 3)
})

t.test('blobs come back: empty, zero, small, and larger than one record', async t => {
  const directory = join(t.testdir(), 'store')
  await Store.init(directory)
  await using store = await Store.open(directory)
  const blobs = [Buffer.alloc(0), Buffer.alloc(4096), Buffer.from('<domain/>'), incompressible(9 * 1024 * 1024 + 17)]
  await using run = await store.runs.begin('pull')
  await using draft = await store.draft(run)

  const stored = []
  for (const bytes of blobs) stored.push(await draft.storeBlob('nvram', bytes))
  await draft.commit({
    domain: { uuid: UUID, name: 'a' },
    time: 0,
    mode: 'full',
    consistency: { kind: 'offline' },
    disks: [],
    skipped: [],
    blobs: stored,
    warnings: [],
    durationMs: 0,
    tags: [],
    toolVersion: '0',
  })

  for (const [at, blob] of stored.entries()) t.ok(blobs[at]!.equals(await store.readBlob(blob)), `blob ${at}`)
})

t.test('a deleted index is rebuilt from the packs, and that is announced', async t => {
  const directory = join(t.testdir(), 'store')
  await Store.init(directory)
  const disk = new Map([
    [0, 1],
    [5, 2],
    [299, 3],
  ])
  {
    await using store = await Store.open(directory)
    await pull(store, geometry, disk)
  }
  rmSync(join(directory, 'index'), { recursive: true })
  const notices: Warning[] = []

  await using store = await Store.open(directory, { onNotice: notice => notices.push(notice) })
  const [point] = await store.points.list()
  t.ok((await readDisk(store, sideOf(point!))).equals(diskBytes(geometry, disk)))

  t.strictSame(
    notices.map(notice => notice.code),
    ['W_INDEX_REBUILT'],
  )
})
