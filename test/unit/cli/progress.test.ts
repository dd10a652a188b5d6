import t from 'tap'

import type { Clock } from '../../../src/base/clock.js'
import type { ProgressEvent } from '../../../src/jobs/progress.js'
import { JsonDisplay } from '../../../src/cli/progress-json.js'
import { PlainDisplay, SilentDisplay } from '../../../src/cli/progress-plain.js'
import { RateMeter } from '../../../src/cli/progress-state.js'

const MiB = 1024 ** 2
const ESC = String.fromCharCode(27)

/** Time that stands still until told; sleepers wake in order. */
class HandClock implements Clock {
  #ms = 0
  readonly #sleepers: { readonly at: number; readonly wake: () => void }[] = []

  now(): number {
    return Date.UTC(2026, 10, 20) + this.#ms
  }

  monotonic(): number {
    return this.#ms
  }

  sleep(ms: number, signal?: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const onAbort = () => reject(new Error('aborted'))
      signal?.addEventListener('abort', onAbort, { once: true })
      const wake = () => {
        signal?.removeEventListener('abort', onAbort)
        resolve()
      }
      this.#sleepers.push({ at: this.#ms + ms, wake })
    })
  }

  async advance(ms: number): Promise<void> {
    const end = this.#ms + ms
    for (;;) {
      const next = this.#sleepers.filter(({ at }) => at <= end).sort((a, b) => a.at - b.at)[0]
      if (next === undefined) break
      this.#sleepers.splice(this.#sleepers.indexOf(next), 1)
      this.#ms = next.at
      next.wake()
      await new Promise(resolve => setImmediate(resolve))
    }
    this.#ms = end
  }
}

class Sink {
  text = ''

  write(text: string): boolean {
    this.text += text
    return true
  }

  /** Lines without their time. */
  get lines(): string[] {
    return this.text
      .split('\n')
      .slice(0, -1)
      .map(line => line.replace(/^\S+T\S+ /, ''))
  }
}

function setUp() {
  const clock = new HandClock()
  const stream = new Sink()
  return { clock, stream, options: { title: 'backup pull', clock, stream } }
}

const disk = (doneBytes: number, totalBytes = 1000 * MiB): ProgressEvent => ({
  kind: 'disk',
  subject: 'db01',
  target: 'vda',
  totalBytes,
  doneBytes,
  newBytes: doneBytes / 2,
})

t.test('plain progress says one line per 10 %, and no more', async t => {
  const { options, stream } = setUp()
  await using display = new PlainDisplay({ verbosity: 1 }, options)

  display.report({ kind: 'started', subject: 'db01', verb: 'pull', facts: [['mode', 'incremental']] })
  for (let done = 0; done <= 1000; done++) display.report(disk(done * MiB))
  display.report({
    kind: 'finished',
    subject: 'db01',
    status: 'success',
    readBytes: 1000 * MiB,
    point: '91be7d0'.padEnd(32, '0'),
  })

  t.equal(stream.lines[0], 'db01 start mode=incremental')
  t.equal(stream.lines[1], 'db01 10% 100MiB/1000MiB new=50MiB')
  t.equal(stream.lines.length, 11, 'start, 10 to 90 %, end')
  t.match(stream.lines.at(-1), /^db01 done 1000MiB read, .* point=@91be7d0$/)
})

t.test('plain progress says a line per minute when nothing moves', async t => {
  const { options, stream, clock } = setUp()
  await using display = new PlainDisplay({ verbosity: 1 }, options)
  display.report({ kind: 'started', subject: 'db01', verb: 'pull' })
  display.report(disk(MiB))

  await clock.advance(59_000)
  t.equal(stream.lines.length, 1)
  await clock.advance(2000)
  t.equal(stream.lines.length, 2)
  await clock.advance(60_000)
  t.equal(stream.lines.length, 3)
})

t.test('the first plain line comes within five seconds', async t => {
  const { options, stream, clock } = setUp()
  await using display = new PlainDisplay({ verbosity: 1 }, options)

  await clock.advance(4999)
  display.report({ kind: 'log', level: 'debug', message: 'unseen' })

  t.strictSame(stream.lines, ['backup pull is preparing'])
})

t.test('a total that grows does not turn the percentage back', async t => {
  const { options, stream } = setUp()
  await using display = new PlainDisplay({ verbosity: 1 }, options)

  display.report(disk(100 * MiB, 200 * MiB))
  display.report(disk(110 * MiB, 1000 * MiB))
  display.status()
  display.report(disk(1000 * MiB, 1000 * MiB))

  t.match(stream.lines[0], /^db01 50% /)
  t.match(stream.lines[1], /^db01 50% /)
  t.match(stream.lines[2], /^db01 99% /, 'only the end is 100 %')
})

t.test('names cannot drive the terminal', async t => {
  const { options, stream } = setUp()
  await using display = new PlainDisplay({ verbosity: 1 }, options)

  display.report({ kind: 'started', subject: `a${ESC}[2Jb\r\n`, verb: 'pull' })

  t.equal(stream.lines.length, 1)
  t.equal(stream.lines[0], 'a\\x1b[2Jb\\x0d\\x0a start')
})

t.test('phases and log lines wait for -v and -vv', async t => {
  const events: ProgressEvent[] = [
    { kind: 'phase', subject: 'db01', phase: 'freeze' },
    { kind: 'log', level: 'info', message: 'an info' },
    { kind: 'log', level: 'debug', message: 'a detail' },
    { kind: 'warning', subject: 'db01', warning: { code: 'W_CHAIN', message: 'bitmap lost' } },
  ]
  const linesAt = async (verbosity: 1 | 2 | 3) => {
    const { options, stream } = setUp()
    await using display = new PlainDisplay({ verbosity }, options)
    for (const event of events) display.report(event)
    return stream.lines
  }

  t.strictSame(await linesAt(1), ['db01 ! W_CHAIN bitmap lost'])
  t.strictSame(await linesAt(2), ['db01 freeze', 'an info', 'db01 ! W_CHAIN bitmap lost'])
  t.equal((await linesAt(3)).length, 4)
})

t.test('json progress is one object per line, progress once a second', async t => {
  const { options, stream, clock } = setUp()
  const display = new JsonDisplay({ verbosity: 1 }, options)

  display.report({ kind: 'started', subject: 'db01', verb: 'pull', facts: [['mode', 'full']] })
  for (let done = 0; done < 500; done++) display.report(disk(done * MiB))
  await clock.advance(1000)
  await clock.advance(5000)
  display.report(disk(700 * MiB))
  display.report({ kind: 'finished', subject: 'db01', status: 'failed', error: { code: 'E_NBD', message: 'gone' } })
  await display[Symbol.asyncDispose]()

  const events = stream.text.trim().split('\n').map(parseLine)
  t.strictSame(
    events.map(({ event }) => event),
    ['phase', 'progress', 'progress', 'result'],
  )
  t.match(events[1], { ts: '2026-11-20T00:00:01.000Z', subject: 'db01', done_bytes: 499 * MiB, percent: 49 })
  t.match(events[3], { status: 'failed', error: { code: 'E_NBD' } })
})

t.test('silent progress speaks only when asked', async t => {
  const { options, stream } = setUp()
  await using display = new SilentDisplay(options)

  display.report(disk(500 * MiB))
  t.equal(stream.text, '')
  display.status()

  t.match(stream.text, /^db01 50% /)
})

t.test('the rate is that of the last quarter of a minute', async t => {
  const meter = new RateMeter()
  t.equal(meter.bytesPerSecond(), undefined)

  for (let second = 0; second <= 60; second++) meter.note(second * 1000, Math.max(0, second - 40) * 100)

  t.equal(meter.bytesPerSecond(), 100)
  t.equal(meter.secondsFor(500), 5)
})

function parseLine(line: string): Record<string, unknown> {
  const parsed: Record<string, unknown> = JSON.parse(line)
  return parsed
}
