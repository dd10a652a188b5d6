import { randomBytes } from 'node:crypto'
import { join } from 'node:path'

import t from 'tap'

import { checkIndex } from '../../src/store/index-check.js'
import { Store } from '../../src/store/store.js'
import { CHUNK, never, pull, readDisk, sideOf } from './harness.js'

const geometry = { size: 100 * CHUNK, chunkSize: CHUNK }

t.test('a check finds what an index lacks and what it makes up, and a rebuild mends it', async t => {
  const directory = join(t.testdir(), 'store')
  await Store.init(directory)
  await using store = await Store.open(directory)
  const { point } = await pull(
    store,
    geometry,
    Array.from({ length: 20 }, (_, at) => [at, at + 1]),
  )
  const sound = await checkIndex(store, never)
  t.match(sound, { openPacks: 0, unknownPacks: 0, stalePacks: 0, badEntries: 0, missingEntries: 0 })
  t.ok(sound.entries >= 20)

  await store.index.use(async index => {
    for await (const { ids, values } of index.iterate()) {
      await index.deleteBatch(ids.subarray(0, 3 * 32), values.subarray(0, 3 * 40))
      break
    }
    const state = { size: 500, entryCount: 1, kind: 1, sealed: true }
    await index.putBatch({
      ids: randomBytes(5 * 32),
      values: randomBytes(5 * 40),
      packs: [{ id: 'ab'.repeat(16), state }],
    })
  })
  const harmed = await checkIndex(store, never)
  t.match(harmed, { unknownPacks: 0, stalePacks: 1, badEntries: 5, missingEntries: 3 })

  t.equal(await store.index.rebuild(), sound.packs)

  t.strictSame(await checkIndex(store, never), sound)
  t.equal((await readDisk(store, sideOf(point))).length, geometry.size)
})
