import fc from 'fast-check'
import t, { type Test } from 'tap'

import { BufferPool } from '../../src/base/buffer-pool.js'
import { BackupError } from '../../src/base/errors.js'
import { BATCH_BYTES, type DiskPull, pullDisk } from '../../src/jobs/pull-disk.js'
import type { DiskGeometry } from '../../src/model/disk-tree.js'
import { chunkLength } from '../../src/model/disk-tree.js'
import type { TreeRoot } from '../../src/model/recovery-point.js'
import type { PointDraft, TreeSide } from '../../src/store/store-types.js'
import { Store } from '../../src/store/store.js'
import { FakeExport } from '../fakes/fake-export.js'
import { pointContents } from '../harness/points.js'
import { onlyDisk } from '../harness/only-disk.js'

const CHUNK = 64 * 1024
const never = new AbortController().signal
t.setTimeout(120_000)

async function withDraft<T>(store: Store, work: (draft: PointDraft) => Promise<T>): Promise<T> {
  await using run = await store.runs.begin('pull')
  await using draft = await store.draft(run)
  const result = await work(draft)
  await draft.commit(pointContents())
  await run.finish()
  return result
}

type Options = Partial<DiskPull> & { readonly isAudit?: boolean }

async function pull(store: Store, source: FakeExport, parent: TreeSide | undefined, options: Options = {}) {
  const { isAudit = false, ...others } = options
  return await withDraft(store, async draft =>
    onlyDisk(await pullDisk({ ...base(source), sinks: [{ parent, isAudit, store, draft }], ...others }, never)),
  )
}

function base(source: FakeExport): Omit<DiskPull, 'sinks'> {
  return {
    source,
    geometry: { size: source.size, chunkSize: CHUNK },
    canaries: { count: 0, random: Math.random },
    pool: new BufferPool(4, BATCH_BYTES),
    onProgress: () => {},
    onPlanned: () => {},
  }
}

async function readBack(store: Store, root: TreeRoot, geometry: DiskGeometry): Promise<Buffer> {
  const disk = Buffer.alloc(geometry.size)
  for await (const run of store.walkTree(root, geometry)) {
    if (run.kind !== 'data') continue
    const spans = new Uint32Array(run.count * 2)
    for (let i = 0; i < run.count; i++) spans.set([i * CHUNK, chunkLength(geometry, run.first + i)], i * 2)
    const out = Buffer.alloc(run.count * CHUNK)
    await store.chunks.read(run.ids, out, spans, never)
    out.copy(disk, run.first * CHUNK, 0, Math.min(out.length, geometry.size - run.first * CHUNK))
  }
  return disk
}

const fill = (length: number, seed: number) => Buffer.from(Uint8Array.from({ length }, (_, i) => (i * seed) >> 3))

t.test('whatever is written between pulls, every pull gives the disk back byte for byte', async t => {
  let runs = 0
  const edit = fc.record({ at: fc.double({ min: 0, max: 1, noNaN: true }), length: fc.nat(200_000), seed: fc.nat(255) })
  const step = fc.record({
    edits: fc.array(edit, { maxLength: 6 }),
    size: fc.option(fc.integer({ min: 1, max: 40 * CHUNK })),
  })
  await fc.assert(
    fc.asyncProperty(fc.integer({ min: 1, max: 40 * CHUNK }), fc.array(step, { maxLength: 4 }), async (size, steps) => {
      const path = `${t.testdir()}/store-${runs++}`
      await Store.init(path)
      await using store = await Store.open(path)
      const source = new FakeExport(Buffer.alloc(size))
      source.write(0, fill(Math.floor(size / 2), 7))
      let parent: TreeSide | undefined

      for (const { edits, size: resized } of [{ edits: [], size: null }, ...steps]) {
        if (resized !== null) source.resize(resized)
        for (const { at, length, seed } of edits) {
          const offset = Math.floor(at * source.size)
          source.write(offset, fill(Math.min(length, source.size - offset), seed))
        }
        const { root } = await pull(store, source, parent)
        parent = { root, geometry: { size: source.size, chunkSize: CHUNK } }
        source.checkpoint()

        const restored = await readBack(store, root, parent.geometry)
        if (!restored.equals(source.bytes)) throw new Error(`differs, store ${path}`)
      }
    }),
    { numRuns: 15 },
  )
})

t.test('an incremental reads what changed, rounded to chunks, and an unchanged disk adds nothing', async t => {
  const path = `${t.testdir()}/store`
  await Store.init(path)
  await using store = await Store.open(path)
  const source = new FakeExport(Buffer.alloc(300 * CHUNK + 1000))
  source.write(0, fill(source.size, 13))
  const first = await pull(store, source, undefined)
  const parent = { root: first.root, geometry: { size: source.size, chunkSize: CHUNK } }
  source.checkpoint()

  const unchanged = await pull(store, source, parent)
  source.write(5 * CHUNK + 7, Buffer.from('one chunk'))
  source.write(200 * CHUNK - 1, Buffer.from('two chunks'))
  source.write(100 * CHUNK, Buffer.alloc(CHUNK))
  const changed = await pull(store, source, parent)

  t.match(unchanged.statistics, { readBytes: 0, newChunks: 0, newNodes: 0, storedBytes: 0 })
  t.strictSame(unchanged.root, first.root)
  t.match(changed.statistics, { readBytes: 3 * CHUNK, newChunks: 3, newBytes: 3 * CHUNK })
  t.equal(
    source.reads.reduce((sum, { length }) => sum + length, 0),
    3 * CHUNK,
  )
})

t.test(
  'a disk that was shrunk and grown again is called cut, and one that has always ended in zeros is not',
  async t => {
    const path = `${t.testdir()}/store`
    await Store.init(path)
    await using store = await Store.open(path)
    for (const [data, cut, isCut] of [
      [100, 99, true],
      [100, 1, true],
      [60, 70, false],
      [60, 59, true],
    ] as const) {
      const source = new FakeExport(Buffer.alloc(100 * CHUNK))
      source.write(0, fill(data * CHUNK, 7))
      const { root } = await pull(store, source, undefined)
      const parent = { root, geometry: { size: source.size, chunkSize: CHUNK } }
      source.checkpoint()

      source.resize(cut * CHUNK)
      source.resize(100 * CHUNK)
      source.write(98 * CHUNK, fill(CHUNK, 9))
      const pulled = await pull(store, source, parent)

      t.equal(pulled.isCut, isCut, `${data} chunks of data, cut at ${cut}`)
    }
  },
)

t.test('a read error leaves no buffer in use and no point', async t => {
  const path = `${t.testdir()}/store`
  await Store.init(path)
  await using store = await Store.open(path)
  const source = new FakeExport(fill(400 * CHUNK, 3))
  let reads = 0
  source.read = async () => {
    if (++reads > 2) throw new Error('the disk is gone')
  }

  await t.rejects(pull(store, source, undefined), /the disk is gone/)

  t.strictSame(await store.points.list(), [])
})

/** Three chunks change, and one of them behind the bitmap's back. */
async function missedWrite(store: Store, options: Options) {
  const source = new FakeExport(Buffer.alloc(100 * CHUNK + 5))
  source.write(0, fill(40 * CHUNK, 13))
  const first = await pull(store, source, undefined)
  const parent = { root: first.root, geometry: { size: source.size, chunkSize: CHUNK } }
  source.checkpoint()
  source.write(3 * CHUNK, Buffer.from('seen'))
  source.bytes.write('unseen', 20 * CHUNK)
  source.bytes.fill(0, 30 * CHUNK, 31 * CHUNK)
  return { source, result: await pull(store, source, parent, options) }
}

t.test('canaries on all clean chunks find each that the bitmap missed', async t => {
  const path = `${t.testdir()}/store`
  await Store.init(path)
  await using store = await Store.open(path)

  const { result } = await missedWrite(store, { canaries: { count: 1000, random: Math.random } })

  t.match(result, { compared: 100, missed: 2 })
})

t.test('an audit counts what the bitmap missed, and its tree has it', async t => {
  const path = `${t.testdir()}/store`
  await Store.init(path)
  await using store = await Store.open(path)

  const { source, result } = await missedWrite(store, { isAudit: true })

  t.match(result, { compared: 100, missed: 2 })
  const restored = await readBack(store, result.root, { size: source.size, chunkSize: CHUNK })
  t.ok(restored.equals(source.bytes))
})

t.test('a right bitmap passes canaries and audit', async t => {
  const path = `${t.testdir()}/store`
  await Store.init(path)
  await using store = await Store.open(path)
  const source = new FakeExport(fill(50 * CHUNK + 700, 5))
  const first = await pull(store, source, undefined)
  const parent = { root: first.root, geometry: { size: source.size, chunkSize: CHUNK } }
  source.checkpoint()
  source.resize(60 * CHUNK)
  source.write(10 * CHUNK, Buffer.alloc(2 * CHUNK))

  const sampled = await pull(store, source, parent, { canaries: { count: 1000, random: Math.random } })
  const audited = await pull(store, source, parent, { isAudit: true })

  t.equal(sampled.missed, 0)
  t.equal(audited.missed, 0)
  t.strictSame(sampled.root, audited.root)
})

/** Into two stores at once, each with its own parent. */
async function pullBoth(
  stores: readonly [Store, Store],
  source: FakeExport,
  parents: readonly (TreeSide | undefined)[],
) {
  const [first, second] = stores
  return await withDraft(first, a =>
    withDraft(second, async b => {
      const sinks = [a, b].map((draft, i) => ({ parent: parents[i], isAudit: false, store: stores[i]!, draft }))
      const results = await pullDisk({ ...base(source), sinks }, never)
      return results.map(result => onlyDisk([result]))
    }),
  )
}

async function twoStores(t: Test): Promise<[Store, Store]> {
  const paths = ['a', 'b'].map(name => `${t.testdir()}/${name}`)
  for (const path of paths) await Store.init(path)
  return [await Store.open(paths[0]!), await Store.open(paths[1]!)]
}

t.test('whatever changed, one read gives two stores the disk byte for byte, also where one has no parent', async t => {
  const stores = await twoStores(t)
  const source = new FakeExport(Buffer.alloc(60 * CHUNK + 9))
  source.write(0, fill(30 * CHUNK, 11))
  const geometry = { size: source.size, chunkSize: CHUNK }
  const readBytes = () => source.reads.reduce((sum, { length }) => sum + length, 0)

  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.tuple(fc.nat(60 * CHUNK), fc.nat(200_000), fc.nat(255)), { maxLength: 5 }),
      fc.constantFrom('both', 'first', 'second', 'none'),
      async (edits, withParent) => {
        const parentsBefore = await pullBoth(stores, source, [undefined, undefined])
        source.checkpoint()
        for (const [at, length, seed] of edits) source.write(at, fill(Math.min(length, source.size - at), seed))
        const has = [withParent === 'both' || withParent === 'first', withParent === 'both' || withParent === 'second']
        const parents = parentsBefore.map(({ root }, i) => (has[i] ? { root, geometry } : undefined))
        const alone = await Promise.all(stores.map((store, i) => pull(store, source, parents[i])))
        source.reads.length = 0

        const together = await pullBoth(stores, source, parents)

        t.strictSame(
          together.map(({ root }) => root),
          alone.map(({ root }) => root),
        )
        t.equal(
          readBytes(),
          Math.max(...together.map(({ statistics }) => statistics.readBytes)),
          'nothing is read twice',
        )
        for (const [i, store] of stores.entries()) {
          t.ok((await readBack(store, together[i]!.root, geometry)).equals(source.bytes))
        }
      },
    ),
    { numRuns: 12 },
  )
  for (const store of stores) await store[Symbol.asyncDispose]()
})

t.test('a store that fails half way leaves the other one whole', async t => {
  const stores = await twoStores(t)
  const source = new FakeExport(Buffer.alloc(600 * CHUNK))
  source.write(0, fill(600 * CHUNK, 17))
  let calls = 0
  const full = new BackupError('E_NO_SPACE', 'no room')

  const [good, bad] = await withDraft(stores[0], a =>
    withDraft(stores[1], b => {
      const failing: PointDraft = Object.create(b, {
        storeChunks: {
          value: (...args: Parameters<PointDraft['storeChunks']>) =>
            ++calls > 2 ? Promise.reject(full) : b.storeChunks(...args),
        },
        tree: { value: b.tree.bind(b) },
      })
      const sinks = [a, failing].map((draft, i) => ({ parent: undefined, isAudit: false, store: stores[i]!, draft }))
      return pullDisk({ ...base(source), sinks }, never)
    }),
  )

  t.match(bad, { kind: 'failed', error: { code: 'E_NO_SPACE' } })
  t.ok(calls < 6, 'nothing more is given to the one that failed')
  const { root } = onlyDisk([good!])
  t.ok((await readBack(stores[0], root, { size: source.size, chunkSize: CHUNK })).equals(source.bytes))
  for (const store of stores) await store[Symbol.asyncDispose]()
})
