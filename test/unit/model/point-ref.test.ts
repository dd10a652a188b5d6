import fc from 'fast-check'
import t from 'tap'

import { BackupError } from '../../../src/base/errors.js'
import type { AddressedPoint } from '../../../src/model/point-ref.js'
import { formatPointRef, parsePointRef, resolvePointRef, shortId } from '../../../src/model/point-ref.js'

const DB = { uuid: '11111111-1111-4111-8111-111111111111', name: 'db01' }
const WEB = { uuid: '22222222-2222-4222-8222-222222222222', name: 'web01' }

const points: AddressedPoint[] = [
  at('a20c551', DB, { time: '2026-11-01T01:03:00Z', sequence: 1, tags: ['pre-upgrade'] }),
  at('3f9c2a1', DB, { time: '2026-11-19T01:01:00Z', sequence: 2 }),
  at('91be7d0', DB, { time: '2026-11-20T01:01:22Z', sequence: 3 }),
  at('91be7d1', WEB, { time: '2026-11-20T01:02:00Z', sequence: 1 }),
]

function at(
  id: string,
  domain: AddressedPoint['domain'],
  facts: { time: string; sequence: number; tags?: string[] },
): AddressedPoint {
  return { id: id.padEnd(32, '0'), domain, tags: [], ...facts, time: Date.parse(facts.time) }
}

function find(text: string, among = points): string {
  return shortId(resolvePointRef(parsePointRef(text), among, 'Europe/Berlin').id)
}

t.test('a point is written [DOMAIN]@REF[:DISK][/PATH]', async t => {
  t.strictSame(parsePointRef('db01@latest'), {
    domain: 'db01',
    ref: { kind: 'back', back: 0 },
    disk: undefined,
    path: undefined,
  })
  t.strictSame(parsePointRef('@~12:vda'), {
    domain: undefined,
    ref: { kind: 'back', back: 12 },
    disk: 'vda',
    path: undefined,
  })
  t.match(parsePointRef('db01@91be7d0:vda/etc/fstab'), { ref: { text: '91be7d0' }, disk: 'vda', path: '/etc/fstab' })
})

t.test('a time keeps its colons, a disk follows it, and a path may hold an @', async t => {
  t.match(parsePointRef('db01@2026-11-20T02:01:vdb/a@b:c'), {
    ref: { text: '2026-11-20T02:01' },
    disk: 'vdb',
    path: '/a@b:c',
  })
  t.match(parsePointRef('@2026-11-20 02:01:22+01:00'), { ref: { text: '2026-11-20 02:01:22+01:00' } })
  t.match(parsePointRef('odd@name@latest'), { domain: 'odd@name', ref: { back: 0 } })
})

t.test('what is not of the form is a usage error that shows the form', async t => {
  for (const text of ['db01', '', '@', 'db01@', 'db01@~x', '@latest:', '@a:b:c']) {
    t.throws(() => parsePointRef(text), { code: 'E_USAGE' }, text)
  }
  t.match(thrown(() => parsePointRef('91be7d0')).hints[0], /@91be7d0/)
  t.match(thrown(() => parsePointRef('db01')).hints[0], /db01@latest/)
})

t.test('a reference written down reads back as itself', async () => {
  const part = fc.stringMatching(/^[a-z][a-z0-9-]{0,8}$/)
  const refs = fc.oneof(
    fc.record({ kind: fc.constant('back' as const), back: fc.nat(99) }),
    fc.record({ kind: fc.constant('text' as const), text: part.filter(text => text !== 'latest') }),
  )
  const option = <T>(value: fc.Arbitrary<T>) => fc.option(value, { nil: undefined })
  const path = option(fc.string().map(text => `/${text}`))
  fc.assert(
    fc.property(
      fc.record({ domain: option(part), ref: refs, disk: option(part), path }, { noNullPrototype: true }),
      ref => {
        return JSON.stringify(parsePointRef(formatPointRef(ref))) === JSON.stringify(ref)
      },
    ),
  )
})

t.test('latest and ~N count back by sequence within one domain, named or by UUID', async t => {
  t.equal(find('db01@latest'), '91be7d0')
  t.equal(find('db01@~2'), 'a20c551')
  t.equal(find(`${DB.uuid.toUpperCase()}@~1`), '3f9c2a1')
  t.throws(() => find('db01@~3'), { code: 'E_NOT_FOUND', why: /only 3/ })
  t.throws(() => find('@latest'), { code: 'E_USAGE', hints: [/db01@latest/, /web01@latest/] })
})

t.test('an id is known by its first six characters, in either case', async t => {
  t.equal(find('@a20c55'), 'a20c551')
  t.equal(find('@91BE7D1'), '91be7d1')
  t.throws(() => find('@91be7d'), {
    code: 'E_USAGE',
    message: /2 recovery points/,
    hints: [/db01@91be7d0/, /web01@91be7d1/],
  })
  t.equal(find('web01@91be7d'), '91be7d1')
  t.throws(() => find('@a20c5'), { code: 'E_NOT_FOUND', why: /first 6/ })
})

t.test('a date or time prefix is read in the local zone, an offset in its own', async t => {
  t.equal(find('db01@2026-11-19'), '3f9c2a1')
  t.equal(find('@2026-11-20T02:01'), '91be7d0')
  t.equal(find('@2026-11-20T01:01Z'), '91be7d0')
  t.equal(find('@2026-11-20T02:01:22+01:00'), '91be7d0')
  t.throws(() => find('@2026-11-20T02:01:23+01:00'), { code: 'E_NOT_FOUND' })
  t.throws(() => find('db01@2026-11'), { code: 'E_USAGE', message: /3 recovery points/ })
  t.throws(() => find('db01@2025'), { code: 'E_NOT_FOUND' })
})

t.test('a tag names its point, a misspelt one is suggested', async t => {
  t.equal(find('db01@pre-upgrade'), 'a20c551')
  t.throws(() => find('db01@pre-upgade'), { code: 'E_NOT_FOUND', hints: [/the tag pre-upgrade/] })
})

t.test('whatever is typed, it finds a point or says in one of two ways why not', async () => {
  const piece = fc.constantFrom(
    '@',
    ':',
    '/',
    '~',
    '1',
    'latest',
    '2026-11-20',
    'T02:01',
    '91be7d',
    'db01',
    'vda',
    '+01:00',
    '\n',
  )
  const typed = fc.oneof(
    fc.string(),
    fc.array(piece, { maxLength: 8 }).map(pieces => pieces.join('')),
  )
  fc.assert(
    fc.property(typed, text => {
      try {
        return find(text).length === 7
      } catch (error) {
        return error instanceof BackupError && (error.code === 'E_USAGE' || error.code === 'E_NOT_FOUND')
      }
    }),
    { numRuns: 2000 },
  )
})

t.test('an unknown domain is not found, with the nearest name', async t => {
  t.throws(() => find('db1@latest'), { code: 'E_NOT_FOUND', message: /Did you mean "db01"/ })
  t.throws(() => find('db01@latest', []), { code: 'E_NOT_FOUND' })
  t.throws(() => find('@latest', []), { code: 'E_NOT_FOUND' })
})

t.test('a renamed domain keeps its history, and its old name can go to another', async t => {
  const renamed = { ...DB, name: 'db-old' }
  const heir = { ...WEB, name: 'db01' }
  const history = [
    at('aaaaaa1', DB, { time: '2026-01-01T00:00:00Z', sequence: 1 }),
    at('aaaaaa2', renamed, { time: '2026-02-01T00:00:00Z', sequence: 2 }),
  ]

  t.equal(find('db-old@~1', history), 'aaaaaa1')
  t.equal(find('db01@latest', history), 'aaaaaa2')
  const withHeir = [...history, at('bbbbbb1', heir, { time: '2026-03-01T00:00:00Z', sequence: 1 })]
  t.equal(find('db01@latest', withHeir), 'bbbbbb1')
})

t.test('two domains of one name are told apart by UUID', async t => {
  const twins = [
    at('aaaaaa1', DB, { time: '2026-01-01T00:00:00Z', sequence: 1 }),
    at('bbbbbb1', { ...WEB, name: 'db01' }, { time: '2026-01-01T00:00:00Z', sequence: 1 }),
  ]

  t.throws(() => find('db01@latest', twins), { code: 'E_USAGE', hints: [new RegExp(DB.uuid), new RegExp(WEB.uuid)] })
})

function thrown(run: () => unknown): { hints: readonly string[] } {
  try {
    run()
  } catch (error) {
    return error as { hints: readonly string[] }
  }
  throw new Error('it did not throw')
}
