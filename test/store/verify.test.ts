import t from 'tap'

import { BufferPool } from '../../src/base/buffer-pool.js'
import { systemClock } from '../../src/base/clock.js'
import { BATCH_BYTES, pullDisk } from '../../src/jobs/pull-disk.js'
import { SILENT_PROGRESS } from '../../src/jobs/progress.js'
import { choosePacks, VerifyJob, type VerifyRequest, type VerifyResult } from '../../src/jobs/verify-job.js'
import { GcJob } from '../../src/jobs/gc-job.js'
import type { RecoveryPoint } from '../../src/model/recovery-point.js'
import { Store } from '../../src/store/store.js'
import { FakeExport } from '../fakes/fake-export.js'
import { MemoryProvider } from '../fakes/memory-provider.js'
import { SimulatedFs } from '../fakes/simulated-fs.js'
import { onlyDisk } from '../harness/only-disk.js'
import { CHUNK, contentsOf, never, pull, readDisk, sideOf } from './harness.js'

const ROOT = '/store'
const geometry = { size: 300 * CHUNK, chunkSize: CHUNK }
t.setTimeout(120_000)

async function newStore(): Promise<SimulatedFs> {
  const fs = new SimulatedFs()
  await Store.init(ROOT, { fs })
  return fs
}

function open(fs: SimulatedFs): Promise<Store> {
  return Store.open(ROOT, { fs, index: new MemoryProvider() })
}

function verify(store: Store, request: Partial<VerifyRequest> = {}): Promise<VerifyResult> {
  const job = new VerifyJob({
    points: store.points,
    verifier: store.verifier(),
    progress: SILENT_PROGRESS,
    clock: systemClock,
  })
  return job.run({ level: 'data', isMeant: () => true, ...request }, never)
}

/** Pulls a disk in memory, incrementally where there is a parent. */
async function pullExport(store: Store, source: FakeExport, parent?: RecoveryPoint) {
  await using run = await store.runs.begin('pull')
  await using draft = await store.draft(run)
  const geometry = { size: source.size, chunkSize: CHUNK }
  const pulled = onlyDisk(
    await pullDisk(
      {
        source,
        geometry,
        sinks: [{ parent: parent === undefined ? undefined : sideOf(parent), isAudit: false, store, draft }],
        canaries: { count: 0, random: Math.random },
        pool: new BufferPool(4, BATCH_BYTES),
        onPlanned: () => {},
        onProgress: () => {},
      },
      never,
    ),
  )
  source.checkpoint()
  const point = await draft.commit(contentsOf(geometry, pulled.root, parent))
  await run.finish()
  return { point, reread: pulled.reread }
}

/** A disk of chunks that differ, in packs of incompressible bytes. */
function newDisk(chunks: number): FakeExport {
  const bytes = Buffer.alloc(chunks * CHUNK)
  let state = 12345
  for (let at = 0; at < bytes.length; at += 4) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    bytes.writeUInt32LE(state, at)
  }
  return new FakeExport(bytes)
}

function packsOf(fs: SimulatedFs, kind: 'data' | 'meta'): string[] {
  return [...fs.files()].flatMap(([name, bytes]) =>
    name.endsWith('.pack') && bytes[10] === (kind === 'data' ? 1 : 2) ? [name] : [],
  )
}

t.test('a sound store is called sound at both levels, and its points say so', async t => {
  const fs = await newStore()
  await using store = await open(fs)
  const { point } = await pull(store, geometry, [
    [0, 1],
    [299, 2],
  ])

  const quick = await verify(store, { level: 'quick' })
  t.match(quick, { points: 1, hurt: [], unreadable: [], lostIds: 0, isComplete: true })
  t.match(await store.points.notes(point), { verified: { level: 'quick', ok: true } })
  const data = await verify(store)
  t.match(data, { hurt: [], lostIds: 0, isComplete: true })
  t.equal(data.readBytes > 0, true)
  t.match(await store.points.notes(point), { verified: { level: 'data', ok: true } })
})

t.test('a pack that is gone is told by point, disk and bytes, without reading data', async t => {
  const fs = await newStore()
  await using store = await open(fs)
  const first = await pull(store, geometry, [[0, 1]])
  const before = new Set(packsOf(fs, 'data'))
  const second = await pull(
    store,
    geometry,
    [
      [10, 3],
      [11, 4],
      [200, 5],
    ],
    first.point,
  )
  for (const name of packsOf(fs, 'data')) if (!before.has(name)) await fs.remove(name)

  const result = await verify(store, { level: 'quick' })

  t.equal(result.lostIds, 3)
  t.strictSame(
    result.hurt.map(({ point, disks }) => ({ id: point.id, disks })),
    [
      {
        id: second.point.id,
        disks: [
          {
            disk: 'vda',
            ranges: [
              { offset: 10 * CHUNK, length: 2 * CHUNK },
              { offset: 200 * CHUNK, length: CHUNK },
            ],
          },
        ],
      },
    ],
  )
  t.match(await store.points.notes(second.point), { verified: { ok: false, detail: 'vda' } })
  t.match(await store.points.notes(first.point), { verified: { ok: true } })
})

t.test('a lost tree node is told as all that it covers, and quick finds it', async t => {
  const fs = await newStore()
  await using writing = await open(fs)
  const { point } = await pull(writing, geometry, [
    [0, 1],
    [130, 2],
    [299, 3],
  ])
  const [meta] = packsOf(fs, 'meta')
  fs.tamper(meta!, bytes => {
    bytes[96 + 64 + 40]! ^= 1
    return bytes
  })

  await using store = await open(fs)
  const result = await verify(store, { level: 'quick' })

  t.equal(result.hurt[0]?.point.id, point.id)
  t.equal(result.hurt[0]?.disks[0]?.ranges.length, 1)
})

t.test(
  'a flipped byte is found by data, not by quick; the next pull reads the chunk again and heals both points',
  async t => {
    const fs = await newStore()
    const source = newDisk(40)
    await using store = await open(fs)
    const first = await pullExport(store, source)
    const [data] = packsOf(fs, 'data')
    fs.tamper(data!, bytes => {
      bytes[96 + 5 * (64 + CHUNK) + 1000]! ^= 1
      return bytes
    })
    source.write(30 * CHUNK, Buffer.alloc(CHUNK, 7))

    t.match(await verify(store, { level: 'quick' }), { hurt: [] })
    const found = await verify(store)
    t.strictSame(found.hurt[0]?.disks, [{ disk: 'vda', ranges: [{ offset: 5 * CHUNK, length: CHUNK }] }])
    t.match(await verify(store, { level: 'quick' }), { lostIds: 1 }, 'quick remembers')
    t.match(await store.points.notes(first.point), { verified: { ok: false } })

    // Another process, with an index of its own.
    await using other = await open(fs)
    const second = await pullExport(other, source, first.point)
    t.equal(second.reread, 1)
    const whole = Buffer.from(source.bytes)
    t.ok((await readDisk(other, sideOf(second.point))).equals(whole))
    t.match(await verify(other), { hurt: [], lostIds: 0 })
    t.equal((await readDisk(other, sideOf(first.point))).length, whole.length, 'the older point reads again too')

    const third = await pullExport(other, source, second.point)
    t.equal(third.reread, 0, 'what is healed is not read again')
    await using fresh = await open(fs)
    t.match(await verify(fresh), { hurt: [], lostIds: 0 }, 'also with an index made anew')
  },
)

t.test('after healing, a gc keeps the sound copy', async t => {
  const fs = await newStore()
  const source = newDisk(40)
  await using store = await open(fs)
  const first = await pullExport(store, source)
  const [data] = packsOf(fs, 'data')
  fs.tamper(data!, bytes => {
    bytes[96 + 5 * (64 + CHUNK) + 1000]! ^= 1
    return bytes
  })
  await verify(store)
  const second = await pullExport(store, source, first.point)
  const gc = new GcJob({
    collector: store.collector(),
    progress: SILENT_PROGRESS,
    clock: systemClock,
    confirmMuch: () => Promise.resolve(),
  })
  const { swept } = await gc.run({ threshold: 1 }, never)

  t.strictSame(swept.damagedPacks, [])
  t.ok(swept.deletedPacks > 0)
  await using fresh = await open(fs)
  t.ok((await readDisk(fresh, sideOf(first.point))).equals(source.bytes))
  t.ok((await readDisk(fresh, sideOf(second.point))).equals(source.bytes))
})

t.test('a run that is broken off is gone on with: what was read is not read again within its age', async t => {
  const fs = await newStore()
  await using store = await open(fs)
  let parent: RecoveryPoint | undefined
  for (let round = 0; round < 4; round++) parent = (await pull(store, geometry, [[round, round + 1]], parent)).point

  const part = await verify(store, { sample: 0.01 })
  t.equal(part.readPacks, 1)
  t.notOk(part.isComplete)
  const rest = await verify(store, { maxAge: 1000 * 60 * 60 })
  t.ok(rest.isComplete)
  t.equal(rest.readPacks, rest.neededBytes > 0 ? (await verify(store)).readPacks - 1 : -1)
  t.equal((await verify(store, { maxAge: 1000 * 60 * 60 })).readPacks, 0)
})

t.test('a sample takes those that were not read for longest; a time from the future counts for nothing', t => {
  const packs = ['a', 'b', 'c', 'd'].map(id => ({ id, liveBytes: 10 }))
  const verified = new Map([
    ['a', 5],
    ['b', 99],
    ['d', 2],
  ])

  t.strictSame(
    choosePacks(packs, verified, { sample: 0.5 }, 10).packs.map(({ id }) => id),
    ['c', 'd'],
  )
  t.strictSame(
    choosePacks(packs, verified, { maxAge: 6 }, 10).packs.map(({ id }) => id),
    ['c', 'd', 'b'],
  )
  t.end()
})
