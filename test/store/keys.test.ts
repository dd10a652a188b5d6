import t from 'tap'

import { Store } from '../../src/store/store.js'
import { MemoryProvider } from '../fakes/memory-provider.js'
import { SimulatedFs } from '../fakes/simulated-fs.js'
import { CHEAP_SCRYPT, CHUNK, chunkBytes, diskBytes, given, pull, readDisk, sideOf } from './harness.js'

const ROOT = '/store'
const geometry = { size: 300 * CHUNK, chunkSize: CHUNK }
const DISK = new Map([
  [0, 1],
  [3, 2],
  [200, 3],
])

async function makeStore(options: { level?: number } = {}): Promise<SimulatedFs> {
  const fs = new SimulatedFs()
  await Store.init(ROOT, { fs, ...options, encryption: { passphrase: 'right', cost: CHEAP_SCRYPT } })
  return fs
}

const open = (fs: SimulatedFs, passphrase: string) =>
  Store.open(ROOT, { fs, index: new MemoryProvider(), passphrase: given(passphrase) })

t.test('an encrypted store gives its points back for the passphrase, and for nothing else', async t => {
  const fs = await makeStore()
  {
    await using store = await open(fs, 'right')
    await pull(store, geometry, DISK)
  }

  await using store = await open(fs, 'right')
  const [point] = await store.points.list()
  t.ok((await readDisk(store, sideOf(point!))).equals(diskBytes(geometry, DISK)))
  t.equal((await pull(store, geometry, DISK)).newChunks, 0)
  t.ok(store.encrypted)

  const before = [...fs.files()].map(([name, bytes]) => `${name} ${bytes.toString('hex')}`)
  await t.rejects(open(fs, 'wrong'), { code: 'E_KEY', message: /wrong/ })
  await t.rejects(open(fs, ''), { code: 'E_KEY' })
  await t.rejects(Store.open(ROOT, { fs, index: new MemoryProvider() }), { code: 'E_KEY', message: /no passphrase/ })
  const after = [...fs.files()].map(([name, bytes]) => `${name} ${bytes.toString('hex')}`)
  t.strictSame(after, before, 'nothing was written')
})

t.test('a passphrase for a store that is not encrypted is refused', async t => {
  const fs = new SimulatedFs()
  await Store.init(ROOT, { fs })

  await t.rejects(open(fs, 'right'), { code: 'E_KEY', message: /not encrypted/ })
})

t.test('no plain text and no salt twice is on the disk of an encrypted store', async t => {
  const fs = await makeStore({ level: 0 })
  await using store = await open(fs, 'right')
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
