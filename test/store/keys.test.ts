import t from 'tap'

import { systemClock } from '../../src/base/clock.js'
import { GcJob } from '../../src/jobs/gc-job.js'
import { SILENT_PROGRESS } from '../../src/jobs/progress.js'
import { native } from '../../src/native/binding.js'
import { Store } from '../../src/store/store.js'
import { MemoryProvider } from '../fakes/memory-provider.js'
import { PowerCut, SimulatedFs } from '../fakes/simulated-fs.js'
import {
  CHEAP_SCRYPT,
  CHUNK,
  chunkBytes,
  contentsOf,
  diskBytes,
  given,
  never,
  pull,
  putDisk,
  readDisk,
  sideOf,
} from './harness.js'

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

/** Every byte that was ever appended to a pack, also of packs that are gone. */
function recordPacks(fs: SimulatedFs): Map<string, Buffer[]> {
  const packs = new Map<string, Buffer[]>()
  const createFile = fs.createFile.bind(fs)
  fs.createFile = async path => {
    const file = await createFile(path)
    if (!path.endsWith('.pack')) return file
    const written: Buffer[] = []
    packs.set(path, written)
    return {
      get size() {
        return file.size
      },
      append: async bytes => {
        // Before it is known whether it reaches the disk: an attacker may have seen it.
        written.push(Buffer.from(bytes))
        await file.append(bytes)
      },
      sync: () => file.sync(),
      close: () => file.close(),
    }
  }
  return packs
}

t.test('no key meets a nonce twice, over many runs, given up and cut off ones too', async t => {
  let fs = await makeStore()
  const packs = new Map<string, Buffer>()
  for (let round = 0; round < 12; round++) {
    const recorded = recordPacks(fs)
    try {
      await using store = await open(fs, 'right')
      await pull(store, geometry, [[0, 100 + round]])
      await using run = await store.runs.begin('pull')
      await using draft = await store.draft(run)
      await putDisk(draft, geometry, [
        [1, 200 + round],
        [2, 300 + round],
      ])
      const start = fs.syncs
      const cut = fs
      fs.onOperation = ({ syncs }) => {
        if (syncs - start < round % 4) return undefined
        cut.powerOff()
        return new PowerCut()
      }
      if (round % 3 !== 0) {
        const { root } = await putDisk(draft, geometry, [[5, 400 + round]])
        await draft.commit(contentsOf(geometry, root))
      }
    } catch (error) {
      if (!(error instanceof PowerCut) && !/power/.test(String(error))) throw error
    }
    for (const [path, parts] of recorded) packs.set(`${round} ${path}`, Buffer.concat(parts))
    fs = fs.afterPowerCut(round % 2 === 0 ? 'everything' : 'nothing')
  }

  const used = new Set<string>()
  let records = 0
  for (const [path, bytes] of packs) {
    const salt = bytes.subarray(48, 80).toString('hex')
    const { fields } = await native().scanRecords(bytes, 96)
    for (let at = 0; at < fields.length; at += 6) {
      t.equal(fields[at + 1], at / 6, `${path}: numbers are given in order`)
      used.add(`${salt} ${fields[at + 1]}`)
      records++
    }
  }
  t.ok(packs.size > 30, `${packs.size} packs`)
  t.ok(records > 50, `${records} records`)
  t.equal(used.size, records)
})

t.test('a gc of an encrypted store rewrites packs under keys of their own, and loses nothing', async t => {
  const fs = await makeStore()
  const recorded = recordPacks(fs)
  await using store = await open(fs, 'right')
  const first = await pull(store, geometry, DISK)
  const second = await pull(store, geometry, [[3, 9]], first.point)
  const packs = await store.packs.list()
  await store.points.remove(first.point)

  const job = new GcJob({
    collector: store.collector(),
    progress: SILENT_PROGRESS,
    clock: systemClock,
    confirmMuch: () => Promise.resolve(),
  })
  await job.run({ threshold: 1 }, never)

  const left = await store.packs.list()
  t.ok(
    left.some(pack => !packs.includes(pack)),
    'a pack was rewritten',
  )
  t.ok((await readDisk(store, sideOf(second.point))).equals(diskBytes(geometry, new Map([...DISK, [3, 9]]))))
  const salts = [...recorded.values()].map(parts => Buffer.concat(parts).subarray(48, 80).toString('hex'))
  t.equal(new Set(salts).size, salts.length)
  for (const [name, bytes] of fs.files()) t.equal(bytes.indexOf('web01'), -1, name)
})
