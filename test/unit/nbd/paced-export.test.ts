import t from 'tap'

import { Pace } from '../../../src/base/pace.js'
import { PacedExport } from '../../../src/nbd/paced-export.js'
import { DrivenClock } from '../../fakes/driven-clock.js'
import { FakeExport } from '../../fakes/fake-export.js'

const never = new AbortController().signal
const KIB = 1024
const MIB = 1024 * KIB

t.test('a paced export gives the same bytes, in pieces of a burst', async t => {
  const clock = new DrivenClock(0)
  const bytes = Buffer.from(Array.from({ length: 2 * MIB }, (_, i) => (i * 7 + (i >> 12)) & 255))
  const source = new FakeExport(bytes)
  const paced = new PacedExport(
    Object.assign(source, { [Symbol.asyncDispose]: () => Promise.resolve() }),
    new Pace(MIB, clock),
  )
  const into = Buffer.alloc(2 * MIB)
  const pieces = Float64Array.of(1_500_000, 500_000, 0, 3 * KIB, 700 * KIB, 500_000)

  const reading = paced.read(pieces, into, never)
  await clock.advance(1000)
  t.ok(source.reads.length > 0 && source.reads.reduce((sum, { length }) => sum + length, 0) < 1.2 * MIB)
  await clock.advance(1000)
  await reading

  t.ok(into.subarray(0, 500_000).equals(bytes.subarray(1_500_000, 2_000_000)))
  t.ok(into.subarray(500_000, 500_000 + 700 * KIB).equals(bytes.subarray(3 * KIB, 703 * KIB)))
  t.ok(source.reads.every(({ length }) => length <= 128 * KIB))
})

t.test('nothing to read needs no time', async () => {
  const source = Object.assign(new FakeExport(Buffer.alloc(512)), { [Symbol.asyncDispose]: () => Promise.resolve() })
  await new PacedExport(source, new Pace(1, new DrivenClock(0))).read(new Float64Array(), new Uint8Array(), never)
})
