import { createHmac, hkdfSync } from 'node:crypto'

import t from 'tap'

import type { StoreKeys } from '../../src/store/keys.js'
import { Store } from '../../src/store/store.js'
import { MemoryProvider } from '../fakes/memory-provider.js'
import { SimulatedFs } from '../fakes/simulated-fs.js'
import { CHUNK, chunkBytes, diskBytes, pull, readDisk, sideOf } from './harness.js'

const ROOT = '/store'
const geometry = { size: 300 * CHUNK, chunkSize: CHUNK }
const DISK = new Map([
  [0, 1],
  [3, 2],
  [200, 3],
])

function keysFrom(secret: string): StoreKeys {
  const derive = (info: string, salt: Uint8Array) => new Uint8Array(hkdfSync('sha256', secret, salt, info, 32))
  return {
    idKey: createHmac('sha256', secret).update('ids').digest(),
    packKey: salt => derive('pack', salt),
    pointKey: salt => derive('point', salt),
  }
}

const withKeys = (fs: SimulatedFs, secret: string) =>
  Store.open(ROOT, { fs, index: new MemoryProvider(), unlock: () => Promise.resolve(keysFrom(secret)) })

t.test('with keys, points come back with the right ones and are refused with others', async t => {
  const fs = new SimulatedFs()
  await Store.init(ROOT, { fs })
  {
    await using store = await withKeys(fs, 'right')
    await pull(store, geometry, DISK)
  }

  await using store = await withKeys(fs, 'right')
  const [point] = await store.points.list()
  t.ok((await readDisk(store, sideOf(point!))).equals(diskBytes(geometry, DISK)))
  t.equal((await pull(store, geometry, DISK)).newChunks, 0)

  await using other = await withKeys(fs, 'wrong')
  await t.rejects(other.points.list(), { code: 'E_DAMAGED' })
  await t.rejects(readDisk(other, sideOf(point!)), { code: 'E_DAMAGED' })
})

t.test('with keys, no plain text and no salt twice is on the disk', async t => {
  const fs = new SimulatedFs()
  await Store.init(ROOT, { fs, level: 0 })
  await using store = await withKeys(fs, 'right')
  await pull(store, geometry, DISK)
  await pull(store, geometry, [[0, 9]])

  const salts: string[] = []
  for (const [name, bytes] of fs.files()) {
    t.equal(bytes.indexOf(chunkBytes(1).subarray(0, 16)), -1, `${name} has no bytes of the disk`)
    t.equal(bytes.indexOf('web01'), -1, `${name} has no name`)
    if (name.endsWith('.pack')) salts.push(bytes.subarray(48, 80).toString('hex'))
    if (name.endsWith('.point')) salts.push(bytes.subarray(24, 56).toString('hex'))
  }
  t.equal(new Set(salts).size, salts.length)
  t.equal(salts.length, 6)
})
