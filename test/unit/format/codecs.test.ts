import fc from 'fast-check'
import t from 'tap'

import { BackupError, WARNING_CODES } from '../../../src/base/errors.js'
import { toHex } from '../../../src/base/hex.js'
import { decodeCondemned, encodeCondemned } from '../../../src/format/condemned.js'
import { decodePackState, decodePlace, encodePackState, encodePlace } from '../../../src/format/index-value.js'
import { decodeJournal, encodeJournal } from '../../../src/format/journal.js'
import { decodeNotes, encodeNotes } from '../../../src/format/notes.js'
import {
  type PackEntry,
  decodePackFooter,
  decodePackHeader,
  decodePackTrailer,
  encodePackFooter,
  encodePackHeader,
  encodePackTrailer,
} from '../../../src/format/pack.js'
import { decodePoint, encodePoint } from '../../../src/format/point.js'
import { decodeStoreFile, encodeStoreFile } from '../../../src/format/store-file.js'
import { decodeTreeNode, encodeTreeNode } from '../../../src/format/tree-node.js'
import type { RecoveryPoint } from '../../../src/model/recovery-point.js'
import { native } from '../../../src/native/binding.js'

const bytesOf = (length: number) => fc.uint8Array({ minLength: length, maxLength: length })
const hexOf = (length: number) => bytesOf(length / 2).map(toHex)
const count = fc.nat({ max: 2 ** 31 - 1 })
const big = fc.integer({ min: 0, max: 2 ** 47 })
const text = fc.string({ unit: 'grapheme', maxLength: 12 })
const maybe = <T>(arbitrary: fc.Arbitrary<T>) => fc.option(arbitrary, { nil: undefined })
const STORE_ID = Buffer.alloc(16, 0x11)

/** A codec as the tests see it. */
interface Codec<T> {
  readonly values: fc.Arbitrary<T>
  encode(value: T): Uint8Array
  decode(bytes: Uint8Array): T
}

const packHeader: Codec<ReturnType<typeof decodePackHeader>> = {
  values: fc.record({
    kind: fc.constantFrom(1, 2),
    encrypted: fc.boolean(),
    storeId: bytesOf(16),
    packId: bytesOf(16),
    salt: bytesOf(32),
  }),
  encode: encodePackHeader,
  decode: decodePackHeader,
}

const treeNode: Codec<ReturnType<typeof decodeTreeNode>> = {
  values: fc
    .tuple(fc.nat({ max: 8 }), fc.array(fc.nat({ max: 3 }), { minLength: 128, maxLength: 128 }))
    .filter(([, states]) => new Set(states).size > 1)
    .map(([level, states]) => ({
      level,
      states: Uint8Array.from(states),
      ids: new Uint8Array(states.filter(state => state === 2).length * 32).fill(0x5a),
    })),
  encode: encodeTreeNode,
  decode: decodeTreeNode,
}

const condemned: Codec<ReturnType<typeof decodeCondemned>> = {
  values: fc.record({ generation: bytesOf(16), packIds: fc.array(bytesOf(16), { maxLength: 5 }) }),
  encode: encodeCondemned,
  decode: decodeCondemned,
}

const RUN = 'ab'.repeat(16)
const PLAIN = { storeId: new Uint8Array(16), salt: new Uint8Array(32), key: undefined }

const journal: Codec<ReturnType<typeof decodeJournal>> = {
  values: fc.record({
    kind: fc.constant('pull'),
    domainUuid: fc.uuid(),
    domainName: text,
    uri: text,
    checkpoint: text,
    baseCheckpoint: maybe(text),
    socket: text,
    scratch: fc.array(text, { maxLength: 3 }),
    frozen: fc.boolean(),
  }),
  encode: value => encodeJournal(RUN, value, PLAIN),
  decode: bytes => decodeJournal(RUN, bytes, { storeId: PLAIN.storeId, key: () => undefined, encrypted: false }),
}

const storeFile: Codec<ReturnType<typeof decodeStoreFile>> = {
  values: fc
    .record({
      id: hexOf(32),
      chunkSize: fc.constantFrom(65_536, 131_072, 4_194_304),
      level: fc.nat({ max: 19 }),
      created: big,
      compat: fc.array(text, { maxLength: 2 }),
      readonlyCompat: fc.array(text, { maxLength: 2 }),
      encryption: maybe(fc.record({ check: bytesOf(32) })),
    })
    .map(({ compat, readonlyCompat, ...file }) => ({
      ...file,
      hash: file.encryption === undefined ? ('sha256' as const) : ('hmac-sha256' as const),
      features: { compat, readonlyCompat, incompat: file.encryption === undefined ? [] : ['encryption'] },
    })),
  encode: encodeStoreFile,
  decode: decodeStoreFile,
}

const mode = fc.constantFrom('full' as const, 'incremental' as const)
const roots = [
  fc.constant({ kind: 'hole' as const }),
  fc.constant({ kind: 'zero' as const }),
  bytesOf(32).map(id => ({ kind: 'node' as const, id })),
] as const
const below = fc.record({
  contentId: bytesOf(32),
  images: fc.array(
    fc.record({
      path: text,
      format: text,
      virtualSize: big,
      fileBytes: maybe(big),
      modified: maybe(big),
      identity: maybe(text),
    }),
    { minLength: 1, maxLength: 3 },
  ),
})
const plainDisk = {
  target: text,
  size: big,
  root: fc.oneof(...roots),
  mode,
  source: fc.record({
    path: text,
    sourceType: text,
    format: text,
    identity: maybe(text),
    clusterSize: maybe(count),
    compat: maybe(text),
    extendedL2: maybe(fc.boolean()),
    lazyRefcounts: maybe(fc.boolean()),
    compressionType: maybe(text),
    dataFile: maybe(text),
    encryption: maybe(text),
    backingFiles: maybe(fc.array(text, { maxLength: 2 })),
    backingIdentities: maybe(fc.array(text, { maxLength: 2 })),
  }),
  statistics: fc.record({
    dirtyBytes: big,
    readBytes: big,
    newBytes: big,
    storedBytes: big,
    newChunks: count,
    newNodes: count,
  }),
}
const disk = fc.oneof(
  fc.record(plainDisk),
  fc.record({ ...plainDisk, root: fc.oneof(...roots, fc.constant({ kind: 'below' as const })), below }),
)

const points: fc.Arbitrary<RecoveryPoint> = fc.record({
  id: hexOf(32),
  storeId: fc.constant(toHex(STORE_ID)),
  runId: hexOf(32),
  sequence: count,
  domain: fc.record({ uuid: fc.uuid(), name: text }),
  time: big,
  mode,
  consistency: fc.record({
    kind: fc.constantFrom('filesystem' as const, 'crash' as const, 'offline' as const),
    frozenMs: maybe(count),
    reason: maybe(text),
  }),
  disks: fc.array(disk, { maxLength: 3 }),
  skipped: fc.array(fc.record({ target: text, reason: text }), { maxLength: 2 }),
  blobs: fc.array(fc.record({ name: text, id: bytesOf(32), length: count, path: maybe(text) }), { maxLength: 2 }),
  checkpoint: maybe(fc.record({ name: text, xml: text, disks: fc.array(text, { maxLength: 2 }) })),
  parent: maybe(hexOf(32)),
  warnings: fc.array(fc.record({ code: fc.constantFrom(...WARNING_CODES), message: text }), { maxLength: 2 }),
  durationMs: count,
  tags: fc.array(text, { maxLength: 2 }),
  comment: maybe(text),
  toolVersion: text,
})

function pointCodec(key: Uint8Array | undefined): Codec<RecoveryPoint> {
  const salt = Buffer.alloc(32, key === undefined ? 0 : 7)
  return {
    values: points,
    encode: point => encodePoint(point, { storeId: STORE_ID, salt, key }),
    decode: bytes => decodePoint(bytes, { storeId: STORE_ID, key: () => key }),
  }
}

const NOTES_ID = '0123456789abcdef0123456789abcdef'
const notesCodec: Codec<ReturnType<typeof decodeNotes>> = {
  values: fc.record({
    tags: fc.array(text, { maxLength: 2 }),
    hold: maybe(fc.record({ until: maybe(big), reason: maybe(text) })),
    verified: maybe(fc.record({ level: text, time: big, ok: fc.boolean(), detail: maybe(text) })),
  }),
  encode: value => encodeNotes(NOTES_ID, value, { storeId: STORE_ID, salt: Buffer.alloc(32), key: undefined }),
  decode: bytes => decodeNotes(NOTES_ID, bytes, { storeId: STORE_ID, key: () => undefined }),
}

/** As text, whatever kind of array the bytes are in, and whether an absent field is there or not. */
function comparable(value: unknown): string {
  if (value instanceof Uint8Array) return toHex(value)
  if (Array.isArray(value)) return `[${value.map(comparable).join()}]`
  if (typeof value !== 'object' || value === null) return JSON.stringify(value)
  const fields = Object.entries(value).filter(([, field]) => field !== undefined)
  return `{${fields
    .map(([key, field]) => `${key}:${comparable(field)}`)
    .sort()
    .join()}}`
}

function decodes<T>(codec: Codec<T>, bytes: Uint8Array): boolean {
  try {
    codec.decode(bytes)
    return true
  } catch (error) {
    if (error instanceof BackupError && (error.code === 'E_DAMAGED' || error.code === 'E_STORE_FORMAT')) return false
    throw error
  }
}

function check<T>(name: string, codec: Codec<T>, options: { readonly hasChecksum: boolean }): void {
  t.test(`${name}: what was encoded decodes to itself`, async t => {
    fc.assert(
      fc.property(codec.values, value => {
        const [back, wanted] = [comparable(codec.decode(codec.encode(value))), comparable(value)]
        if (back !== wanted) throw new Error(`${back} is not ${wanted}`)
      }),
      { numRuns: 100 },
    )
    t.pass()
  })

  t.test(`${name}: every flip and every cut is noticed`, async t => {
    fc.assert(
      fc.property(codec.values, fc.nat(), fc.integer({ min: 1, max: 255 }), fc.nat(), (value, at, flip, cut) => {
        const good = codec.encode(value)
        const flipped = Uint8Array.from(good)
        flipped[at % good.length]! ^= flip
        // A node has no checksum of its own: its id is one.
        if (decodes(codec, flipped) && options.hasChecksum) throw new Error(`a flip of byte ${at % good.length}`)
        if (decodes(codec, good.subarray(0, cut % good.length))) throw new Error('a truncated one decodes')
        if (decodes(codec, Buffer.concat([good, Uint8Array.of(flip)]))) throw new Error('a longer one decodes')
      }),
      { numRuns: 300 },
    )
    t.pass()
  })

  t.test(`${name}: noise is refused in order`, async t => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 400 }), bytes => {
        if (decodes(codec, bytes)) throw new Error('noise decodes')
      }),
      { numRuns: 500 },
    )
    t.pass()
  })
}

check('pack header', packHeader, { hasChecksum: true })
check('tree node', treeNode, { hasChecksum: false })
check('condemned set', condemned, { hasChecksum: true })
check('journal', journal, { hasChecksum: true })
check('store.json', storeFile, { hasChecksum: true })
check('recovery point', pointCodec(undefined), { hasChecksum: true })
check('encrypted recovery point', pointCodec(Buffer.alloc(32, 9)), { hasChecksum: true })
check('notes', notesCodec, { hasChecksum: true })

const entryLists = fc
  .array(
    fc.record({ id: bytesOf(32), plainLength: fc.integer({ min: 1, max: 70_000 }), kind: fc.constantFrom(1, 2, 3) }),
    {
      maxLength: 6,
    },
  )
  .map(list => {
    let offset = 96
    return list.map((entry, record): PackEntry => {
      const placed = { ...entry, offset, record, flags: 1, storedLength: entry.plainLength }
      offset += 64 + placed.storedLength
      return placed
    })
  })

t.test('pack footer and trailer come back, and no flip goes unnoticed', async t => {
  fc.assert(
    fc.property(entryLists, bytesOf(16), fc.nat(), fc.integer({ min: 1, max: 255 }), (entries, packId, at, flip) => {
      const footer = encodePackFooter(entries)
      const footerOffset = entries.reduce((end, entry) => end + 64 + entry.storedLength, 96)
      const footerCrc = native().crc32c(footer)
      const trailer = encodePackTrailer({ footerOffset, entryCount: entries.length, footerCrc, packId })
      const size = footerOffset + footer.length + trailer.length
      const tail = Buffer.concat([footer, trailer])
      const both: Codec<PackEntry[]> = {
        values: fc.constant([]),
        encode: () => tail,
        decode: bytes =>
          decodePackFooter(
            bytes.subarray(0, footer.length),
            decodePackTrailer(bytes.subarray(footer.length), size, packId),
          ),
      }

      if (comparable(both.decode(tail)) !== comparable(entries)) throw new Error('another footer')
      tail[at % tail.length]! ^= flip
      if (decodes(both, tail)) throw new Error('a flip went unnoticed')
    }),
    { numRuns: 300 },
  )
  t.pass()
})

t.test('index values hold under their own key only', async t => {
  const byte = fc.nat({ max: 255 })
  const place = fc.record({
    packId: bytesOf(16),
    offset: big,
    storedLength: count,
    plainLength: count,
    record: count,
    kind: byte,
    flags: byte,
  })
  const state = fc.record({ size: big, entryCount: count, kind: byte, sealed: fc.boolean() })
  fc.assert(
    fc.property(bytesOf(32), bytesOf(16), place, state, fc.nat(), fc.integer({ min: 1, max: 255 }), (...args) => {
      const [id, packId, where, what, at, flip] = args
      const [value, stateValue] = [encodePlace(id, where), encodePackState(packId, what)]
      if (comparable(decodePlace(id, value)) !== comparable(where)) throw new Error('another place')
      if (comparable(decodePackState(packId, stateValue)) !== comparable(what)) throw new Error('another state')
      const other = Uint8Array.from(id)
      other[at % 32]! ^= flip
      if (decodePlace(other, value) !== undefined) throw new Error('a value under another id')
      value[at % value.length]! ^= flip
      stateValue[at % stateValue.length]! ^= flip
      if (decodePlace(id, value) !== undefined) throw new Error('a flip of a place')
      if (decodePackState(packId, stateValue) !== undefined) throw new Error('a flip of a state')
    }),
    { numRuns: 300 },
  )
  t.equal(decodePlace(Buffer.alloc(32), new Uint8Array(40)), undefined, 'zeroes are no value')
})

t.test('a point of another store, or under a wrong key, is refused', async t => {
  const [point] = fc.sample(points, 1)
  const key = Buffer.alloc(32, 1)
  const bytes = encodePoint(point!, { storeId: STORE_ID, salt: Buffer.alloc(32), key })

  t.throws(() => decodePoint(bytes, { storeId: Buffer.alloc(16), key: () => key }), { code: 'E_DAMAGED' })
  t.throws(() => decodePoint(bytes, { storeId: STORE_ID, key: () => Buffer.alloc(32, 2) }), { code: 'E_DAMAGED' })
  t.throws(() => decodePoint(bytes, { storeId: STORE_ID, key: () => undefined }), { code: 'E_DAMAGED' })
})

t.test('an unknown feature is refused where it matters, and only there', async t => {
  const file = { id: '0'.repeat(32), chunkSize: 65_536, hash: 'sha256' as const, level: 1, created: 0 }
  const withFeatures = (features: object) =>
    encodeStoreFile({ ...file, features: { compat: [], readonlyCompat: [], incompat: [], ...features } })

  t.throws(() => decodeStoreFile(withFeatures({ incompat: ['future'] })), { code: 'E_STORE_FORMAT' })
  t.doesNotThrow(() => decodeStoreFile(withFeatures({ compat: ['future'], readonlyCompat: ['other'] })))
})

t.test('the bytes are those of docs/format.md', async t => {
  const packId = Buffer.alloc(16, 0xab)
  const header = encodePackHeader({ kind: 1, encrypted: false, storeId: STORE_ID, packId, salt: Buffer.alloc(32) })
  const states = new Uint8Array(128)
  states.set([2, 1, 0, 2])
  const ids = Buffer.concat([Buffer.alloc(32, 0xaa), Buffer.alloc(32, 0xbb)])
  const trailer = encodePackTrailer({ footerOffset: 96, entryCount: 0, footerCrc: 0, packId })

  t.equal(
    toHex(header.subarray(0, 92)),
    `56565041434b30310100010060000000${'11'.repeat(16)}${'ab'.repeat(16)}${'00'.repeat(44)}`,
  )
  t.equal(
    toHex(encodeTreeNode({ level: 0, states, ids })),
    `0100000086${'00'.repeat(31)}${'aa'.repeat(32)}${'bb'.repeat(32)}`,
  )
  t.equal(toHex(trailer.subarray(0, 44)), `5656504b454e443160000000000000000000000000000000${'ab'.repeat(16)}01000000`)
  t.equal(native().crc32c(Buffer.from('123456789')), 0xe3069283)
})

t.test('what leaves out images has a version of its own, and nothing else has', t => {
  const states = (filled: number) => Uint8Array.from({ length: 128 }, (_, child) => (child === 0 ? filled : 0))
  const nodeOf = (filled: number) => encodeTreeNode({ level: 0, states: states(filled), ids: new Uint8Array(0) })
  const [point] = fc.sample(
    points.filter(({ disks }) => disks.length > 0),
    1,
  )
  const [first] = point!.disks
  const { below: _, ...plain } = { ...first!, root: { kind: 'hole' as const } }
  const [leftOut] = fc.sample(below, 1)
  const seal = { storeId: STORE_ID, salt: Buffer.alloc(32), key: undefined }
  const versionOf = (disks: RecoveryPoint['disks']) => encodePoint({ ...point!, disks }, seal)[8]

  t.strictSame([nodeOf(1)[0], nodeOf(3)[0]], [1, 2])
  t.throws(() => decodeTreeNode(Uint8Array.of(1, ...nodeOf(3).subarray(1))), { code: 'E_DAMAGED' })
  t.throws(() => decodeTreeNode(Uint8Array.of(2, ...nodeOf(1).subarray(1))), { code: 'E_DAMAGED' })
  t.throws(
    () => decodeTreeNode(encodeTreeNode({ level: 0, states: new Uint8Array(128).fill(3), ids: new Uint8Array(0) })),
    {
      code: 'E_DAMAGED',
    },
  )
  t.equal(versionOf([plain]), 1)
  t.equal(versionOf([plain, { ...plain, below: leftOut! }]), 2)
  const nameless = encodePoint({ ...point!, disks: [{ ...plain, root: { kind: 'below' } }] }, seal)
  t.throws(() => decodePoint(nameless, { storeId: STORE_ID, key: () => undefined }), { code: 'E_DAMAGED' })
  t.end()
})
