import t from 'tap'

import { EventQueue } from '../../../src/libvirt/event-queue.js'
import type { VirtEvent } from '../../../src/native/virt.js'

function agent(uuid: string): VirtEvent {
  return { kind: 'agent', uuid, connected: true }
}

async function readAll(queue: EventQueue): Promise<string[]> {
  const seen: string[] = []
  for await (const event of queue) if (event.kind === 'agent') seen.push(event.uuid)
  return seen
}

t.test('events are read in order, those of before and those of after the reading began', async t => {
  const cancel = new AbortController()
  const queue = new EventQueue(cancel.signal, () => undefined)
  queue.push(agent('a'))
  const reading = readAll(queue)
  queue.push(agent('b'))
  await Promise.resolve()
  queue.push(agent('c'))
  cancel.abort()

  t.strictSame(await reading, ['a', 'b', 'c'])
})

t.test('a reader that waits is released by the signal, by the end and by itself', async t => {
  const cancel = new AbortController()
  let ended = 0
  const aborted = new EventQueue(cancel.signal, () => ended++)
  const reading = readAll(aborted)
  cancel.abort()
  t.strictSame(await reading, [])
  t.equal(ended, 1)

  const open = new AbortController().signal
  const finished = new EventQueue(open, () => ended++)
  const waiting = readAll(finished)
  finished.end()
  t.strictSame(await waiting, [])

  const left = new EventQueue(open, () => ended++)
  left.push(agent('a'))
  left.push(agent('b'))
  for await (const event of left) {
    t.match(event, { uuid: 'a' })
    break
  }
  t.equal(ended, 3)
  t.strictSame(await readAll(left), [])
})

t.test('a signal that was aborted before gives an empty sequence', async t => {
  t.strictSame(await readAll(new EventQueue(AbortSignal.abort(), () => undefined)), [])
})

t.test('a reader that falls behind loses the oldest events', async t => {
  const queue = new EventQueue(new AbortController().signal, () => undefined)
  for (let i = 0; i < 3000; i++) queue.push(agent(String(i)))
  queue.end()

  const seen = await readAll(queue)
  t.equal(seen.length, 1024)
  t.equal(seen.at(-1), '2999')
})
