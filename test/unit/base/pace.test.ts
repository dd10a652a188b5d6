import { setImmediate as turn } from 'node:timers/promises'

import fc from 'fast-check'
import t from 'tap'

import { Pace } from '../../../src/base/pace.js'
import { DrivenClock } from '../../fakes/driven-clock.js'

const never = new AbortController().signal
const KIB = 1024
const MIB = 1024 * KIB

t.test('whatever is asked for, no more passes in any time than the rate and one burst allow', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.integer({ min: 100_000, max: 10_000_000 }),
      fc.array(fc.record({ bytes: fc.integer({ min: 1, max: 8 * MIB }), pause: fc.integer({ min: 0, max: 5000 }) }), {
        minLength: 1,
        maxLength: 12,
      }),
      async (rate, steps) => {
        const clock = new DrivenClock(0)
        const pace = new Pace(rate, clock)
        const passed: { readonly at: number; readonly bytes: number }[] = []
        const work = (async () => {
          for (const { bytes, pause } of steps) {
            await clock.sleep(pause)
            await pace.take(bytes, never)
            passed.push({ at: clock.monotonic(), bytes })
          }
        })()
        await clock.advance(steps.reduce((ms, { bytes, pause }) => ms + pause + (bytes / rate) * 1000, 1))
        await work

        for (const [i, from] of passed.entries()) {
          let sum = 0
          for (const to of passed.slice(i)) {
            sum += to.bytes
            // The first piece was let go before this time began to count.
            const allowed = from.bytes + pace.burstBytes + ((to.at - from.at) / 1000) * rate
            if (sum > allowed + 1) throw new Error(`${sum} bytes passed where ${allowed} were allowed`)
          }
        }
      },
    ),
    { numRuns: 50 },
  )
})

t.test('what is waited for goes out at the rate, not slower', async t => {
  const clock = new DrivenClock(0)
  const pace = new Pace(MIB, clock)
  let done = 0
  const work = (async () => {
    for (; done < 64; done++) await pace.take(64 * KIB, never)
  })()

  await clock.advance(2000)
  t.equal(done, 32 + pace.burstBytes / (64 * KIB))
  await clock.advance(2000)
  await work
})

t.test('several share one pace, first come first served', async t => {
  const clock = new DrivenClock(0)
  const pace = new Pace(MIB, clock)
  const order: string[] = []
  const take = (name: string) => pace.take(MIB, never).then(() => order.push(name))
  const all = Promise.all([take('a'), take('b'), take('c')])

  await clock.advance(1000)
  t.strictSame(order, ['a'])
  await clock.advance(2000)
  await all
  t.strictSame(order, ['a', 'b', 'c'])
})

t.test('a wait ends when it is aborted', async t => {
  const clock = new DrivenClock(0)
  const pace = new Pace(KIB, clock)
  const abort = new AbortController()
  const waiting = pace.take(MIB, abort.signal)
  await turn()
  abort.abort(new Error('enough'))

  await t.rejects(waiting, { code: 'E_INTERRUPTED' })
  await t.rejects(pace.take(1, abort.signal), { code: 'E_INTERRUPTED' })
})
