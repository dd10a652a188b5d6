import fc from 'fast-check'
import t from 'tap'

import type { RecoveryPoint } from '../../src/model/recovery-point.js'
import { encodeCondemned } from '../../src/format/condemned.js'
import { fromHex } from '../../src/base/hex.js'
import { CONDEMNED_FILE } from '../../src/store/layout.js'
import { MemoryIndex } from '../../src/store/memory-index.js'
import { Store } from '../../src/store/store.js'
import { MemoryProvider } from '../fakes/memory-provider.js'
import { SimulatedFs } from '../fakes/simulated-fs.js'
import {
  CHUNK,
  type Disk,
  chunkBytes,
  contentsOf,
  diskBytes,
  never,
  pull,
  putDisk,
  readDisk,
  sideOf,
} from './harness.js'

const ROOT = '/store'

type Step =
  | {
      readonly kind: 'pull'
      readonly chunks: number
      readonly changes: readonly (readonly [number, number])[]
      readonly full: boolean
    }
  | { readonly kind: 'forget'; readonly which: number }
  | { readonly kind: 'abandon'; readonly which: number }
  | { readonly kind: 'reopen'; readonly index: 'kept' | 'empty' }

const changes = fc.uniqueArray(fc.tuple(fc.nat({ max: 299 }), fc.integer({ min: -1, max: 6 })), {
  maxLength: 12,
  selector: ([index]) => index,
})
const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 5,
    arbitrary: fc.record({
      kind: fc.constant('pull' as const),
      chunks: fc.constantFrom(1, 100, 128, 129, 300),
      changes,
      full: fc.boolean(),
    }),
  },
  {
    weight: 1,
    arbitrary: fc.oneof(
      fc.record({ kind: fc.constant('forget' as const), which: fc.nat({ max: 9 }) }),
      fc.record({ kind: fc.constant('abandon' as const), which: fc.nat({ max: 9 }) }),
    ),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      kind: fc.constant('reopen' as const),
      index: fc.constantFrom('kept' as const, 'empty' as const),
    }),
  },
)

t.test('whatever the history, every point reads as the plain model of it', async t => {
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 12 }), async steps => {
      const fs = new SimulatedFs()
      const provider = new MemoryProvider()
      await Store.init(ROOT, { fs })
      let store = await Store.open(ROOT, { fs, index: provider })
      const model = new Map<string, { readonly point: RecoveryPoint; readonly disk: Disk; readonly chunks: number }>()

      for (const one of steps) {
        if (one.kind === 'pull') {
          const wanted = one.changes.filter(([index]) => index < one.chunks)
          const geometry = { size: one.chunks * CHUNK, chunkSize: CHUNK }
          const parent = one.full ? undefined : [...model.values()].at(-1)
          const disk = new Map([...(parent?.disk ?? [])].filter(([index]) => index < one.chunks))
          for (const [index, seed] of wanted) disk.set(index, seed)
          const { point } = await pull(store, geometry, wanted, parent?.point)
          model.set(point.id, { point, disk, chunks: one.chunks })
        } else if (one.kind === 'forget') {
          const victim = [...model.values()][one.which]
          if (victim === undefined) continue
          await store.points.remove(victim.point)
          model.delete(victim.point.id)
        } else if (one.kind === 'abandon') {
          await using run = await store.runs.begin('pull')
          await using draft = await store.draft(run)
          await putDisk(draft, { size: 10 * CHUNK, chunkSize: CHUNK }, [[one.which, 100 + one.which]])
        } else {
          await store[Symbol.asyncDispose]()
          if (one.index === 'empty') provider.index = new MemoryIndex()
          store = await Store.open(ROOT, { fs, index: provider })
        }
      }

      const listed = await store.points.list()
      if (listed.length !== model.size) throw new Error(`${listed.length} points where ${model.size} should be`)
      for (const point of listed) {
        const known = model.get(point.id)
        if (known === undefined) throw new Error('a point that was forgotten')
        const geometry = { size: known.chunks * CHUNK, chunkSize: CHUNK }
        if (!(await readDisk(store, sideOf(point))).equals(diskBytes(geometry, known.disk)))
          throw new Error('other bytes')
      }
      for (const name of fs.files().keys()) if (name.includes('.lease')) throw new Error('a lease was left')
    }),
    { numRuns: 60 },
  )
  t.pass()
})

t.test('many storeChunks at once store each chunk once, and all of them come back', async t => {
  const fs = new SimulatedFs()
  await Store.init(ROOT, { fs })
  await using store = await Store.open(ROOT, { fs, index: new MemoryProvider() })
  const geometry = { size: 512 * CHUNK, chunkSize: CHUNK }
  await using run = await store.runs.begin('pull')
  await using draft = await store.draft(run)
  const tree = draft.tree(geometry, undefined)

  // Sixteen batches of 32 chunks, of 100 different contents.
  const seeds = Array.from({ length: 512 }, (_, index) => 1 + ((index * 7) % 100))
  const stored = await Promise.all(
    Array.from({ length: 16 }, (_, batch) => {
      const bytes = Buffer.concat(seeds.slice(batch * 32, batch * 32 + 32).map(seed => chunkBytes(seed)))
      const spans = Uint32Array.from({ length: 64 }, (_, at) => (at % 2 === 0 ? (at / 2) * CHUNK : CHUNK))
      return draft.storeChunks(bytes, spans, never)
    }),
  )
  for (const [batch, one] of stored.entries()) {
    await tree.putChunks(
      Float64Array.from({ length: 32 }, (_, at) => batch * 32 + at),
      one,
    )
  }
  const { root } = await tree.finish()
  const point = await draft.commit(contentsOf(geometry, root))

  t.equal(
    stored.reduce((sum, one) => sum + one.newChunks, 0),
    100,
  )
  t.ok((await readDisk(store, sideOf(point))).equals(diskBytes(geometry, new Map(seeds.entries()))))
})

t.test('what a gc has condemned is stored again', async t => {
  const fs = new SimulatedFs()
  await Store.init(ROOT, { fs })
  await using store = await Store.open(ROOT, { fs, index: new MemoryProvider() })
  const geometry = { size: 10 * CHUNK, chunkSize: CHUNK }
  const first = await pull(store, geometry, [
    [0, 1],
    [1, 2],
  ])
  const packIds = (await store.packs.list()).map(fromHex)
  await store.objects.replace(CONDEMNED_FILE, encodeCondemned({ generation: Buffer.alloc(16, 1), packIds }))

  const second = await pull(store, geometry, [
    [0, 1],
    [1, 2],
  ])
  await store.points.remove(first.point)
  for (const name of fs.files().keys()) {
    if (packIds.some(id => name.includes(Buffer.from(id).toString('hex')))) await fs.remove(name)
  }

  t.strictSame([second.newChunks, second.newNodes], [2, 1])
  t.ok(
    (await readDisk(store, sideOf(second.point))).equals(
      diskBytes(
        geometry,
        new Map([
          [0, 1],
          [1, 2],
        ]),
      ),
    ),
  )
})

t.test('a pack that vanishes before the commit fails it, and nothing is committed', async t => {
  const fs = new SimulatedFs()
  await Store.init(ROOT, { fs })
  await using store = await Store.open(ROOT, { fs, index: new MemoryProvider() })
  const geometry = { size: 10 * CHUNK, chunkSize: CHUNK }
  await pull(store, geometry, [[0, 1]])
  await using run = await store.runs.begin('pull')
  await using draft = await store.draft(run)
  const { root } = await putDisk(draft, geometry, [
    [0, 1],
    [1, 2],
  ])
  for (const name of fs.files().keys()) if (name.endsWith('.pack')) await fs.remove(name)

  await t.rejects(draft.commit(contentsOf(geometry, root)), { code: 'E_DAMAGED' })
  t.equal((await store.points.list()).length, 1)
})

t.test('a run whose lease was taken away commits nothing', async t => {
  const fs = new SimulatedFs()
  await Store.init(ROOT, { fs })
  await using store = await Store.open(ROOT, { fs, index: new MemoryProvider() })
  const geometry = { size: 10 * CHUNK, chunkSize: CHUNK }
  await using run = await store.runs.begin('pull')
  await using draft = await store.draft(run)
  const { root } = await putDisk(draft, geometry, [[0, 1]])
  await fs.remove(`${ROOT}/jobs/${run.id}.lease`)

  await t.rejects(draft.commit(contentsOf(geometry, root)), { code: 'E_LOCKED' })
  t.strictSame(await store.points.list(), [])
})

t.test('runs: the living are not dead, the dead leave their journal, a domain is locked once', async t => {
  const directory = t.testdir()
  await Store.init(`${directory}/store`)
  await using store = await Store.open(`${directory}/store`)
  const uuid = '6f0c2a1e-8d53-4a97-b1c4-0d6f3e5a7b92'
  const journal = {
    kind: 'pull' as const,
    domainUuid: uuid,
    domainName: 'a',
    uri: 'qemu:///system',
    checkpoint: 'c',
    socket: 's',
    scratch: [],
    frozen: true,
  }
  const living = await store.runs.begin('pull')
  await living.writeJournal(journal)

  t.strictSame(await store.runs.dead(), [])
  t.strictSame(await store.runs.live(), [living.id])

  await living[Symbol.asyncDispose]()
  const [dead] = await store.runs.dead(uuid)
  t.equal(dead?.id, living.id)
  t.match(dead?.journal, journal)
  t.strictSame(await store.runs.dead('00000000-0000-0000-0000-000000000000'), [])
  await dead?.remove()
  t.strictSame(await store.runs.dead(), [])

  const lock = await store.runs.lockDomain(uuid)
  await t.rejects(store.runs.lockDomain(uuid), { code: 'E_LOCKED' })
  await lock[Symbol.asyncDispose]()
  await t.resolves(store.runs.lockDomain(uuid))
})
