import { randomBytes } from 'node:crypto'

import fc from 'fast-check'
import t from 'tap'

import {
  FrameReader,
  type IndexAnswer,
  type IndexRequest,
  MAX_FRAME_ENTRIES,
  decodeAnswer,
  decodeHello,
  decodeRequest,
  encodeAnswer,
  encodeHello,
  encodeRequest,
  isSpoken,
} from '../../../src/format/index-frame.js'
import { errorCodeOf } from '../../../src/base/errors.js'

const state = { size: 2 ** 33 + 5, entryCount: 7, kind: 1, sealed: true }
const packs = [
  { id: '00112233445566778899aabbccddeeff', state },
  { id: 'ffeeddccbbaa99887766554433221100', state: { ...state, sealed: false } },
]
const bytes = (length: number) => Uint8Array.from(randomBytes(length))

const REQUESTS: readonly IndexRequest[] = [
  { kind: 'get', ids: bytes(3 * 32) },
  { kind: 'get', ids: bytes(0) },
  { kind: 'put', ids: bytes(2 * 32), values: bytes(2 * 40), packs },
  { kind: 'put', ids: bytes(0), values: bytes(0), packs: [] },
  { kind: 'delete', ids: bytes(5 * 32), values: bytes(5 * 40) },
  { kind: 'page', after: undefined },
  { kind: 'page', after: bytes(32) },
  { kind: 'packPage', after: undefined },
  { kind: 'packPage', after: packs[0]!.id },
  { kind: 'getPacks', packIds: packs.map(({ id }) => id) },
  { kind: 'deletePacks', packIds: [] },
  { kind: 'reset' },
]

const ANSWERS: readonly IndexAnswer[] = [
  { kind: 'values', values: bytes(3 * 40) },
  { kind: 'entries', ids: bytes(4 * 32), values: bytes(4 * 40) },
  { kind: 'packs', packs },
  { kind: 'done' },
  { kind: 'failed', message: 'no space left' },
  { kind: 'busy' },
]

/** With bytes as hex, so that views and arrays compare. */
function plain(value: unknown): unknown {
  if (value instanceof Uint8Array) return Buffer.from(value).toString('hex')
  if (Array.isArray(value)) return value.map(plain)
  if (typeof value !== 'object' || value === null) return value
  return Object.fromEntries(Object.entries(value).map(([key, field]) => [key, plain(field)]))
}

function bodyOf(frame: Uint8Array): Uint8Array {
  const [body] = new FrameReader().push(frame)
  return body!
}

t.test('requests and answers come back as they were', async t => {
  REQUESTS.forEach((content, number) => {
    t.strictSame(plain(decodeRequest(bodyOf(encodeRequest({ number, content })))), plain({ number, content }))
  })
  ANSWERS.forEach((content, number) => {
    t.strictSame(plain(decodeAnswer(bodyOf(encodeAnswer({ number, content })))), plain({ number, content }))
  })
  t.ok(isSpoken(decodeHello(bodyOf(encodeHello()))))
})

t.test('frames are cut out of a stream however it arrives', async () => {
  const frames = REQUESTS.map((content, number) => encodeRequest({ number, content }))
  const stream = Buffer.concat(frames)
  fc.assert(
    fc.property(fc.array(fc.integer({ min: 1, max: 200 }), { minLength: 1 }), steps => {
      const reader = new FrameReader()
      const bodies: Uint8Array[] = []
      for (let at = 0, step = 0; at < stream.length; step++) {
        const length = steps[step % steps.length]!
        bodies.push(...reader.push(stream.subarray(at, at + length)))
        at += length
      }
      return Buffer.concat(bodies).equals(Buffer.concat(frames.map(frame => frame.subarray(4))))
    }),
  )
})

t.test('the largest put and page pass, one entry more does not', async t => {
  const put = (count: number) =>
    encodeRequest({
      number: 1,
      content: { kind: 'put', ids: bytes(count * 32), values: bytes(count * 40), packs: Array(count).fill(packs[0]) },
    })

  t.equal(decodeRequest(bodyOf(put(MAX_FRAME_ENTRIES))).content.kind, 'put')
  t.throws(() => bodyOf(put(MAX_FRAME_ENTRIES + 1)), { code: 'E_DAMAGED' })
  const get = encodeRequest({ number: 1, content: { kind: 'get', ids: bytes((MAX_FRAME_ENTRIES + 1) * 32) } })
  t.throws(() => decodeRequest(bodyOf(get)), { code: 'E_DAMAGED' })
})

t.test('a length that no frame has is refused before a byte of it is taken', async t => {
  for (const length of [0, 4, 2 ** 24, 2 ** 32 - 1]) {
    const head = Buffer.alloc(4)
    head.writeUInt32LE(length)
    t.throws(() => new FrameReader().push(head), { code: 'E_DAMAGED' }, `${length}`)
  }
})

t.test('garbage is E_DAMAGED and nothing else', async () => {
  const decoders = [decodeRequest, decodeAnswer, decodeHello, (body: Uint8Array) => new FrameReader().push(body)]
  const kinds = [1, 2, 3, 4, 5, 6, 7, 8, 65, 66, 67, 68, 69, 70]
  fc.assert(
    fc.property(
      fc.uint8Array({ maxLength: 400 }),
      fc.option(fc.constantFrom(...kinds), { nil: undefined }),
      fc.constantFrom(...decoders),
      (body, kind, decode) => {
        if (kind !== undefined && body.length > 4) body[4] = kind
        try {
          decode(body)
          return true
        } catch (error) {
          return errorCodeOf(error) === 'E_DAMAGED'
        }
      },
    ),
    { numRuns: 2000 },
  )
})
