import t from 'tap'

import { PullPulse } from '../../../src/libvirt/pull-pulse.js'
import { DrivenClock } from '../../fakes/driven-clock.js'

const ORDERS = { domainUuid: 'u', frozen: false, socket: '/s', disarmed: false }
const PAUSED = { kind: 'lifecycle', uuid: 'u', name: 'n', event: 3, detail: 2 } as const

/** Says what became of it after each step. */
function watched(limits = { stallMs: 60_000, isLocal: false }) {
  const clock = new DrivenClock(0)
  const pulse = new PullPulse(clock, limits)
  const over = new AbortController()
  let reason: string | undefined = 'watched'
  const done = pulse.stopped(over.signal).then(found => (reason = found))
  return { clock, pulse, done, end: () => over.abort(), reason: () => reason }
}

t.test('a pull that goes on speaking is left alone, one that stops is not', async t => {
  const { clock, pulse, reason } = watched()
  pulse.beat(ORDERS)
  for (let s = 0; s < 300; s += 2) {
    await clock.advance(2000)
    pulse.beat()
  }
  t.equal(reason(), 'watched')

  await clock.advance(59_000)
  t.equal(reason(), 'watched')
  await clock.advance(6000)
  t.match(reason(), /said nothing for 6\d s/)
})

t.test('one whose domain was paused, or told of an error, has less time', async t => {
  for (const event of [
    PAUSED,
    { kind: 'io-error', uuid: 'u', path: '', alias: '', action: 2, reason: '' },
    { kind: 'block-threshold', uuid: 'u', device: 'vda[2]', threshold: 1 },
  ] as const) {
    const { clock, pulse, reason } = watched()
    pulse.beat(ORDERS)
    pulse.see({ ...event, uuid: 'another' })
    await clock.advance(20_000)
    t.equal(reason(), 'watched')
    pulse.see(event)
    await clock.advance(4000)
    t.match(reason(), /scratch is full or the domain met an I\/O error/)
  }
})

t.test('what has no orders, or is disarmed, is not ended', async t => {
  const { clock, pulse, reason, end, done } = watched()
  await clock.advance(500_000)
  t.equal(reason(), 'watched')
  pulse.beat({ ...ORDERS, disarmed: true })
  await clock.advance(500_000)
  t.equal(reason(), 'watched')
  end()
  await done
  t.equal(reason(), undefined)
})
