import { chmodSync, mkdirSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'

import t, { type Test } from 'tap'

import { systemClock } from '../../../src/base/clock.js'
import { BackupError } from '../../../src/base/errors.js'
import { checkTexts, type LoadedConfig } from '../../../src/config/load.js'
import { type ConfigChange, ConfigFollower } from '../../../src/daemon/follow-config.js'
import { DomainFollower } from '../../../src/daemon/follow-domains.js'
import { metricFamilies, renderMetrics } from '../../../src/daemon/metrics.js'
import { type KnownDomain, planTasks } from '../../../src/daemon/plan-tasks.js'
import type { DomainJob } from '../../../src/model/domain-job.js'
import { DrivenClock } from '../../fakes/driven-clock.js'
import { FakeMachine } from '../../fakes/fake-machine.js'

async function load(text: string): Promise<LoadedConfig> {
  const { config, ...rest } = await checkTexts([{ file: 'config.yml', text }])
  if (config === undefined) throw new Error(JSON.stringify(rest.problems))
  return { ...rest, config }
}

const domain = (name: string, jobs: readonly DomainJob[] = []): KnownDomain => ({
  ref: { uuid: `u-${name}`, name },
  isRunning: true,
  jobs,
})

t.test('each job is one task per target, and each target has its own upkeep', async t => {
  const loaded = await load(`
targets: { nas: { path: /n }, offsite: { path: /o } }
groups:
  prod: { targets: [nas, offsite], schedule: '0 2 * * *', jitter: 10m, hosts: [db01, gone] }
  lab: { schedule: '0 3 * * *', hosts: ['lab*'] }
gc: { schedule: '30 5 * * SUN', targets: [nas] }
prune: { schedule: '0 5 * * *' }
`)
  const own: DomainJob = { id: 'hourly', settings: { schedule: '@hourly', targets: ['nas'], paused: true } }
  const context = { env: {}, timeZone: 'UTC' }

  const { tasks, problems, absent } = planTasks(loaded, [domain('db01', [own]), domain('lab1'), domain('x')], context)

  t.strictSame(
    tasks.map(({ id }) => id),
    [
      'pull/u-db01/prod/nas',
      'pull/u-db01/prod/offsite',
      'pull/u-db01/hourly/nas',
      'prune/nas',
      'prune/offsite',
      'gc/nas',
    ],
  )
  t.equal(tasks[0]?.jitterMs, tasks[1]?.jitterMs, 'the targets of a job follow one another')
  t.equal(tasks[2]?.paused, true)
  t.match(problems, [/lab1: job lab has a schedule and no target/])
  t.strictSame(absent, [{ group: 'prod', host: 'gone' }])
})

async function following(t: Test, file: string) {
  const follower = new ConfigFollower({ file, env: {} }, systemClock)
  const ending = new AbortController()
  const changes = follower.changes(ending.signal)
  t.teardown(async () => {
    ending.abort()
    await changes.return(undefined)
  })
  const next = async (): Promise<ConfigChange> => {
    const { value } = await changes.next()
    if (value === undefined) throw new Error('it has ended')
    return value as ConfigChange
  }
  return { follower, next }
}

t.test('a configuration is read again when it changes, by any kind of edit, and when somebody asks', async t => {
  const file = join(t.testdir(), 'config.yml')
  writeFileSync(file, 'threads: 1\n')
  const { follower, next } = await following(t, file)
  t.match(await next(), { kind: 'loaded', loaded: { config: { threads: 1 } } })

  const later = async (change: () => void) => {
    const found = next()
    // The watch is set up while nobody waits for it.
    await delay(50)
    change()
    return await found
  }
  t.match(await later(() => writeFileSync(file, 'threads: 2\n')), {
    kind: 'loaded',
    loaded: { config: { threads: 2 } },
  })
  const replaced = await later(() => {
    writeFileSync(`${file}~`, 'threads: 3\n')
    renameSync(`${file}~`, file)
  })
  t.match(replaced, { kind: 'loaded', loaded: { config: { threads: 3 } } })
  const broken = await later(() => writeFileSync(file, 'thraeds: 3\n'))
  t.match(broken, { kind: 'broken', problems: [/thraeds: unknown key. Did you mean "threads"/] })
  t.match(await later(() => rmSync(file)), { kind: 'broken', problems: [/does not exist/] })
  t.match(await later(() => writeFileSync(file, 'threads: 4\n')), { kind: 'loaded' })
  t.match(await later(() => follower.reload()), { kind: 'loaded', loaded: { config: { threads: 4 } } })
  const part = await later(() => {
    mkdirSync(join(file, '..', 'conf.d'))
    writeFileSync(join(file, '..', 'conf.d', 'a.yml'), 'threads: 5\n')
  })
  t.match(part, { kind: 'loaded', loaded: { config: { threads: 5 } } })
})

t.test('commands are refused from a file that others can write', async t => {
  const file = join(t.testdir(), 'config.yml')
  writeFileSync(file, "commands: [{ before: domain, run: 'true' }]\n")
  chmodSync(file, 0o622)
  const { next } = await following(t, file)
  t.match(await next(), { kind: 'broken', problems: [/others than its owner can write it: chmod go-w/] })
})

async function followingDomains(t: Test, machine: FakeMachine) {
  const clock = new DrivenClock(0)
  const seen = { names: '', notes: [] as string[], state: 'none', jobs: [] as (readonly DomainJob[])[] }
  const follower = new DomainFollower({
    clock,
    connect: () =>
      machine.isThere ? Promise.resolve(machine) : Promise.reject(new BackupError('E_LIBVIRT_CONNECT', 'away')),
    onDomains: domains => {
      seen.names = domains.map(({ ref }) => ref.name).join(' ')
      seen.jobs = domains.map(({ jobs }) => jobs)
    },
    onConnected: () => (seen.state = 'connected'),
    onLost: () => (seen.state = 'lost'),
    note: (_, message) => seen.notes.push(message),
  })
  const ending = new AbortController()
  const running = follower.run(ending.signal)
  t.teardown(async () => {
    ending.abort()
    await running
  })
  await clock.settle()
  return { clock, seen }
}

t.test('domains that come, go, are renamed or move away are seen', async t => {
  const machine = new FakeMachine()
  machine.names = ['a', 'b', 'c']
  const { clock, seen } = await followingDomains(t, machine)
  t.strictSame([seen.names, seen.notes], ['a b c', []])

  machine.names = ['a=alpha', 'd']
  for (const uuid of ['a', 'b', 'd']) machine.emit({ kind: 'domain', uuid })
  machine.emit({ kind: 'domain', uuid: 'c', hasMigrated: true })
  await clock.advance(1000)

  t.equal(seen.names, 'alpha d')
  t.strictSame(seen.notes, [
    'a is called alpha now',
    'd is new here',
    'b is not defined here any more: its jobs end here, its recovery points stay',
    'c has moved to another host: its jobs end here, its recovery points stay',
  ])
})

t.test('what no event told is seen after five minutes', async t => {
  const machine = new FakeMachine()
  const { clock, seen } = await followingDomains(t, machine)
  machine.names = ['a']
  await clock.advance(6 * 60_000)
  t.equal(seen.names, 'a')
})

t.test('metadata that cannot be read leaves what it said before, and is told once', async t => {
  const machine = new FakeMachine()
  const job: DomainJob = { id: 'nightly', settings: { schedule: '@daily' } }
  machine.names = ['a']
  machine.metadata.set('a', [job])
  const { clock, seen } = await followingDomains(t, machine)
  t.strictSame(seen.jobs, [[job]])

  machine.metadata.set('a', new BackupError('E_CONFIG', '<schedul> is unknown'))
  for (let n = 0; n < 3; n++) {
    machine.emit({ kind: 'domain', uuid: 'a' })
    await clock.advance(1000)
  }
  t.strictSame(seen.jobs, [[job]])
  t.strictSame(seen.notes, ['a: <schedul> is unknown; what it said before goes on'])
  machine.metadata.set('a', [])
  machine.emit({ kind: 'domain', uuid: 'a' })
  await clock.advance(1000)
  t.strictSame(seen.jobs, [[]])
})

t.test('a libvirt that goes away is tried again with growing pauses, and told once', async t => {
  const machine = new FakeMachine()
  machine.names = ['a']
  const { clock, seen } = await followingDomains(t, machine)
  t.equal(seen.state, 'connected')

  machine.isThere = false
  machine.emit({ kind: 'lost' })
  await clock.advance(60_000)
  t.equal(seen.state, 'lost')
  t.equal(machine.reconnects, 6, 'after 1, 2, 4, 8, 16, 32 s')
  t.equal(seen.notes.length, 1)
  machine.isThere = true
  machine.names = ['a', 'b']
  await clock.advance(60_000)
  t.strictSame([seen.state, seen.names], ['connected', 'a b'])
  t.strictSame(seen.notes.slice(1), ['libvirt is there again', 'b is new here'])
})

t.test('a libvirt that is away at the start is waited for', async t => {
  const machine = new FakeMachine()
  machine.isThere = false
  const { clock, seen } = await followingDomains(t, machine)
  t.equal(seen.state, 'none')
  machine.isThere = true
  await clock.advance(5000)
  t.equal(seen.state, 'connected')
})

t.test('metrics are in the text format of Prometheus, whatever a domain is called', async t => {
  const loaded = await load(
    "targets: { nas: { path: /n } }\ngroups: { g: { target: nas, schedule: '@hourly', hosts: ['r:.*'] } }",
  )
  const { tasks } = planTasks(loaded, [domain('a"b\\c\nd')], { env: {}, timeZone: 'UTC' })
  const views = tasks.map(task => ({
    task,
    memory: {
      accountedUntil: 0,
      firstSeen: 0,
      lastSuccess: 1500,
      last: { id: 'x', started: 1500, ended: 4000, due: 0, status: 'partial' as const, attempt: 1 },
    },
    state: 'idle' as const,
    nextRun: 3_600_000,
    staleSince: undefined,
  }))
  const figures = new Map(tasks.map(({ id }) => [id, { read_bytes: 7 }]))
  const stores = [{ target: 'nas', points: [{ domain: 'x', count: 3, oldest: 9000 }], stored: 5 }]

  const text = renderMetrics(
    metricFamilies({ version: '1', views, figures, stores, libvirtConnected: true, configOk: false }),
  )

  const labels = 'domain="a\\"b\\\\c\\nd",group="g",target="nas",job="g"'
  for (const line of [
    '# TYPE virtvault_backup_last_success_timestamp_seconds gauge',
    `virtvault_backup_last_success_timestamp_seconds{${labels}} 1.5`,
    `virtvault_backup_last_status{${labels}} 1`,
    `virtvault_backup_duration_seconds{${labels}} 2.5`,
    `virtvault_backup_read_bytes{${labels}} 7`,
    `virtvault_job_interval_seconds{${labels}} 3600`,
    'virtvault_points{domain="x",group="",target="nas"} 3',
    'virtvault_store_bytes{target="nas"} 5',
    'virtvault_config_last_reload_successful 0',
  ]) {
    t.ok(text.split('\n').includes(line), line)
  }
  for (const line of text.trimEnd().split('\n'))
    t.match(line, /^(# (HELP|TYPE) virtvault_\w+ .+|virtvault_\w+(\{.*\})? [-+0-9.eInfNa]+)$/)
  t.ok(text.endsWith('\n'))
})
