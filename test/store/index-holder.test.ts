import t from 'tap'

import { type ChunkIndex, IndexBrokenError, IndexHeldError } from '../../src/store/chunk-index.js'
import { MemoryIndex } from '../../src/store/memory-index.js'
import { Store } from '../../src/store/store.js'
import { MemoryProvider } from '../fakes/memory-provider.js'
import { SimulatedFs } from '../fakes/simulated-fs.js'
import { CHUNK, diskBytes, pull, readDisk, sideOf } from './harness.js'

const ROOT = '/store'
const geometry = { size: 10 * CHUNK, chunkSize: CHUNK }
const DISK = new Map([
  [0, 1],
  [3, 2],
])

async function storeWithOnePoint(): Promise<SimulatedFs> {
  const fs = new SimulatedFs()
  await Store.init(ROOT, { fs })
  await using store = await Store.open(ROOT, { fs, index: new MemoryProvider() })
  await pull(store, geometry, DISK)
  return fs
}

/** An index that breaks at its n-th use, whatever that is. */
class BreakingIndex extends MemoryIndex {
  #left: number
  readonly #kind: 'damaged' | 'unwritable'

  constructor(uses: number, kind: 'damaged' | 'unwritable') {
    super()
    this.#left = uses
    this.#kind = kind
  }

  override async getMany(ids: Uint8Array): Promise<Uint8Array> {
    this.#use()
    return super.getMany(ids)
  }

  override async putBatch(batch: Parameters<ChunkIndex['putBatch']>[0]): Promise<void> {
    this.#use()
    return super.putBatch(batch)
  }

  #use(): void {
    if (this.#left-- <= 0) throw new IndexBrokenError(this.#kind, new Error('Corruption: bad block'))
  }
}

t.test('an index that breaks at any moment costs a rebuild, not a pull or a restore', async t => {
  for (const kind of ['damaged', 'unwritable'] as const) {
    for (let uses = 0; uses < 8; uses++) {
      const fs = await storeWithOnePoint()
      const provider = new MemoryProvider()
      provider.index = new BreakingIndex(uses, kind)
      const notices: string[] = []
      await using store = await Store.open(ROOT, {
        fs,
        index: provider,
        onNotice: ({ message }) => notices.push(message),
      })

      const next = await pull(store, geometry, [...DISK, [5, 9]])

      t.equal(next.newChunks, 1, `${kind} after ${uses}: it still knows what is stored`)
      t.ok((await readDisk(store, sideOf(next.point))).equals(diskBytes(geometry, new Map([...DISK, [5, 9]]))))
      t.equal(provider.rebuilt > 0, kind === 'damaged' && notices.some(text => text.includes('unusable')))
    }
  }
})

t.test('where the index cannot be written, its place is left alone and another is used', async t => {
  const fs = await storeWithOnePoint()
  const provider = new MemoryProvider()
  provider.open = () => Promise.reject(new IndexBrokenError('unwritable', new Error('No space left on device')))
  await using store = await Store.open(ROOT, { fs, index: provider })

  const [point] = await store.points.list()

  t.ok((await readDisk(store, sideOf(point!))).equals(diskBytes(geometry, DISK)))
  t.equal(provider.rebuilt, 0)
})

t.test('an index that another process holds is E_LOCKED, and is tried again later', async t => {
  const fs = await storeWithOnePoint()
  const provider = new MemoryProvider()
  const open = provider.open.bind(provider)
  provider.open = () => Promise.reject(new IndexHeldError(new Error('held')))
  await using store = await Store.open(ROOT, { fs, index: provider })
  const [point] = await store.points.list()

  await t.rejects(readDisk(store, sideOf(point!)), { code: 'E_LOCKED' })
  provider.open = open
  t.ok((await readDisk(store, sideOf(point!))).equals(diskBytes(geometry, DISK)))
})
