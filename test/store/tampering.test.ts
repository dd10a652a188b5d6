import t from 'tap'

import { fromHex, toHex } from '../../src/base/hex.js'
import { PACK_ENTRY_BYTES, PACK_HEADER_BYTES, PACK_TRAILER_BYTES } from '../../src/format/pack.js'
import { RECORD_HEADER_BYTES } from '../../src/format/record.js'
import { native } from '../../src/native/binding.js'
import { KeyRing } from '../../src/store/key-ring.js'
import { Store } from '../../src/store/store.js'
import { MemoryProvider } from '../fakes/memory-provider.js'
import { SimulatedFs } from '../fakes/simulated-fs.js'
import { CHEAP_SCRYPT, CHUNK, contentsOf, diskBytes, given, pull, putDisk, readDisk, sideOf } from './harness.js'

t.setTimeout(120_000)

/*
 * What somebody can do who may write to an encrypted store and knows the
 * format, checksums included: every change is noticed, none gives other bytes.
 */
const ROOT = '/store'
const geometry = { size: 130 * CHUNK, chunkSize: CHUNK }
const DISK = new Map([
  [0, 1],
  [129, 2],
])
const OTHER = '00000000-1111-2222-3333-444444444444'

/** Exported keys: opening with one costs no scrypt. */
const keys = new Map<SimulatedFs, string>()

const open = (fs: SimulatedFs, passphrase = keys.get(fs) ?? '') =>
  Store.open(ROOT, { fs, index: new MemoryProvider(), passphrase: given(passphrase) })

async function empty(level?: number): Promise<SimulatedFs> {
  const fs = new SimulatedFs()
  await Store.init(ROOT, { fs, level, encryption: { passphrase: 'passphrase', cost: CHEAP_SCRYPT } })
  await using ring = await KeyRing.of(ROOT, { fs })
  await ring.unlock('passphrase')
  keys.set(fs, ring.exportKey())
  return fs
}

async function filled(): Promise<SimulatedFs> {
  const fs = await empty()
  await using store = await open(fs)
  await pull(store, geometry, DISK)
  return fs
}

const packsOf = (fs: SimulatedFs, kind: number) =>
  [...fs.files()].filter(([name, bytes]) => name.endsWith('.pack') && bytes[10] === kind).map(([name]) => name)
const pointsOf = (fs: SimulatedFs) => [...fs.files().keys()].filter(name => name.endsWith('.point')).sort()
const bytesOf = (fs: SimulatedFs, path: string) => Buffer.from(fs.files().get(path)!)

const crc32c = (bytes: Uint8Array, seed?: number) => native().crc32c(bytes, seed)

/** Makes every checksum of a pack right again. */
function resumPack(pack: Buffer): Buffer {
  const trailer = pack.length - PACK_TRAILER_BYTES
  const footer = Number(pack.readBigUInt64LE(trailer + 8))
  if (footer > trailer) return resumTrailer(pack)
  for (let at = PACK_HEADER_BYTES; at < footer; ) {
    const end = at + RECORD_HEADER_BYTES + pack.readUInt32LE(at + 16)
    if (end > footer) break
    pack.writeUInt32LE(crc32c(pack.subarray(at + 24, end), crc32c(pack.subarray(at, at + 20))), at + 20)
    at = end
  }
  pack.writeUInt32LE(crc32c(pack.subarray(0, 92)), 92)
  pack.writeUInt32LE(crc32c(pack.subarray(footer, trailer)), trailer + 20)
  return resumTrailer(pack)
}

function resumTrailer(pack: Buffer): Buffer {
  const trailer = pack.length - PACK_TRAILER_BYTES
  pack.writeUInt32LE(crc32c(pack.subarray(trailer, trailer + 44)), trailer + 44)
  return pack
}

function resumPoint(point: Buffer): Buffer {
  point.writeUInt32LE(crc32c(point.subarray(24), crc32c(point.subarray(0, 20))), 20)
  return point
}

function flipped(bytes: Buffer, at: number, bit: number): Buffer {
  bytes[at] = bytes[at]! ^ (1 << bit)
  return bytes
}

/** Whether the store gives all its disks back as they were; false where it says that it cannot. */
async function readsRight(fs: SimulatedFs, disk = DISK): Promise<boolean> {
  try {
    await using store = await open(fs)
    const points = await store.points.list()
    if (points.length === 0) return false
    for (const point of points) {
      const bytes = await readDisk(store, sideOf(point))
      if (!bytes.equals(diskBytes(geometry, disk))) throw new Error('other bytes than were stored')
    }
    return true
  } catch (error) {
    if (error instanceof Error && 'code' in error && /^E_(DAMAGED|KEY|STORE_FORMAT)$/.test(String(error.code)))
      return false
    throw error
  }
}

t.test('every bit of a record, header and payload, is authenticated', async t => {
  const fs = await filled()
  for (const path of [...packsOf(fs, 1), ...packsOf(fs, 2)]) {
    const intact = bytesOf(fs, path)
    const end = RECORD_HEADER_BYTES + intact.readUInt32LE(PACK_HEADER_BYTES + 16)
    const crc = [20, 21, 22, 23]
    let tried = 0
    let noticed = 0
    // One bit per byte, another one in each: the native tests flip them all.
    for (let at = 0; at < end; at++) {
      if (crc.includes(at)) continue
      fs.tamper(path, () => resumPack(flipped(Buffer.from(intact), PACK_HEADER_BYTES + at, at % 8)))
      tried++
      if (!(await readsRight(fs))) noticed++
    }
    fs.tamper(path, () => intact)
    t.ok(await readsRight(fs))
    t.equal(noticed, tried, `${tried} changes in a record of ${path}`)
  }
})

t.test('a changed pack header gives no other bytes: store, pack and salt make the key', async t => {
  const fs = await filled()
  const [path = ''] = packsOf(fs, 1)
  const intact = bytesOf(fs, path)

  for (let at = 0; at < 92; at++) {
    fs.tamper(path, () => resumPack(flipped(Buffer.from(intact), at, at % 8)))
    const isKind = at === 10
    // Whether a pack calls itself data or meta is for people: nothing is decided by it when reading.
    if (!isKind) t.notOk(await readsRight(fs), `byte ${at}`)
  }
})

t.test('a changed footer gives no other bytes', async t => {
  const fs = await filled()
  const [path = ''] = packsOf(fs, 1)
  const intact = bytesOf(fs, path)
  const trailer = intact.length - PACK_TRAILER_BYTES
  const footer = Number(intact.readBigUInt64LE(trailer + 8))

  let tried = 0
  for (let at = footer; at < intact.length; at++) {
    fs.tamper(path, () => resumPack(flipped(Buffer.from(intact), at, at % 8)))
    // Records carry what the footer says of them, so the pack may still be read one by one: either
    // answer will do. Other bytes make it throw.
    await readsRight(fs)
    tried++
  }
  t.equal(tried, intact.length - footer)

  // The two records swapped in the footer: each id leads to the other's record.
  const first = intact.subarray(footer, footer + 32)
  const second = intact.subarray(footer + PACK_ENTRY_BYTES, footer + PACK_ENTRY_BYTES + 32)
  const swapped = Buffer.from(intact)
  second.copy(swapped, footer)
  first.copy(swapped, footer + PACK_ENTRY_BYTES)
  fs.tamper(path, () => resumPack(swapped))
  t.notOk(await readsRight(fs))
})

t.test('a record in the place of another, in its pack or another pack, is refused', async t => {
  // Plain lengths of the same size everywhere, and as long when stored.
  const fs = await empty(0)
  {
    await using store = await open(fs)
    await pull(store, geometry, DISK)
    await pull(store, geometry, [
      [0, 3],
      [129, 4],
    ])
  }
  const [one = '', two = ''] = packsOf(fs, 1)
  const [a, b] = [bytesOf(fs, one), bytesOf(fs, two)]
  const length = RECORD_HEADER_BYTES + a.readUInt32LE(PACK_HEADER_BYTES + 16)
  const [at0, at1] = [PACK_HEADER_BYTES, PACK_HEADER_BYTES + length]
  const footer = PACK_HEADER_BYTES + 2 * length
  const refused = async (path: string, change: (pack: Buffer) => void) => {
    const intact = bytesOf(fs, path)
    fs.tamper(path, pack => {
      change(pack)
      return resumPack(pack)
    })
    await using store = await open(fs)
    const [first, second] = await store.points.list()
    await t.rejects(Promise.all([readDisk(store, sideOf(first!)), readDisk(store, sideOf(second!))]), {
      code: 'E_DAMAGED',
    })
    fs.tamper(path, () => intact)
  }

  // Whole records with their entries, at the same number, from one pack to the other.
  await refused(one, pack => {
    b.copy(pack, at0, at0, at1)
    b.copy(pack, footer, footer, footer + PACK_ENTRY_BYTES)
  })
  // The payload only, under the header of the one that was there.
  await refused(one, pack => b.copy(pack, at0 + RECORD_HEADER_BYTES, at0 + RECORD_HEADER_BYTES, at1))
  // The two records of one pack, swapped: with their numbers, then with the numbers of their places.
  await refused(one, pack => {
    a.copy(pack, at1, at0, at1)
    a.copy(pack, at0, at1, at1 + length)
  })
  await refused(one, pack => {
    a.copy(pack, at1, at0, at1)
    a.copy(pack, at0, at1, at1 + length)
    pack.writeUInt32LE(0, at0 + 8)
    pack.writeUInt32LE(1, at1 + 8)
    a.copy(pack, footer, footer + PACK_ENTRY_BYTES, footer + PACK_ENTRY_BYTES + 32)
    a.copy(pack, footer + PACK_ENTRY_BYTES, footer, footer + 32)
  })
  // A whole pack in the place of another.
  await refused(one, pack => {
    b.copy(pack)
    fromHex(one.slice(-37, -5)).forEach((byte, index) => {
      pack[32 + index] = byte
      pack[pack.length - PACK_TRAILER_BYTES + 24 + index] = byte
    })
  })
})

t.test('nothing of another store is taken, whatever it says of itself', async t => {
  const [mine, theirs] = [await filled(), await filled()]
  const storeId = (fs: SimulatedFs) =>
    Buffer.from(
      JSON.parse(
        bytesOf(fs, `${ROOT}/store.json`)
          .toString()
          .replace(/,\n {2}"crc32c".*/s, '}'),
      ).id,
      'hex',
    )
  const [pack = ''] = packsOf(mine, 1)
  const [foreignPack = ''] = packsOf(theirs, 1)
  const [point = ''] = pointsOf(mine)
  const [foreignPoint = ''] = pointsOf(theirs)

  // Same passphrase, same content, same length; renamed, and every id of theirs made mine.
  const intactPack = bytesOf(mine, pack)
  mine.tamper(pack, () => {
    const copy = bytesOf(theirs, foreignPack)
    storeId(mine).copy(copy, 16)
    intactPack.copy(copy, 32, 32, 48)
    const trailer = copy.length - PACK_TRAILER_BYTES
    intactPack.copy(copy, trailer + 24, 32, 48)
    return resumPack(copy)
  })
  t.notOk(await readsRight(mine))
  mine.tamper(pack, () => intactPack)
  t.ok(await readsRight(mine))

  mine.tamper(point, () => {
    const copy = bytesOf(theirs, foreignPoint)
    storeId(mine).copy(copy, 56)
    return resumPoint(copy)
  })
  await using store = await open(mine)
  await t.rejects(store.points.list(), { code: 'E_DAMAGED', message: /authentication tag/ })
})

t.test('a slot of another store opens nothing here', async t => {
  const [mine, theirs] = [await filled(), await filled()]
  const slotOf = (fs: SimulatedFs) => [...fs.files()].map(([name]) => name).find(name => name.endsWith('.slot'))!
  const id = bytesOf(mine, slotOf(mine)).subarray(24, 56)

  for (const headed of [false, true]) {
    mine.tamper(slotOf(mine), () => {
      const slot = bytesOf(theirs, slotOf(theirs))
      if (headed) id.copy(slot, 24)
      slot.writeUInt32LE(crc32c(slot.subarray(0, 248)), 248)
      return slot
    })
    await t.rejects(open(mine, 'passphrase'), { code: 'E_KEY' })
  }
})

t.test('every bit of store.json counts: forged, it does not open', async t => {
  const fs = await filled()
  const path = `${ROOT}/store.json`
  const intact = bytesOf(fs, path).toString()
  const forge = (from: RegExp, to: string) =>
    fs.tamper(path, () => {
      const head = intact.replace(from, to).replace(/,\n {2}"crc32c".*/s, '')
      const crc = crc32c(Buffer.from(head)).toString(16).padStart(8, '0')
      return Buffer.from(`${head},\n  "crc32c": "${crc}"\n}\n`)
    })

  for (const [from, to] of [
    [/"chunk_size": 65536/, '"chunk_size": 131072'],
    [/"level": 1/, '"level": 0'],
    [/"created_ms": \d+/, '"created_ms": 1'],
    [/"compat": \[\]/, '"compat": ["x"]'],
    [/"hash": "hmac-sha256"/, '"hash": "sha256"'],
    [/"check": "../, '"check": "00'],
    [/"id": "..../, '"id": "0000'],
  ] as const) {
    forge(from, to)
    t.notOk(await readsRight(fs), String(from))
  }

  // Told to be a plain store, so that the next backup comes in the clear.
  forge(/"hmac-sha256"/, '"sha256"')
  fs.tamper(path, bytes => {
    const plain = bytes
      .toString()
      .replace(/"incompat": \[[^\]]*\]/, '"incompat": []')
      .replace(/,\n {2}"encryption": \{[^}]*\}/, '')
      .replace(/,\n {2}"crc32c".*/s, '')
    const crc = crc32c(Buffer.from(plain)).toString(16).padStart(8, '0')
    return Buffer.from(`${plain},\n  "crc32c": "${crc}"\n}\n`)
  })
  await t.rejects(open(fs), { code: 'E_KEY', message: /not encrypted/ })
})

t.test('points and notes are taken for no others: not of another domain, name or time', async t => {
  const fs = await empty()
  {
    await using store = await open(fs)
    const { point } = await pull(store, geometry, DISK)
    await store.points.annotate(point, { tags: ['first'], hold: {} })
    const { point: second } = await pull(store, geometry, [[0, 5]])
    await store.points.annotate(second, { tags: ['second'] })
    await using run = await store.runs.begin('pull')
    await using draft = await store.draft(run)
    const { root } = await putDisk(draft, geometry, [[0, 6]])
    await draft.commit({ ...contentsOf(geometry, root), domain: { uuid: OTHER, name: 'victim' } })
    await run.finish()
  }
  const [victim = '', one = '', two = ''] = pointsOf(fs)
  const swap = async (path: string, from: string, check: (store: Store) => Promise<unknown>) => {
    const intact = bytesOf(fs, path)
    fs.tamper(path, () => bytesOf(fs, from))
    await using store = await open(fs)
    await t.rejects(check(store), { code: 'E_DAMAGED' }, `${from} as ${path}`)
    fs.tamper(path, () => intact)
  }
  t.match(victim, OTHER)

  await swap(victim, one, store => store.points.list())
  await swap(one, victim, store => store.points.list())
  await swap(one, two, store => store.points.list())
  const notesOf = (path: string) => path.replace('.point', '.notes')
  await swap(notesOf(one), notesOf(two), async store => {
    for (const point of await store.points.list()) await store.points.notes(point)
  })
  // A point is no notes, with a magic that says so.
  await swap(notesOf(one), one, async store => {
    for (const point of await store.points.list()) await store.points.notes(point)
  })
})

t.test('every bit of a point file is authenticated', async t => {
  const fs = await filled()
  const [path = ''] = pointsOf(fs)
  const intact = bytesOf(fs, path)
  let noticed = 0

  for (let at = 0; at < intact.length; at++) {
    fs.tamper(path, () => resumPoint(flipped(Buffer.from(intact), at, at % 8)))
    // The checksum itself is made right again: there, nothing was changed.
    if ((await readsRight(fs)) === (at >= 20 && at < 24)) noticed++
  }

  t.equal(noticed, intact.length)
})

t.test('a journal is sealed, and belongs to its run', async t => {
  const fs = await filled()
  const journal = {
    kind: 'pull' as const,
    domainUuid: OTHER,
    domainName: 'secret-name',
    uri: 'qemu+ssh://secret-host/system',
    checkpoint: 'c',
    socket: '/run/s',
    scratch: ['/secret/path'],
    frozen: true,
  }
  await using store = await open(fs)
  const ids: string[] = []
  for (let count = 0; count < 2; count++) {
    const run = await store.runs.begin('pull')
    await run.writeJournal(count === 0 ? journal : { ...journal, domainName: 'second' })
    await run[Symbol.asyncDispose]()
    ids.push(run.id)
  }
  const pathOf = (id: string) => `${ROOT}/jobs/${id}.journal`
  const journals = async () => {
    const dead = await store.runs.dead()
    return ids.map(id => dead.find(run => run.id === id)?.journal?.domainName)
  }

  t.strictSame(await journals(), ['secret-name', 'second'])
  for (const [name, bytes] of fs.files()) t.equal(bytes.indexOf('secret'), -1, name)

  const intact = bytesOf(fs, pathOf(ids[0]!))
  fs.tamper(pathOf(ids[0]!), () => bytesOf(fs, pathOf(ids[1]!)))
  t.strictSame(await journals(), [undefined, 'second'], 'the journal of another run is none')
  fs.tamper(pathOf(ids[0]!), () => resumPoint(flipped(Buffer.from(intact), 100, 0)))
  t.strictSame(await journals(), [undefined, 'second'], 'nor is a forged one')
  t.equal(toHex(intact.subarray(0, 8)), toHex(Buffer.from('VVJRNAL1')))
})
