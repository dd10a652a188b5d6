import fc from 'fast-check'
import t from 'tap'

import { errorCodeOf } from '../../../src/base/errors.js'
import { decodeInstantState, encodeInstantState } from '../../../src/format/instant-state.js'
import {
  decodeClientFlags,
  decodeExportName,
  decodeExportRequest,
  decodeMetaQuery,
  decodeOptionHeader,
  encodeOption,
} from '../../../src/format/nbd-options.js'
import { decodeRequest, encodeRequest } from '../../../src/format/nbd-wire.js'

const DECODERS = [
  decodeClientFlags,
  decodeExportName,
  decodeExportRequest,
  decodeMetaQuery,
  decodeOptionHeader,
  decodeRequest,
]

t.test('any bytes decode to something or are E_NBD_PROTOCOL', async t => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 80 }), fc.nat(DECODERS.length - 1), (bytes, which) => {
      try {
        DECODERS[which]!(bytes)
        return true
      } catch (error) {
        return errorCodeOf(error) === 'E_NBD_PROTOCOL'
      }
    }),
    { numRuns: 3000 },
  )
  t.pass('3000 runs')
})

t.test('a request comes back as it was, and one byte of a wrong magic is refused', async t => {
  fc.assert(
    fc.property(
      fc.nat(65_535),
      fc.nat(65_535),
      fc.uint8Array({ minLength: 8, maxLength: 8 }),
      fc.maxSafeNat(),
      (flags, type, cookie, offset) => {
        const request = { flags, type, cookie, offset, length: 77 }
        t.strictSame(decodeRequest(encodeRequest(request)), { ...request, cookie: Uint8Array.from(cookie) })
      },
    ),
    { numRuns: 50 },
  )
  const bytes = encodeRequest({ flags: 0, type: 0, cookie: new Uint8Array(8), offset: 0, length: 1 })
  bytes[0] = 0
  t.throws(() => decodeRequest(bytes), { code: 'E_NBD_PROTOCOL' })
  t.throws(() => decodeRequest(bytes.subarray(1)), { code: 'E_NBD_PROTOCOL' })
})

t.test('an option says its length', async t => {
  t.strictSame(decodeOptionHeader(encodeOption(7, Buffer.alloc(9)).subarray(0, 16)), { option: 7, length: 9 })
})

t.test('the state of an instant restore comes back, and a spoilt one is E_DAMAGED', async t => {
  const state = {
    id: '0123abcd',
    storeId: 's',
    pointId: 'p',
    domain: { uuid: 'u', name: 'n' },
    connect: undefined,
    socket: '/run/x.sock',
    disks: [{ target: 'vda', image: '/a.qcow2' }],
    files: ['/nvram/x_VARS.fd'],
    hydratedXml: '<domain/>',
    started: true,
  }
  const bytes = Buffer.from(encodeInstantState(state))
  t.strictSame(decodeInstantState(bytes), state)
  for (const [from, to] of [
    ['"format": 1', '"format": 2'],
    ['"vda"', '7'],
    ['{', ''],
  ] as const) {
    t.throws(() => decodeInstantState(Buffer.from(bytes.toString().replace(from, to))), { code: 'E_DAMAGED' })
  }
})
