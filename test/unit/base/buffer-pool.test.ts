import t from 'tap'

import { BufferPool } from '../../../src/base/buffer-pool.js'

const never = new AbortController().signal

t.test('a taker waits until a buffer comes back, in order', async t => {
  const pool = new BufferPool(1, 16)
  const first = await pool.take(never)
  const order: string[] = []

  const second = pool.take(never).then(buffer => (order.push('second'), buffer))
  const third = pool.take(never).then(buffer => (order.push('third'), buffer))
  pool.give(first)
  pool.give(await second)
  pool.give(await third)

  t.strictSame(order, ['second', 'third'])
  t.equal(await pool.take(never), first, 'no second buffer was made')
})

t.test('an aborted taker leaves the queue and loses no buffer', async t => {
  const pool = new BufferPool(1, 16)
  const held = await pool.take(never)
  const aborter = new AbortController()
  const waiting = pool.take(aborter.signal)
  const next = pool.take(never)

  aborter.abort()
  await t.rejects(waiting, { code: 'E_INTERRUPTED' })
  pool.give(held)

  t.equal(await next, held)
})

t.test('a foreign buffer is refused', async t => {
  const pool = new BufferPool(2, 16)

  t.throws(() => pool.give(new Uint8Array(8)), /own pool/)
})

t.test('many may wait for a buffer on one signal without a warning of a leak', async t => {
  const warnings: Error[] = []
  const note = (warning: Error) => warnings.push(warning)
  process.on('warning', note)
  t.teardown(() => process.off('warning', note))
  const pool = new BufferPool(1, 16)
  const { signal } = new AbortController()
  const first = await pool.take(signal)

  const waiting = Array.from({ length: 40 }, () => pool.take(signal).then(buffer => pool.give(buffer)))
  pool.give(first)
  await Promise.all(waiting)
  await new Promise(resolve => setImmediate(resolve))

  t.same(warnings, [])
})
