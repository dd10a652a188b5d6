import { cpSync, readFileSync, readdirSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import t from 'tap'

import { type Warning, errorCodeOf } from '../../src/base/errors.js'
import { DamagedChunksError } from '../../src/store/damaged-chunks.js'
import { Store } from '../../src/store/store.js'
import { MemoryProvider } from '../fakes/memory-provider.js'
import { SimulatedFs } from '../fakes/simulated-fs.js'
import { CHUNK, type Disk, diskBytes, pull, readDisk, sideOf } from './harness.js'

t.setTimeout(120_000)

const ROOT = '/store'
const geometry = { size: 140 * CHUNK, chunkSize: CHUNK }
const DISK: Disk = new Map([
  [0, 1],
  [1, 2],
  [130, 3],
])

async function smallStore(): Promise<SimulatedFs> {
  const fs = new SimulatedFs()
  await Store.init(ROOT, { fs })
  await using store = await Store.open(ROOT, { fs, index: new MemoryProvider() })
  const { point } = await pull(store, geometry, DISK)
  await store.points.annotate(point, { tags: ['a'] })
  return fs
}

/** 'right', the code of the refusal, or 'WRONG'. */
async function outcome(fs: SimulatedFs): Promise<string> {
  try {
    await using store = await Store.open(ROOT, { fs, index: new MemoryProvider() })
    const points = await store.points.list()
    if (points.length !== 1) return 'LOST'
    await store.points.notes(points[0]!)
    return (await readDisk(store, sideOf(points[0]!))).equals(diskBytes(geometry, DISK)) ? 'right' : 'WRONG'
  } catch (error) {
    return errorCodeOf(error)
  }
}

t.test('each byte flipped, and each length cut to, is an error that says so or does not matter', async t => {
  const fs = await smallStore()
  for (const [path, bytes] of [...fs.files()]) {
    const harmless = { flips: 0, cuts: 0 }
    const good = Buffer.from(bytes)
    for (let at = 0; at < good.length; at++) {
      const flipped = Buffer.from(good)
      flipped[at]! ^= 1 << (at % 8)
      for (const [kind, bad] of [
        ['flips', flipped],
        ['cuts', good.subarray(0, at)],
      ] as const) {
        fs.tamper(path, () => Buffer.from(bad))
        const result = await outcome(fs)
        if (result === 'right') harmless[kind]++
        else if (result !== 'E_DAMAGED' && result !== 'E_STORE_FORMAT') t.fail(`${kind} at ${at} of ${path}: ${result}`)
      }
    }
    fs.tamper(path, () => Buffer.from(good))
    // Header, footer and trailer of a plain pack are needed by nobody whose records are whole.
    const footer = path.endsWith('.pack') ? 3 * 56 + 48 : 0
    t.strictSame(harmless, { flips: footer === 0 ? 0 : footer + 96, cuts: footer }, path)
  }
})

/** Pack names are random; the header says which kind it is. */
function kindOf(path: string, fs: { files(): Map<string, Buffer> }): string {
  if (!path.endsWith('.pack')) return path.slice(path.lastIndexOf('.'))
  return fs.files().get(path)![10] === 1 ? 'data pack' : 'meta pack'
}

t.test('a pack that lost its end still gives back what it has', async t => {
  const fs = await smallStore()
  const victim = [...fs.files().keys()].find(name => kindOf(name, fs) === 'data pack')!
  fs.tamper(victim, content => content.subarray(0, content.length - 30))

  t.equal(await outcome(fs), 'right')
})

t.test('a missing pack is named piece by piece, and the other pieces are in place', async t => {
  const fs = await smallStore()
  {
    await using store = await Store.open(ROOT, { fs, index: new MemoryProvider() })
    await pull(store, geometry, new Map([...DISK, [5, 9]]))
  }
  const packs = [...fs.files()].filter(([name]) => kindOf(name, fs) === 'data pack')
  const larger = packs.sort((a, b) => b[1].length - a[1].length)[0]!
  await fs.remove(larger[0])

  await using store = await Store.open(ROOT, { fs, index: new MemoryProvider() })
  const points = await store.points.list()
  const out = Buffer.alloc(4 * CHUNK)
  const runs = []
  for await (const run of store.walkTree(points[1]!.disks[0]!.root, geometry)) if (run.kind === 'data') runs.push(run)
  const ids = Buffer.concat(runs.map(run => run.ids))
  const spans = Uint32Array.from([0, 1, 2, 3].flatMap(at => [at * CHUNK, CHUNK]))
  const error: unknown = await store.chunks
    .read(ids, out, spans, new AbortController().signal)
    .catch((error: unknown) => error)

  t.ok(error instanceof DamagedChunksError)
  if (!(error instanceof DamagedChunksError)) return
  t.strictSame(error.pieces.map(({ piece }) => piece).sort(), [0, 1, 3])
  t.ok(out.subarray(2 * CHUNK, 3 * CHUNK).equals(diskBytes(geometry, new Map([[0, 9]])).subarray(0, CHUNK)))
})

t.test('chunks whose pack is gone are stored again by the next pull', async t => {
  const fs = await smallStore()
  const provider = new MemoryProvider()
  {
    await using store = await Store.open(ROOT, { fs, index: provider })
    await readDisk(store, sideOf((await store.points.list())[0]!))
  }
  for (const name of fs.files().keys()) if (name.endsWith('.pack')) await fs.remove(name)

  await using store = await Store.open(ROOT, { fs, index: provider })
  const again = await pull(store, geometry, DISK)

  t.equal(again.newChunks, 3)
  t.ok((await readDisk(store, sideOf(again.point))).equals(diskBytes(geometry, DISK)))
})

t.test('a listing of points is whole or an error, and says which file is bad', async t => {
  const fs = await smallStore()
  const file = [...fs.files().keys()].find(name => name.endsWith('.point'))!
  fs.tamper(file, content => content.subarray(0, 80))

  await using store = await Store.open(ROOT, { fs, index: new MemoryProvider() })

  await t.rejects(store.points.list(), { code: 'E_DAMAGED' })
  const [bad] = await store.points.unreadable()
  t.equal(`${ROOT}/${bad!.file}`, file)
})

t.test('a folder of the store that is missing is an error, not an empty store', async t => {
  const directory = join(t.testdir(), 'store')
  await Store.init(directory)
  rmSync(join(directory, 'points'), { recursive: true })

  await using store = await Store.open(directory)

  await t.rejects(store.points.list(), { code: 'E_DAMAGED' })
})

t.test('with LevelDB deleted, cut short, overwritten, old or forbidden, everything reads and pulls', async t => {
  const base = t.testdir()
  const directory = join(base, 'store')
  await Store.init(directory)
  {
    await using store = await Store.open(directory)
    await pull(store, geometry, DISK)
  }
  cpSync(join(directory, 'index'), join(base, 'old'), { recursive: true })
  const changed = new Map([...DISK, [7, 70]])
  {
    await using store = await Store.open(directory)
    await pull(store, geometry, changed)
  }
  const index = join(directory, 'index')
  const everyFile = (change: (path: string) => void) => readdirSync(index).forEach(name => change(join(index, name)))
  const harms: Record<string, () => void> = {
    deleted: () => rmSync(index, { recursive: true }),
    'cut short': () => everyFile(path => truncateSync(path, Math.floor(readFileSync(path).length / 2))),
    emptied: () => everyFile(path => truncateSync(path, 0)),
    overwritten: () => everyFile(path => writeFileSync(path, Buffer.alloc(readFileSync(path).length, 0x5a))),
    'without CURRENT': () => rmSync(join(index, 'CURRENT')),
    old: () => {
      rmSync(index, { recursive: true })
      cpSync(join(base, 'old'), index, { recursive: true })
    },
    'a file in its place': () => {
      rmSync(index, { recursive: true })
      writeFileSync(index, 'x')
    },
  }
  for (const [name, harm] of Object.entries(harms)) {
    harm()
    const notices: Warning[] = []
    await using store = await Store.open(directory, { onNotice: notice => notices.push(notice) })
    const latest = (await store.points.list()).at(-1)!
    t.ok((await readDisk(store, sideOf(latest))).equals(diskBytes(geometry, changed)), `${name}: reads`)
    t.equal((await pull(store, geometry, changed)).newChunks, 0, `${name}: knows all chunks`)
    // Without CURRENT, LevelDB begins anew but replays its old log by itself.
    if (name !== 'without CURRENT') t.ok(notices.length > 0, `${name}: announced`)
    t.ok(notices.every(({ code }) => code === 'W_INDEX_REBUILT'))
  }
})

t.test('bits flipped in LevelDB never give wrong bytes', async t => {
  const directory = join(t.testdir(), 'store')
  await Store.init(directory)
  {
    await using store = await Store.open(directory)
    await pull(store, geometry, DISK)
  }
  // Opening once more moves the log into a table.
  {
    await using store = await Store.open(directory)
    await store.index.catchUp()
  }
  const index = join(directory, 'index')
  const tables = readdirSync(index).filter(
    name => /\.(ldb|log)$/.test(name) && readFileSync(join(index, name)).length > 0,
  )
  t.ok(tables.length > 0)
  for (const name of tables) {
    const good = readFileSync(join(index, name))
    for (let at = 0; at < good.length; at += Math.max(1, Math.floor(good.length / 25))) {
      const bad = Buffer.from(good)
      bad[at]! ^= 0x10
      writeFileSync(join(index, name), bad)
      await using store = await Store.open(directory)
      const [point] = await store.points.list()
      if (!(await readDisk(store, sideOf(point!))).equals(diskBytes(geometry, DISK))) t.fail(`byte ${at} of ${name}`)
      await store[Symbol.asyncDispose]()
      if (!readdirSync(index).includes(name)) break
    }
  }
})

t.test('where one copy of a chunk is damaged, another pack serves it', async t => {
  const fs = await smallStore()
  const [first] = [...fs.files().keys()].filter(name => kindOf(name, fs) === 'data pack')
  const aside = fs.files().get(first!)!
  await fs.remove(first!)
  {
    // The index is empty, so the same chunks are stored a second time.
    await using store = await Store.open(ROOT, { fs, index: new MemoryProvider() })
    await pull(store, geometry, DISK)
  }
  const file = await fs.createFile(first!)
  await file.append(aside)
  for (const victim of [...fs.files().keys()].filter(name => kindOf(name, fs) === 'data pack')) {
    const good = fs.files().get(victim)!
    fs.tamper(victim, content => content.fill(0x41, 200, 220))

    await using store = await Store.open(ROOT, { fs, index: new MemoryProvider() })
    const [point] = await store.points.list()
    t.ok((await readDisk(store, sideOf(point!))).equals(diskBytes(geometry, DISK)))

    fs.tamper(victim, () => Buffer.from(good))
  }
})
