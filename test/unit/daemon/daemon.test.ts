import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import t, { type Test } from 'tap'

import { BackupError } from '../../../src/base/errors.js'
import { Daemon, type DaemonPorts } from '../../../src/daemon/daemon.js'
import { History } from '../../../src/daemon/history.js'
import { MemoryFile } from '../../../src/daemon/memory-file.js'
import type { Task } from '../../../src/daemon/task.js'
import type { JobResult } from '../../../src/daemon/task-runner.js'
import { DAY_MS, HOUR_MS, MINUTE_MS } from '../../../src/model/duration.js'
import { DrivenClock } from '../../fakes/driven-clock.js'
import { FakeMachine } from '../../fakes/fake-machine.js'
import { SimulatedFs } from '../../fakes/simulated-fs.js'

const START = Date.parse('2026-06-01T12:00:00Z')

class Bench {
  readonly clock = new DrivenClock(START)
  readonly machine = new FakeMachine()
  readonly told: string[] = []
  readonly logged: string[] = []
  readonly fs: SimulatedFs
  readonly file: string
  work: (work: { readonly task: Task }, signal: AbortSignal) => Promise<JobResult> = () =>
    Promise.resolve({ status: 'success', warnings: [], figures: { read_bytes: 5 } })
  #ids = 0

  constructor(t: Test, config: string, fs = new SimulatedFs()) {
    this.fs = fs
    const folder = mkdtempSync(join(tmpdir(), 'vv-daemon-'))
    t.teardown(() => rmSync(folder, { recursive: true, force: true }))
    mkdirSync(join(folder, 'etc'))
    this.file = join(folder, 'etc', 'config.yml')
    writeFileSync(this.file, config.replaceAll('DIR', folder), { mode: 0o600 })
  }

  async daemon(change: Partial<DaemonPorts> = {}): Promise<Daemon> {
    const { clock, fs } = this
    const random = (length: number) => Buffer.from(String(++this.#ids).padStart(length * 2, '0'), 'hex')
    if (await fs.makeDirectory('/state')) await fs.syncDirectory('/')
    return new Daemon({
      clock,
      fs,
      random,
      env: {},
      timeZone: 'UTC',
      host: 'hv1',
      cores: 4,
      version: '1',
      configRequest: { file: this.file, env: {} },
      history: await History.open({ directory: '/state/history', fs, now: () => clock.now(), random }),
      memory: new MemoryFile(fs, '/state'),
      connect: () => Promise.resolve(this.machine),
      runJob: ({ tasks }, signal) =>
        Promise.all(
          tasks.map(task =>
            this.work({ task }, signal).then(
              result => ({ kind: 'done' as const, ...result }),
              (error: unknown) => ({ kind: 'failed' as const, error }),
            ),
          ),
        ),
      runInGuest: () => Promise.reject(new BackupError('E_AGENT', 'none')),
      exitOf: () => 1,
      surveyStores: () => Promise.resolve([]),
      tellService: message => this.told.push(message),
      log: (level, message) => this.logged.push(`${level} ${message}`),
      ...change,
    })
  }

  /** Until the daemon has read its configuration: real files take real turns. */
  async until(isTrue: () => boolean): Promise<void> {
    for (let turn = 0; turn < 10_000 && !isTrue(); turn++) await this.clock.settle()
    if (!isTrue()) throw new Error(`never: ${this.logged.join('\n')}`)
  }
}

const CONFIG = `
targets: { nas: { path: /n } }
retry: { attempts: 0 }
groups: { all: { target: nas, schedule: '0 2 * * *', hosts: ['r:.*'] } }
metrics: { textfile: DIR/virtvault.prom }
`

t.test('a configuration that cannot be used from the start ends the daemon', async t => {
  const bench = new Bench(t, 'thraeds: 2\n')
  const daemon = await bench.daemon()
  await t.rejects(daemon.run(new AbortController().signal), { code: 'E_CONFIG', message: /Did you mean "threads"/ })
})

t.test('a night: results, history, metrics, and what the service manager is told', async t => {
  const bench = new Bench(t, CONFIG)
  bench.machine.names = ['good', 'bad']
  bench.work = ({ task }) =>
    task.verb === 'pull' && task.domain.name === 'bad'
      ? Promise.reject(new BackupError('E_AGENT', 'no answer'))
      : Promise.resolve({ status: 'success', warnings: [], point: 'ab'.repeat(16), figures: { read_bytes: 5 } })
  const daemon = await bench.daemon()
  const ending = new AbortController()
  const running = daemon.run(ending.signal)
  await bench.until(() => bench.told.includes('READY=1') && daemon.status().jobs.length === 2)

  await bench.clock.advance(15 * HOUR_MS)

  const { health, jobs } = daemon.status()
  t.equal(health, 'critical')
  t.match(Object.fromEntries(jobs.map(job => [job.domain, job.last_status])), { good: 'success', bad: 'failed' })
  t.match(await daemon.history({ domain: 'bad' }), [
    { kind: 'start' },
    { kind: 'run', status: 'failed', error: { code: 'E_AGENT' } },
  ])
  t.match(daemon.metrics(), /virtvault_backup_read_bytes\{domain="good".*\} 5\n/)
  t.ok(bench.told.includes('WATCHDOG=1'))
  await bench.clock.advance(2 * HOUR_MS)
  t.match(
    bench.logged.filter(line => line.includes('overdue')),
    [/^error bad to nas is overdue/],
  )
  t.match(await daemon.history({ statuses: ['missed'] }), [{ kind: 'missed', reason: 'stale', domain: 'bad' }])

  ending.abort()
  await running
  t.ok(bench.told.includes('STOPPING=1'))
  t.match(
    readFileSync(join(bench.file, '..', '..', 'virtvault.prom'), 'utf8'),
    /virtvault_job_stale\{domain="bad".*\} 1\n/,
  )
})

t.test('what a killed daemon was running is told as failed, and made up for', async t => {
  const bench = new Bench(t, CONFIG)
  bench.machine.names = ['a']
  bench.work = () => new Promise(() => undefined)
  const first = await bench.daemon()
  void first.run(new AbortController().signal)
  await bench.until(() => first.status().jobs.length === 1)
  await bench.clock.advance(14 * HOUR_MS + MINUTE_MS)
  t.equal(first.status().jobs[0]?.state, 'running')

  const next = new Bench(t, CONFIG, bench.fs.afterPowerCut('everything'))
  next.clock.jump(DAY_MS / 2 + 4 * HOUR_MS)
  next.machine.names = ['a']
  const second = await next.daemon()
  const ending = new AbortController()
  const running = second.run(ending.signal)
  await next.until(() => second.status().jobs.length === 1)
  await next.clock.advance(2 * MINUTE_MS)

  t.match(
    await second.history({ statuses: ['failed', 'success'] }),
    [
      { kind: 'run', status: 'success', trigger: 'catch-up' },
      { kind: 'run', status: 'failed', error: { code: 'E_INTERRUPTED' } },
    ].sort((a, b) => (a.status < b.status ? -1 : 1)),
  )
  ending.abort()
  await running
})
