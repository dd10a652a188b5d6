import { createHash, createHmac, randomBytes } from 'node:crypto'

import fc from 'fast-check'
import t from 'tap'

import { native } from '../../../src/native/binding.js'
import { type NativeFailure, isNativeFailure } from '../../../src/base/errors.js'
import { RECORD_STATUS } from '../../../src/native/codec.js'
import {
  CHUNK,
  CIPHER,
  decodeOne,
  ENCRYPTED_STORE,
  encodeOne,
  HEADER_BYTES,
  ID_KEY,
  idOf,
  PLAIN_STORE,
  recordOf,
} from './record-bytes.js'

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex')
const text = (length: number): Buffer => Buffer.alloc(length, 'a line of text that zstd likes, ')

t.test('CRC32C gives the answers of RFC 3720, section B.4', async t => {
  const ascending = Uint8Array.from({ length: 32 }, (_, i) => i)
  const readCommand = Buffer.from(
    '01c00000000000000000000000000000' + '14000000000004000000001400000018' + '28000000000000000200000000000000',
    'hex',
  )

  t.equal(native().crc32c(new Uint8Array(32)), 0x8a9136aa)
  t.equal(native().crc32c(new Uint8Array(32).fill(0xff)), 0x62a8ab43)
  t.equal(native().crc32c(ascending), 0x46dd794e)
  t.equal(native().crc32c(ascending.toReversed()), 0x113fdb5c)
  t.equal(native().crc32c(readCommand), 0xd9963a56)
  t.equal(native().crc32c(Buffer.from('123456789')), 0xe3069283)
  t.equal(native().crc32c(new Uint8Array(0)), 0)
})

t.test('CRC32C of any length at any alignment equals the bit by bit definition, in one part or two', async t => {
  const slow = (bytes: Uint8Array): number => {
    let crc = 0xffffffff
    for (const byte of bytes) {
      crc ^= byte
      for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1
    }
    return ~crc >>> 0
  }
  const bytes = randomBytes(10_000)

  for (const [start, end] of [
    [0, 1],
    [1, 8],
    [3, 3074],
    [0, 3072],
    [5, 6152],
    [7, 9999],
    [0, 10_000],
  ] as const) {
    const part = bytes.subarray(start, end)
    const middle = part.length >> 1
    const inTwo = native().crc32c(part.subarray(middle), native().crc32c(part.subarray(0, middle)))

    t.equal(native().crc32c(part), slow(part), `[${start}, ${end})`)
    t.equal(inTwo, slow(part), `[${start}, ${end}) in two`)
  }
})

t.test('an id is SHA-256 of FIPS 180 over kind and bytes', async t => {
  // No published message starts with 1, 2 or 3, so the vector is for the
  // reference, and the reference for the ids.
  t.equal(
    createHash('sha256').update('abc').digest('hex'),
    'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad',
  )
  for (const kind of [1, 2, 3]) {
    for (const plain of [text(1), text(55), text(56), text(63), text(64), text(65), text(65_536)]) {
      const { ids } = await native().hashChunks(plain, Uint32Array.of(0, plain.length), { kind })

      t.equal(hex(ids), createHash('sha256').update(Uint8Array.of(kind)).update(plain).digest('hex'))
    }
  }
})

t.test('a keyed id is HMAC-SHA-256 over kind and bytes, with the key of RFC 4231 test case 4', async t => {
  // Case 4 has the key 01..19 (25 bytes): HMAC pads keys with zeroes, so 32
  // bytes with seven zeroes at the end are the same key.
  const key = Uint8Array.from({ length: 32 }, (_, i) => (i < 25 ? i + 1 : 0))
  t.equal(
    createHmac('sha256', key).update(Buffer.alloc(50, 0xcd)).digest('hex'),
    '82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b',
  )
  const plain = text(1000)

  const { ids } = await native().hashChunks(plain, Uint32Array.of(0, 1000, 10, 20), { kind: 2, key })

  t.equal(
    hex(ids),
    hex(Buffer.concat([idOf(plain, { idKey: key }, 2), idOf(plain.subarray(10, 30), { idKey: key }, 2)])),
  )
})

t.test('a piece of zeroes has no id, and one bit anywhere gives it one', async t => {
  for (const length of [1, 7, 255, 256, 257, 4096]) {
    const bytes = new Uint8Array(length + 3)
    const spans = Uint32Array.of(3, length)

    const zero = await native().hashChunks(bytes, spans, { kind: CHUNK })
    t.same([...zero.zero], [1])
    t.same(hex(zero.ids), '00'.repeat(32))

    for (const at of new Set([0, length >> 1, length - 1])) {
      bytes.fill(0)[3 + at] = 0x80
      const other = await native().hashChunks(bytes, spans, { kind: CHUNK })
      t.same([...other.zero], [0], `length ${length}, byte ${at}`)
    }
  }
})

t.test('a record encrypted under the zero key as number 0 has the ciphertext of GCM test case 14', async t => {
  const cipher = { packKey: new Uint8Array(32), context: new Uint8Array(32) }
  const plain = new Uint8Array(16)

  const record = await encodeOne(plain, { cipher, level: 0 })

  t.equal(hex(record.subarray(HEADER_BYTES, HEADER_BYTES + 16)), 'cea7403d4d606b6e074ec5d3baf39d18')
})

t.test('a record is byte for byte what the format says', async t => {
  const plain = Buffer.from('sixteen bytes it')
  const number = 0x01020304

  const inPlain = await encodeOne(plain, { number, level: 0 })
  const encrypted = await encodeOne(plain, { ...ENCRYPTED_STORE, number, level: 0, kind: 3 })

  t.equal(hex(inPlain), hex(recordOf(plain, { id: idOf(plain), number })))
  const id = idOf(plain, ENCRYPTED_STORE, 3)
  t.equal(hex(encrypted), hex(recordOf(plain, { id, number, kind: 3 }, CIPHER)))
})

t.test('a compressed record holds one zstd frame with its size and no checksum', async t => {
  const plain = text(65_536)

  const record = await encodeOne(plain)

  t.equal(record[5], 1)
  t.equal(record.readUInt32LE(12), plain.length)
  t.equal(record.length, HEADER_BYTES + record.readUInt32LE(16))
  const frame = record.subarray(HEADER_BYTES)
  t.equal(frame.readUInt32LE(0), 0xfd2fb528)
  t.equal(frame[4]! & 0b0000_0100, 0, 'no checksum')
  t.not(frame[4]! & 0b1110_0000, 0, 'content size or single segment')
  t.equal(hex(native().zstdDecompress(frame, plain.length)), hex(plain))
})

t.test('a piece that does not shrink by 1/32 is stored plain, and the whole record is smaller otherwise', async t => {
  const random = randomBytes(65_536)
  const short = Uint8Array.of(9)

  t.equal((await encodeOne(random))[5], 0)
  t.equal((await encodeOne(short))[5], 0)
  t.equal((await encodeOne(text(65_536), { level: 0 }))[5], 0)
  t.ok((await encodeOne(text(65_536))).length < 65_536 / 32)
})

t.test('repeats of random bytes are found at every level', async t => {
  const plain = randomBytes(32_768)
  const twice = Buffer.concat([plain, plain])

  for (const level of [1, 3, 6, 9]) t.ok((await encodeOne(twice, { level })).length < 40_000, `level ${level}`)
  for (const level of [1, 3, 6, 9]) t.equal((await encodeOne(plain, { level }))[5], 0, `level ${level}`)
})

for (const [name, keys] of [
  ['plain', PLAIN_STORE],
  ['encrypted', ENCRYPTED_STORE],
] as const) {
  t.test(`any batch of pieces comes back from its ${name} records`, async t => {
    const piece = fc.tuple(fc.integer({ min: 1, max: 5000 }), fc.constantFrom('zero', 'text', 'random', 'mixed'))
    const batch = fc.record({
      pieces: fc.array(piece, { maxLength: 12 }),
      level: fc.constantFrom(0, 1, 3, 9),
      kind: fc.constantFrom(1, 2, 3),
      firstRecord: fc.constantFrom(0, 1, 77, 0xffffff00),
      verify: fc.boolean(),
    })

    const holds = fc.assert(
      fc.asyncProperty(batch, async ({ pieces, level, kind, firstRecord, verify }) => {
        const plain = Buffer.concat(pieces.map(([length, content]) => bytesLike(content, length)))
        const spans = spansOf(pieces.map(([length]) => length))
        const ids = Buffer.concat(
          pieces.map((_, i) => idOf(plain.subarray(spans[2 * i], spans[2 * i]! + spans[2 * i + 1]!), keys, kind)),
        )
        const encoded = await native().encodeRecords(plain, spans, { ...keys, kind, ids, firstRecord, level, verify })
        const out = Buffer.alloc(plain.length)

        const offsets = encoded.places.filter((_, i) => i % 2 === 0)
        const statuses = await native().decodeRecords(encoded.bytes, out, {
          ...keys,
          kind,
          ids,
          offsets,
          outSpans: spans,
        })

        return (
          statuses.every(status => status === RECORD_STATUS.ok) &&
          out.equals(plain) &&
          encoded.bytes.length === encoded.places.reduce((sum, n, i) => sum + (i % 2 === 1 ? n : 0), 0)
        )
      }),
      { numRuns: 60 },
    )
    await t.resolves(holds)
  })
}

t.test('the largest pieces are taken and one byte more is not', async t => {
  const MiB = 1024 * 1024
  for (const [kind, most] of [
    [1, 4 * MiB],
    [2, 16 * MiB],
  ] as const) {
    const plain = text(most + 1)
    const largest = plain.subarray(0, most)

    const record = await encodeOne(largest, { kind })
    const { status, plain: back } = await decodeOne(record, { kind, id: idOf(largest, {}, kind), length: most })
    t.equal(status, RECORD_STATUS.ok)
    t.ok(back.equals(largest))
    await t.rejects(encodeOne(plain, { kind }), TypeError)
  }
})

/** Random, but never all zero: such a piece has no id. */
function notZero(length: number): Buffer {
  const bytes = randomBytes(length)
  bytes[0] = bytes[0]! | 1
  return bytes
}

t.test('pieces of one length get the ids that each has alone, however many there are', async t => {
  // Two, and sixteen, are hashed by other code than one: every length around the edges of its blocks, every way to end a group.
  for (const key of [undefined, ID_KEY]) {
    for (const length of [1, 2, 54, 55, 56, 62, 63, 64, 65, 118, 119, 120, 126, 127, 128, 129, 4096, 65_536]) {
      for (const count of length < 4096 ? [1, 2, 3, 7, 8, 9, 15, 16, 17, 24, 33] : [3, 8, 17]) {
        const pieces = Array.from({ length: count }, (_, i) => (i === 2 ? text(length) : notZero(length)))
        const spans = Uint32Array.from({ length: 2 * count }, (_, i) => (i % 2 === 0 ? (i / 2) * length : length))

        const { ids, sums } = await native().hashChunks(Buffer.concat(pieces), spans, { kind: CHUNK, key })

        const expected = Buffer.concat(pieces.map(piece => idOf(piece, { idKey: key })))
        if (!expected.equals(ids)) t.fail(`${count} of ${length} bytes`)
        if (pieces.some((piece, i) => native().crc32c(piece) !== sums[i])) t.fail(`sums of ${count} of ${length} bytes`)
      }
      t.pass(`${length} bytes`)
    }
  }
})

t.test('pieces of many lengths, some of them zero, get the ids that each has alone', async t => {
  for (const key of [undefined, ID_KEY]) {
    const pieces = Array.from({ length: 300 }, (_, i) => {
      if (i % 13 === 5) return Buffer.alloc(700)
      return notZero(i % 40 < 20 ? 700 : i < 200 ? 1 + i : 64)
    })
    const starts = pieces.map((_, i) => pieces.slice(0, i).reduce((sum, piece) => sum + piece.length, 0))
    const spans = Uint32Array.from(pieces.flatMap((piece, i) => [starts[i]!, piece.length]))

    const { ids, zero } = await native().hashChunks(Buffer.concat(pieces), spans, { kind: CHUNK, key })

    pieces.forEach((piece, i) => {
      const isZero = piece.every(byte => byte === 0)
      if ((zero[i] === 1) !== isZero) t.fail(`piece ${i} is zero or not`)
      const own = Buffer.from(ids.subarray(32 * i, 32 * i + 32))
      if (!own.equals(isZero ? Buffer.alloc(32) : idOf(piece, { idKey: key }))) t.fail(`piece ${i} has the wrong id`)
    })
    t.pass(key === undefined ? 'plain' : 'keyed')
  }
})

t.test('verify refuses bytes that are not those that were named', async t => {
  const plain = text(5000)
  const spans = Uint32Array.of(0, 5000)
  const { ids, sums } = await native().hashChunks(plain, spans, { kind: CHUNK })
  const options = { kind: CHUNK, ids, sums, firstRecord: 0, level: 1 }

  await t.resolves(native().encodeRecords(plain, spans, { ...options, verify: true }))
  plain[4999] = 255 - plain[4999]!
  await t.rejects(native().encodeRecords(plain, spans, { ...options, verify: true }), { code: 'E_INTERNAL' })
  await t.resolves(native().encodeRecords(plain, spans, { ...options, verify: false }))
})

t.test('records go into the buffer that is lent, and it must be large enough for any', async t => {
  const plain = Buffer.concat([text(5000), randomBytes(5000)])
  const spans = Uint32Array.of(0, 5000, 5000, 5000)
  const { ids, sums } = await native().hashChunks(plain, spans, { kind: CHUNK })
  const options = { kind: CHUNK, ids, sums, firstRecord: 7, level: 1, verify: true }
  const own = await native().encodeRecords(plain, spans, options)
  const out = Buffer.alloc(20_000, 1).subarray(100)

  const lent = await native().encodeRecords(plain, spans, { ...options, out })

  t.equal(lent.bytes.buffer, out.buffer)
  t.equal(lent.bytes.byteOffset, out.byteOffset)
  t.same(hex(lent.bytes), hex(own.bytes))
  t.same(lent.places, own.places)
  t.throws(() => native().encodeRecords(plain, spans, { ...options, out: out.subarray(0, 10_000) }), /options\.out/)
})

t.test('many batches at once do not disturb one another', async t => {
  const batches = Array.from({ length: 24 }, (_, i) => ({
    plain: i % 3 === 0 ? randomBytes(70_000) : text(70_000 + i),
    keys: i % 2 === 0 ? PLAIN_STORE : { cipher: { ...CIPHER, packKey: new Uint8Array(32).fill(i) }, idKey: ID_KEY },
  }))

  const results = await Promise.all(
    batches.map(async ({ plain, keys }) => {
      const record = await encodeOne(plain, { ...keys, level: 3 })
      return decodeOne(record, { ...keys, id: idOf(plain, keys), length: plain.length })
    }),
  )

  t.same(
    results.map(({ status }) => status),
    batches.map(() => RECORD_STATUS.ok),
  )
  t.ok(results.every(({ plain }, i) => plain.equals(batches[i]!.plain)))
})

t.test('small things are compressed and come back, and a lie about their length is E_DAMAGED', async t => {
  for (const plain of [new Uint8Array(0), text(1), text(100_000), randomBytes(1000)]) {
    const frame = native().zstdCompress(plain, 3)

    t.equal(hex(native().zstdDecompress(frame, plain.length)), hex(plain))
    for (const lie of [plain.length + 1, Math.max(plain.length - 1, plain.length === 0 ? 1 : 0), 0xffffffff]) {
      t.equal(failureOf(() => native().zstdDecompress(frame, lie)).code, 'E_DAMAGED')
    }
    const twice = Buffer.concat([frame, frame])
    t.equal(failureOf(() => native().zstdDecompress(twice, plain.length)).code, 'E_DAMAGED')
    t.equal(failureOf(() => native().zstdDecompress(frame.subarray(0, -1), plain.length)).code, 'E_DAMAGED')
  }
  t.equal(failureOf(() => native().zstdDecompress(new Uint8Array(0), 0)).code, 'E_DAMAGED')
})

t.test('pieces are compressed at their own places, and those that do not shrink have no frame', async t => {
  const plain = Buffer.concat([text(4096), randomBytes(512), Buffer.alloc(0), text(1), Buffer.alloc(8192, 7)])
  const spans = spansOf([4096, 512, 0, 1, 8192])
  const out = new Uint8Array(plain.length)

  const lengths = await native().zstdPieces(plain, spans, { level: 3, out })

  t.same(
    [...lengths].map(length => length > 0),
    [true, false, false, false, true],
  )
  for (const [i, length] of lengths.entries()) {
    const offset = spans[i * 2]!
    const size = spans[i * 2 + 1]!
    if (length === 0) continue
    const frame = out.subarray(offset, offset + length)
    t.equal(hex(native().zstdDecompress(frame, size)), hex(plain.subarray(offset, offset + size)))
  }
})

t.test('a wrong argument is a TypeError that names it', async t => {
  const bytes = new Uint8Array(100)
  const ids = new Uint8Array(32)
  const good = { kind: 1, ids, firstRecord: 0, level: 1, verify: false }
  const call = (options: object, spans: unknown = Uint32Array.of(0, 100)): (() => unknown) => {
    return () => native().encodeRecords(bytes, spans as Uint32Array, options as typeof good)
  }

  const cases: [() => unknown, RegExp][] = [
    [call({ ...good, kind: 0 }), /options\.kind/],
    [call({ ...good, kind: 1.5 }), /options\.kind/],
    [call({ ...good, level: 23 }), /options\.level/],
    [call({ ...good, level: Number.NaN }), /options\.level/],
    [call({ ...good, firstRecord: 2 ** 32 }), /options\.firstRecord/],
    [call({ ...good, firstRecord: 2 ** 32 - 1 }, Uint32Array.of(0, 1, 0, 1)), /options\.firstRecord/],
    [call({ ...good, verify: 1 }), /options\.verify/],
    [call({ ...good, ids: new Uint8Array(31) }), /options\.ids/],
    [call({ ...good, cipher: { packKey: ids, context: new Uint8Array(33) } }), /options\.cipher\.context/],
    [call({ ...good, cipher: { packKey: 'secret', context: ids } }), /options\.cipher\.packKey/],
    [call({ ...good, sums: new Uint32Array(2) }), /options\.sums/],
    [call(good, Uint32Array.of(0, 101)), /spans/],
    [call(good, Uint32Array.of(0xffffffff, 1)), /spans/],
    [call(good, Uint32Array.of(1, 0xffffffff)), /spans/],
    [call(good, Uint32Array.of(0)), /spans/],
    [call(good, Uint32Array.of(0, 0)), /spans/],
    [call(good, [0, 1]), /spans/],
    [() => native().encodeRecords(bytes, Uint32Array.of(), undefined as unknown as typeof good), /options/],
    [() => native().hashChunks('x' as unknown as Uint8Array, Uint32Array.of(), { kind: 1 }), /bytes/],
    [() => native().scanRecords(bytes, 101), /offset/],
    [() => native().scanRecords(bytes, -1), /offset/],
    [() => native().crc32c(bytes, -1), /seed/],
    [() => native().zstdCompress(bytes, 0), /level/],
    [
      () => native().zstdPieces(bytes, Uint32Array.of(0, 100), { level: 0, out: new Uint8Array(100) }),
      /options\.level/,
    ],
    [() => native().zstdPieces(bytes, Uint32Array.of(0, 100), { level: 1, out: new Uint8Array(99) }), /options\.out/],
    [() => native().zstdPieces(bytes, Uint32Array.of(1, 100), { level: 1, out: new Uint8Array(100) }), /spans/],
  ]
  for (const [attempt, message] of cases) t.throws(attempt, { name: 'TypeError', message })
})

function failureOf(attempt: () => unknown): NativeFailure {
  try {
    attempt()
  } catch (error) {
    if (isNativeFailure(error)) return error
    throw error
  }
  throw new Error('nothing was thrown')
}

function spansOf(lengths: readonly number[]): Uint32Array {
  let offset = 0
  return Uint32Array.from(lengths.flatMap(length => [(offset += length) - length, length]))
}

function bytesLike(content: string, length: number): Buffer {
  if (content === 'zero') return Buffer.alloc(length)
  if (content === 'text') return text(length)
  const random = randomBytes(length)
  return content === 'random' ? random : random.fill('x', length >> 2)
}

t.test('the checksum of an index value is over the id, then the value without it', t => {
  const codec = native()
  const [ids, values] = [randomBytes(3 * 32), randomBytes(3 * 40)]
  const expected = [0, 1, 2].map(row =>
    codec.crc32c(values.subarray(row * 40, row * 40 + 36), codec.crc32c(ids.subarray(row * 32, (row + 1) * 32))),
  )
  t.strictSame([...codec.indexSums(ids, values)], expected)
  t.strictSame([...codec.indexSums(new Uint8Array(0), new Uint8Array(0))], [])
  t.throws(() => codec.indexSums(ids.subarray(1), values), TypeError)
  t.throws(() => codec.indexSums(ids, values.subarray(1)), TypeError)
  t.end()
})
