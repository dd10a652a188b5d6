import { chmodSync, readFileSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { createInterface } from 'node:readline'

import t, { type Test } from 'tap'

import type { RunEntry } from '../../../src/daemon/history-entry.js'
import { type Notice, noticeOfRuns, statusOfRuns, testNotice } from '../../../src/daemon/notice.js'
import { NoticeDesk } from '../../../src/daemon/notice-desk.js'
import { mailText, makeNotifiers, type Notifier, tellAll, tellStart } from '../../../src/daemon/notifiers.js'
import { DAY_MS, MINUTE_MS } from '../../../src/model/duration.js'
import { DrivenClock } from '../../fakes/driven-clock.js'
import { NoticeServer } from '../../harness/notice-server.js'

const never = new AbortController().signal
const OPTIONS = { env: {}, host: 'hv1' }

function run(name: string, status: RunEntry['status'], change: Partial<RunEntry> = {}): RunEntry {
  return {
    kind: 'run',
    id: name,
    task: `pull/${name}`,
    verb: 'pull',
    target: 'nas',
    domain: { uuid: name, name },
    trigger: 'schedule',
    attempt: 1,
    started: 0,
    ended: 9000,
    status,
    error: status === 'failed' ? { code: 'E_AGENT', message: 'no answer' } : undefined,
    warnings: [],
    figures: { read_bytes: 1024, stored_bytes: 512 },
    log: [`log of ${name}`],
    ...change,
  }
}

const BAD = noticeOfRuns([run('db01', 'success'), run('wéb', 'failed')], 'hv1')
const GOOD = noticeOfRuns([run('db01', 'success')], 'hv1')

t.test('several runs are one of three outcomes', async t => {
  const of = (...statuses: RunEntry['status'][]) => statusOfRuns(statuses.map(status => ({ status })))
  t.equal(of('success', 'skipped'), 'success')
  t.equal(of('success', 'failed'), 'partial')
  t.equal(of('partial'), 'partial')
  t.equal(of('failed', 'failed', 'skipped'), 'failed')
  t.equal(of('skipped'), 'skipped')
})

t.test('a notice says first what went wrong', async t => {
  t.equal(BAD.title, 'virtvault on hv1: partial (2 runs, 1 failed)')
  t.strictSame(BAD.lines, [
    'wéb to nas: failed after 9s: no answer [E_AGENT]',
    'db01 to nas: success, read 1.0 KiB, stored 512 B, 9s',
  ])
})

t.test('pings go to /start, the address itself, /3 and /fail, with the summary', async t => {
  await using server = await NoticeServer.listen()
  const notifiers = makeNotifiers({ healthchecks: { url: server.url('/uuid/'), start: true, send_log: true } }, OPTIONS)

  await tellStart(notifiers, never)
  for (const status of ['success', 'partial', 'failed', 'stale'] as const) {
    t.strictSame(await tellAll(notifiers, { ...BAD, status }, never), [])
  }

  const paths = server.received.map(({ path }) => path)
  t.strictSame(paths, ['/uuid/start', '/uuid', '/uuid/3', '/uuid/fail', '/uuid/fail'])
  t.match(server.received[1]?.body, /^virtvault on hv1: partial[^]*wéb to nas: failed[^]*log of db01/)
})

t.test('ntfy gets a title, a priority and a token', async t => {
  await using server = await NoticeServer.listen()
  const topic = server.url('/backups')
  const notifiers = makeNotifiers({ ntfy: { topic, token: 'tk_secret' } }, OPTIONS)

  t.strictSame(await tellAll(notifiers, GOOD, never), [])
  t.strictSame(server.received, [], 'nobody asked for successes')
  const notice = { ...BAD, status: 'failed', title: 'wéb failed' } as const
  t.strictSame(await tellAll(notifiers, notice, never), [])

  t.match(server.received, [
    { path: '/backups', body: /^wéb to nas: failed/, headers: { authorization: 'Bearer tk_secret', priority: 'high' } },
  ])
  t.equal(server.received[0]?.headers['title'], `=?UTF-8?B?${Buffer.from('wéb failed').toString('base64')}?=`)
})

t.test('a webhook gets one JSON document', async t => {
  await using server = await NoticeServer.listen()
  const notifiers = makeNotifiers(
    { webhook: { url: server.url('/x?key=1'), on: ['all'], headers: { 'x-a': 'b' } } },
    OPTIONS,
  )

  t.strictSame(await tellAll(notifiers, BAD, never), [])

  t.match(server.received, [{ path: '/x?key=1', headers: { 'content-type': 'application/json', 'x-a': 'b' } }])
  t.match(JSON.parse(server.received[0]?.body ?? ''), {
    schema: 'virtvault/notice/1',
    status: 'partial',
    results: [
      { domain: 'db01', status: 'success' },
      { domain: 'wéb', error: { code: 'E_AGENT' } },
    ],
  })
})

t.test('what cannot be told is a warning that shows no secret', async t => {
  await using server = await NoticeServer.listen()
  server.answer = 500
  const url = server.url('/very/secret').replace('http://', 'http://user:hidden@')
  const notify = { webhook: { url, on: ['all' as const] }, ntfy: { topic: 'http://127.0.0.1:1/also-secret' } }

  const warnings = await tellAll(makeNotifiers(notify, OPTIONS), testNotice('hv1'), never)

  t.match(warnings, [
    { code: 'W_NOTIFY', message: /ntfy was not told/ },
    { code: 'W_NOTIFY', message: /webhook .* answered 500/ },
  ])
  t.notMatch(JSON.stringify(warnings), /secret|hidden/)
  t.match(server.received[0]?.headers, { authorization: `Basic ${Buffer.from('user:hidden').toString('base64')}` })
})

t.test('a redirect is not followed: the address is a secret', async t => {
  await using server = await NoticeServer.listen()
  server.answer = 302
  t.match(await tellAll(makeNotifiers({ webhook: { url: server.url('/s') } }, OPTIONS), BAD, never), [
    { code: 'W_NOTIFY' },
  ])
})

t.test('mail goes through sendmail, whole and without injected fields', async t => {
  const folder = t.testdir()
  const sendmail = join(folder, 'sendmail')
  writeFileSync(sendmail, `#!/bin/sh\necho "$@" > ${folder}/args\ncat > ${folder}/mail\n`)
  chmodSync(sendmail, 0o755)
  const notifiers = makeNotifiers({ mail: { to: ['a@example.org', 'b@example.org'] } }, { ...OPTIONS, sendmail })

  t.strictSame(await tellAll(notifiers, BAD, never), [])

  t.equal(readFileSync(join(folder, 'args'), 'utf8'), '-i -t\n')
  const text = readFileSync(join(folder, 'mail'), 'utf8')
  t.match(text, /^From: virtvault@hv1\nTo: a@example.org, b@example.org\nSubject: virtvault on hv1: partial/)
  t.match(text, /\n\nwéb to nas: failed/)
  const injected = mailText({ to: ['x\nBcc: y'], from: 'z', subject: 'a\r\nB: c', lines: [] })
  t.strictSame(
    injected
      .split('\n\n')[0]
      ?.split('\n')
      .filter(line => /^(Bcc|B):/.test(line)),
    [],
  )
})

/** As much of RFC 5321 as one mail takes; gives what it was told. */
async function smtpServer(t: Test, refusal?: string) {
  const told: string[] = []
  const server = createServer(socket => {
    let isData = false
    const say = (line: string) => socket.write(`${line}\r\n`)
    say('220 here')
    createInterface({ input: socket }).on('line', line => {
      told.push(line)
      if (isData) {
        if (line !== '.') return
        isData = false
        say('250 taken')
      } else if (/^(EHLO|HELO)/.test(line)) {
        say('250-here')
        say('250 AUTH PLAIN')
      } else if (line.startsWith('AUTH')) {
        say('235 in')
      } else if (line === 'DATA') {
        isData = true
        say('354 go on')
      } else if (line === 'QUIT') {
        say('221 bye')
        socket.end()
      } else {
        say(line.startsWith('RCPT') && refusal !== undefined ? refusal : '250 ok')
      }
    })
  })
  await new Promise<void>(done => server.listen(0, '127.0.0.1', done))
  t.teardown(() => server.close())
  const address = server.address()
  return { told, port: typeof address === 'object' ? address!.port : 0 }
}

t.test('mail goes through an SMTP server, with a login', async t => {
  const { told, port } = await smtpServer(t)
  const smtp = { host: '127.0.0.1', port, username: 'me', password: 'se-cret' }
  const mail = { to: ['a@example.org', 'b@example.org'], from: 'vv@example.org', smtp }

  t.strictSame(await tellAll(makeNotifiers({ mail }, OPTIONS), BAD, never), [])

  t.ok(told.includes(`AUTH PLAIN ${Buffer.from('\0me\0se-cret').toString('base64')}`))
  t.strictSame(
    told.filter(line => /^(MAIL|RCPT)/.test(line)),
    ['MAIL FROM:<vv@example.org>', 'RCPT TO:<a@example.org>', 'RCPT TO:<b@example.org>'],
  )
  t.match(told.join('\n'), /Subject: virtvault on hv1: partial[^]*to nas: failed/)
})

t.test('a mail that is refused is a warning that shows no password', async t => {
  const { port } = await smtpServer(t, '550 no such user')
  const smtp = { host: '127.0.0.1', port, username: 'me', password: 'se-cret' }

  const warnings = await tellAll(makeNotifiers({ mail: { to: 'a@example.org', smtp } }, OPTIONS), BAD, never)

  t.match(warnings, [{ code: 'W_NOTIFY', message: /no such user/ }])
  t.notMatch(JSON.stringify(warnings), /se-cret/)
})

t.test('a password is not sent to another machine without TLS', async t => {
  // 127.0.0.2 is no name of this machine that we know of.
  const told: string[] = []
  const server = createServer(socket => {
    socket.write('220 here\r\n')
    createInterface({ input: socket }).on('line', line => {
      told.push(line)
      socket.write(line.startsWith('EHLO') ? '250-here\r\n250 AUTH PLAIN\r\n' : '502 no\r\n')
    })
  })
  await new Promise<void>(done => server.listen(0, '127.0.0.2', done))
  t.teardown(() => server.close())
  const address = server.address()
  const port = typeof address === 'object' ? address!.port : 0
  const smtp = { host: '127.0.0.2', port, username: 'me', password: 'se-cret' }

  const warnings = await tellAll(makeNotifiers({ mail: { to: 'a@example.org', smtp } }, OPTIONS), BAD, never)

  t.match(warnings, [{ code: 'W_NOTIFY' }])
  t.notOk(
    told.some(line => line.startsWith('AUTH')),
    told.join('; '),
  )
})

t.test('without a sendmail the reason is told', async t => {
  const warnings = async (mail: object) =>
    await tellAll(makeNotifiers({ mail: { to: 'a@b', ...mail } }, { ...OPTIONS, sendmail: '/nowhere' }), BAD, never)
  t.match(await warnings({}), [{ message: /nowhere is not there/ }])
})

class Ear implements Notifier {
  readonly heard: Notice[] = []
  starts = 0
  readonly name: string

  constructor(name: string) {
    this.name = name
  }

  wants(): boolean {
    return true
  }

  send(notice: Notice): Promise<void> {
    this.heard.push(notice)
    return Promise.resolve()
  }

  start(): Promise<void> {
    this.starts++
    return Promise.resolve()
  }
}

t.test(
  'people are told once for the runs that belong together, and not of attempts that are followed by others',
  async t => {
    const clock = new DrivenClock(0)
    const ear = new Ear('webhook')
    const desk = new NoticeDesk({ clock, host: 'hv1', onWarnings: () => t.fail() })
    desk.setNotifiers([ear], undefined)

    desk.began()
    desk.began()
    desk.ended(run('a', 'success'), false)
    desk.ended(run('b', 'failed', { retryAt: 5 }), false)
    desk.ended(run('b', 'success', { attempt: 2 }), true)

    t.equal(ear.starts, 1)
    t.match(ear.heard, [{ status: 'success', entries: { length: 2 } }])
  },
)

t.test('a failure is told after half an hour, also while other runs still go', async t => {
  const clock = new DrivenClock(0)
  const ear = new Ear('webhook')
  const desk = new NoticeDesk({ clock, host: 'hv1', onWarnings: () => t.fail() })
  desk.setNotifiers([ear], undefined)

  desk.ended(run('a', 'failed'), false)
  await clock.advance(20 * MINUTE_MS)
  desk.tick()
  t.equal(ear.heard.length, 0)
  await clock.advance(20 * MINUTE_MS)
  desk.tick()
  t.equal(ear.heard.length, 1)
})

t.test('a digest gathers a day, and is sent at the end too', async t => {
  const clock = new DrivenClock(0)
  const [mail, hook] = [new Ear('mail'), new Ear('webhook')]
  const desk = new NoticeDesk({ clock, host: 'hv1', onWarnings: () => t.fail() })
  desk.setNotifiers([mail, hook], { mail: { to: 'x', digest: 'daily' } })

  desk.ended(run('a', 'success'), true)
  desk.ended(run('b', 'failed'), true)
  t.equal(hook.heard.length, 2)
  t.equal(mail.heard.length, 0)
  await clock.advance(DAY_MS)
  desk.tick()
  t.match(mail.heard, [{ status: 'failed', title: 'virtvault on hv1: 2 messages, worst failed' }])

  desk.ended(run('c', 'success'), true)
  await desk.close(1000)
  t.equal(mail.heard.length, 2)
})
