// Bytes from outside are lies until decoded: what decodeRecords and scanRecords
// make of records that are damaged, moved, forged or cut.
import { randomBytes } from 'node:crypto'

import fc from 'fast-check'
import t from 'tap'

import { native } from '../../../src/native/binding.js'
import { RECORD_STATUS, SCAN_STOP } from '../../../src/native/codec.js'
import {
  CHUNK,
  CIPHER,
  decodeOne,
  ENCRYPTED_STORE,
  encodeOne,
  type Fields,
  HEADER_BYTES,
  ID_KEY,
  idOf,
  type Keys,
  PLAIN_STORE,
  recordOf,
  withCrc,
} from './record-bytes.js'

const PIECE = Buffer.from('a small piece, a small piece, a small piece, a small piece, again and again and again')
const STORES: [string, Keys][] = [
  ['plain', PLAIN_STORE],
  ['encrypted', ENCRYPTED_STORE],
]

for (const [name, keys] of STORES) {
  for (const level of [0, 3]) {
    t.test(`every flipped bit of a record is found: ${name}, zstd level ${level}`, async t => {
      const record = await encodeOne(PIECE, { ...keys, level })
      const wanted = { ...keys, id: idOf(PIECE, keys), length: PIECE.length }
      t.equal((await decodeOne(record, wanted)).status, RECORD_STATUS.ok)

      const missed: string[] = []
      for (let bit = 0; bit < record.length * 8; bit++) {
        const damaged = Buffer.from(record)
        damaged[bit >> 3]! ^= 1 << (bit & 7)
        const { status, plain } = await decodeOne(damaged, wanted)
        if (status === RECORD_STATUS.ok || plain.some(byte => byte !== 0)) missed.push(`bit ${bit}: status ${status}`)
      }

      t.same(missed, [])
    })

    t.test(`every changed byte is found although its CRC is right: ${name}, zstd level ${level}`, async t => {
      const record = await encodeOne(PIECE, { ...keys, level })
      const wanted = { ...keys, id: idOf(PIECE, keys), length: PIECE.length }

      const missed: string[] = []
      for (let at = 0; at < record.length; at++) {
        // The CRC itself, and the record number, which without a key nothing else tells.
        if (at >= 20 && at < 24) continue
        if (keys.cipher === undefined && at >= 8 && at < 12) continue
        const damaged = Buffer.from(record)
        damaged[at]! ^= 0x55
        const { status, plain } = await decodeOne(withCrc(damaged), wanted)
        if (status === RECORD_STATUS.ok || plain.some(byte => byte !== 0)) missed.push(`byte ${at}: status ${status}`)
      }

      t.same(missed, [])
    })
  }

  t.test(`a ${name} record cut anywhere is refused, and the walk calls it torn`, async t => {
    const record = await encodeOne(PIECE, keys)

    const missed: string[] = []
    for (let length = 0; length < record.length; length++) {
      const cut = record.subarray(0, length)
      const { status } = await decodeOne(cut, { ...keys, id: idOf(PIECE, keys), length: PIECE.length })
      const scan = await native().scanRecords(cut, 0)

      if (status !== RECORD_STATUS.badHeader) missed.push(`length ${length}: status ${status}`)
      if (scan.end !== 0 || scan.stop !== (length === 0 ? SCAN_STOP.end : SCAN_STOP.torn))
        missed.push(`walk of ${length}`)
    }

    t.same(missed, [])
  })
}

t.test('a wrong key, context or record number fails the tag', async t => {
  const record = await encodeOne(PIECE, ENCRYPTED_STORE)
  const wanted = { idKey: ID_KEY, id: idOf(PIECE, ENCRYPTED_STORE), length: PIECE.length }
  const other = (bytes: Uint8Array): Uint8Array => bytes.map((byte, i) => (i === 31 ? byte ^ 1 : byte))
  const moved = Buffer.from(record)
  moved.writeUInt32LE(1, 8)

  const wrongKey = await decodeOne(record, { ...wanted, cipher: { ...CIPHER, packKey: other(CIPHER.packKey) } })
  const wrongContext = await decodeOne(record, { ...wanted, cipher: { ...CIPHER, context: other(CIPHER.context) } })
  const wrongNumber = await decodeOne(withCrc(moved), { ...wanted, cipher: CIPHER })

  t.equal(wrongKey.status, RECORD_STATUS.badTag)
  t.equal(wrongContext.status, RECORD_STATUS.badTag)
  t.equal(wrongNumber.status, RECORD_STATUS.badTag)
})

t.test('a record that is not what was asked for is refused', async t => {
  const id = idOf(PIECE)
  const length = PIECE.length
  const plain = recordOf(PIECE, { id })
  const encrypted = recordOf(PIECE, { id: idOf(PIECE, ENCRYPTED_STORE) }, CIPHER)
  const elsewhere = idOf(Buffer.from('other'))

  const statusOf = async (record: Buffer, wanted: object): Promise<number> =>
    (await decodeOne(record, { id, length, ...wanted })).status

  t.equal(await statusOf(plain, {}), RECORD_STATUS.ok)
  t.equal(await statusOf(plain, { kind: 2 }), RECORD_STATUS.badHeader, 'a chunk for a tree node')
  t.equal(await statusOf(plain, ENCRYPTED_STORE), RECORD_STATUS.badHeader, 'an unencrypted record in an encrypted pack')
  t.equal(await statusOf(encrypted, {}), RECORD_STATUS.badHeader, 'an encrypted record without a key')
  t.equal(await statusOf(plain, { id: elsewhere }), RECORD_STATUS.badId, 'a good record, but another')
  t.equal(await statusOf(recordOf(PIECE, { id: elsewhere }), { id: elsewhere }), RECORD_STATUS.badId, 'a false name')
  t.equal(await statusOf(plain, { length: length - 1 }), RECORD_STATUS.badLength, 'too little room')
  t.equal(await statusOf(plain, { length: length + 1 }), RECORD_STATUS.badLength, 'too much room')
  t.equal(await statusOf(plain, { length: 0 }), RECORD_STATUS.badLength, 'no room')
  for (const offset of [1, plain.length - 1, plain.length, plain.length + 1, 0xffffffff]) {
    t.equal(await statusOf(plain, { offset }), RECORD_STATUS.badHeader, `offset ${offset}`)
  }
})

t.test('a header that contradicts itself is refused whatever its CRC', async t => {
  const id = idOf(PIECE)
  const MiB = 1024 * 1024
  const hostile: Omit<Fields, 'id'>[] = [
    { magic: 'VVR2' },
    { kind: 0 },
    { kind: 4 },
    { flags: 4 },
    { flags: 0x80 },
    { headerLength: 63 },
    { headerLength: 0xffff },
    { reserved: 1 },
    { plainLength: 0 },
    { plainLength: 0xffffffff },
    { plainLength: PIECE.length + 1 },
    { storedLength: 0 },
    { storedLength: 0xffffffff },
    { storedLength: 0xffffffff, plainLength: 0xffffffff },
    { storedLength: PIECE.length + 1, plainLength: PIECE.length + 1 },
    { flags: 1, plainLength: 4 * MiB + 1 },
    { flags: 1, plainLength: PIECE.length },
    { flags: 1, storedLength: 0, plainLength: 100 },
    { flags: 2, storedLength: 16, plainLength: 1 },
    { flags: 2, storedLength: 15, plainLength: 0xffffffff },
  ]

  for (const fields of hostile) {
    const record = recordOf(PIECE, { id, ...fields })
    const keys = ((fields.flags ?? 0) & 2) === 0 ? PLAIN_STORE : ENCRYPTED_STORE
    const { status, plain } = await decodeOne(record, { ...keys, id, length: PIECE.length })
    const scan = await native().scanRecords(record, 0)

    t.equal(status, RECORD_STATUS.badHeader, JSON.stringify(fields))
    t.ok(plain.every(byte => byte === 0))
    t.equal(scan.fields.length, 0)
  }
})

t.test('a zstd bomb is refused by what its frame says, by what it holds, and by what follows it', async t => {
  const MiB = 1024 * 1024
  const bomb = Buffer.from(native().zstdCompress(new Uint8Array(16 * MiB), 3))
  const honest = Buffer.from(native().zstdCompress(PIECE, 3))
  const skippable = Buffer.from('502a4d1804000000deadbeef', 'hex')
  // The content size field of a single segment frame over 255 bytes is its length - 256.
  const lying = Buffer.from(native().zstdCompress(Buffer.alloc(1000, PIECE), 3))
  t.equal(lying[4]! >> 5, 0b011)
  lying.writeUInt16LE(2000 - 256, 5)

  const cases: [string, Buffer, number][] = [
    ['says 16 MiB for 4', bomb, 4 * MiB],
    ['says less than the record', honest, PIECE.length + 1],
    ['says more than the record', honest, PIECE.length - 1],
    ['holds less than it says', lying, 2000],
    ['is followed by bytes', Buffer.concat([honest, Buffer.alloc(1)]), PIECE.length],
    [
      'is followed by an empty frame',
      Buffer.concat([honest, native().zstdCompress(new Uint8Array(0), 1)]),
      PIECE.length,
    ],
    ['is preceded by a skippable frame', Buffer.concat([skippable, honest]), PIECE.length],
    ['is skippable', skippable, 100],
    ['is cut', honest.subarray(0, -1), PIECE.length],
    ['is rubbish', randomBytes(50), PIECE.length],
  ]
  for (const [name, frame, plainLength] of cases) {
    const id = idOf(PIECE)
    const inPlain = recordOf(frame, { id, flags: 1, plainLength })
    const encrypted = recordOf(frame, { id, flags: 3, plainLength }, CIPHER)

    t.equal((await decodeOne(inPlain, { id, length: plainLength })).status, RECORD_STATUS.badCompression, name)
    const { status } = await decodeOne(encrypted, { ...ENCRYPTED_STORE, id, length: plainLength })
    t.equal(status, RECORD_STATUS.badCompression, `${name}, encrypted`)
  }
})

t.test('damage to one record of a batch leaves the others whole', async t => {
  const pieces = Array.from({ length: 5 }, (_, i) => Buffer.alloc(3000, `piece ${i} `))
  const plain = Buffer.concat(pieces)
  const spans = Uint32Array.from(pieces.flatMap((_, i) => [i * 3000, 3000]))
  const ids = Buffer.concat(pieces.map(piece => idOf(piece)))
  const common = { kind: CHUNK, ids }
  const encoded = await native().encodeRecords(plain, spans, { ...common, firstRecord: 0, level: 1, verify: true })
  const offsets = encoded.places.filter((_, i) => i % 2 === 0)
  encoded.bytes[offsets[2]! + HEADER_BYTES + 3]! ^= 4
  const out = Buffer.alloc(plain.length, 0xee)

  const statuses = await native().decodeRecords(encoded.bytes, out, { ...common, offsets, outSpans: spans })

  t.same([...statuses], [0, 0, RECORD_STATUS.badCrc, 0, 0])
  plain.fill(0, 6000, 9000)
  t.ok(out.equals(plain))
})

t.test('a walk finds every record from any start, with the fields of its header', async t => {
  const pieces = [PIECE, randomBytes(500), Buffer.alloc(70_000, 'x')]
  const records = await Promise.all(pieces.map((piece, i) => encodeOne(piece, { ...ENCRYPTED_STORE, number: 10 + i })))
  const [first, second, third] = records as [Buffer, Buffer, Buffer]
  const pack = Buffer.concat([Buffer.alloc(96, 'pack header'), ...records])

  const all = await native().scanRecords(pack, 96)
  const later = await native().scanRecords(pack, 96 + first.length)
  const none = await native().scanRecords(pack, pack.length)
  const nonsense = await native().scanRecords(pack, 0)

  const at = [96, 96 + first.length, 96 + first.length + second.length]
  const rows = [
    [at[0], 10, 1, first[5], PIECE.length, first.length - HEADER_BYTES],
    [at[1], 11, 1, 2, 500, second.length - HEADER_BYTES],
    [at[2], 12, 1, 3, 70_000, third.length - HEADER_BYTES],
  ]
  t.same([...all.fields], rows.flat())
  t.ok(Buffer.from(all.ids).equals(Buffer.concat(pieces.map(piece => idOf(piece, ENCRYPTED_STORE)))))
  t.match(all, { end: pack.length, stop: SCAN_STOP.end })
  t.same([...later.fields], rows.slice(1).flat())
  t.match(none, { end: pack.length, stop: SCAN_STOP.end })
  t.match(nonsense, { end: 0, stop: SCAN_STOP.damaged })
})

t.test('a walk stops before the first record that is torn, damaged or no record', async t => {
  const [first, second] = [await encodeOne(PIECE), await encodeOne(PIECE, { number: 1 })]
  const damaged = Buffer.from(second)
  damaged[damaged.length - 1]! ^= 1

  const stops: [Buffer, number][] = [
    [second.subarray(0, -1), SCAN_STOP.torn],
    [second.subarray(0, 10), SCAN_STOP.torn],
    [damaged, SCAN_STOP.damaged],
    [Buffer.alloc(64), SCAN_STOP.damaged],
    [Buffer.alloc(4096), SCAN_STOP.damaged],
  ]
  for (const [rest, stop] of stops) {
    const scan = await native().scanRecords(Buffer.concat([first, rest]), 0)

    t.match(scan, { end: first.length, stop })
    t.equal(scan.fields.length, 6)
  }
})

t.test('no bytes whatever crash the decoder or the walk, or decode to what was not asked for', async t => {
  const good = recordOf(PIECE, { id: idOf(PIECE) })
  const bytes = fc.oneof(
    fc.uint8Array({ maxLength: 300 }),
    // Near misses get further in than noise does.
    fc.array(fc.tuple(fc.nat(good.length - 1), fc.nat(255)), { minLength: 1, maxLength: 4 }).map(changes => {
      const near = Buffer.from(good)
      for (const [at, value] of changes) near[at] = value
      return withCrc(near)
    }),
  )

  const holds = fc.assert(
    fc.asyncProperty(bytes, fc.nat(400), async (record, length) => {
      const { status, plain } = await decodeOne(record, { id: idOf(PIECE), length })
      const scan = await native().scanRecords(record, 0)
      const honest = status === RECORD_STATUS.ok ? plain.equals(PIECE) : plain.every(byte => byte === 0)
      return honest && scan.end <= record.length
    }),
    { numRuns: 2000 },
  )
  await t.resolves(holds)
})
