import t from 'tap'

import { checkTexts } from '../../../src/config/load.js'
import type { LoadedConfig } from '../../../src/config/load.js'
import { autostartGroups, groupSelectors, groupsOf, resolveJob, resolveJobs } from '../../../src/config/resolve.js'
import type { JobContext } from '../../../src/config/resolve.js'
import { retentionOf, SETTING_KEYS, settingsFrom } from '../../../src/config/settings.js'
import type { DomainJob, JobSettings } from '../../../src/model/domain-job.js'

const TEXT = `timezone: Europe/Berlin
targets: { nas: { path: /nas }, offsite: { path: /offsite } }
default:
  target: nas
  daily: 7
  weekly: 4
  quiesce: true
groups:
  prod:
    targets: [nas, offsite]
    schedule: '0 2 * * *'
    daily: 14
    jitter: 10m
    bwlimit: 40MiB
    autostart: true
    hosts:
      - { host: 'r:^db', threads: 2, quiesce: false }
      - host: db01
        threads: 8
        quiesce: required
        disks: [vda]
      - 'r:^web'
      - '!web-test'
  lab: { hourly: 0, timezone: UTC, hosts: ['web*', db01] }
`

async function load(text = TEXT): Promise<LoadedConfig> {
  const reading = await checkTexts([{ file: 'config.yml', text }])
  if (reading.config === undefined) throw new Error(JSON.stringify(reading.problems))
  return { ...reading, config: reading.config }
}

const domain = (name: string) => ({ uuid: `uuid-${name}`, name })
const context: JobContext = { timeZone: 'UTC', env: {} }

t.test('the nearest level that says something wins, setting by setting', async t => {
  const job = resolveJob(await load(), domain('db01'), context)

  t.match(job, { id: 'prod', group: 'prod' })
  t.match(job.settings, {
    targets: ['nas', 'offsite'],
    daily: 14,
    weekly: 4,
    quiesce: 'required',
    connections: 8,
    disks: ['vda'],
    jitter: 600_000,
    bwlimit: 41_943_040,
    timeZone: 'Europe/Berlin',
    onBrokenChain: 'full_read',
  })
})

t.test('each value says who gives it and where', async t => {
  const { originOf } = resolveJob(await load(), domain('db01'), context)

  t.strictSame(originOf('quiesce'), { source: 'host', where: 'config.yml:20:18' })
  t.strictSame(originOf('daily'), { source: 'group', where: 'config.yml:12:12' })
  t.strictSame(originOf('weekly'), { source: 'default', where: 'config.yml:6:11' })
  t.strictSame(originOf('targets'), { source: 'group', where: 'config.yml:10:14' })
  t.strictSame(originOf('timeZone'), { source: 'default', where: 'config.yml:1:11' })
  t.strictSame(originOf('prune'), { source: 'built-in', where: undefined })
  t.equal(originOf('yearly'), undefined)
})

t.test('flags go before the environment, that before metadata, that before the file', async t => {
  const loaded = await load()
  const metadata: DomainJob[] = [
    { id: 'nightly', group: 'prod', settings: { targets: ['meta'], daily: 30, weekly: 1 } },
  ]
  const env = { VIRTVAULT_TARGET: 'env', VIRTVAULT_SCRATCH_DIR: '' }
  const all = resolveJob(loaded, domain('db01'), { ...context, metadata, env, flags: { targets: ['flag'] } })
  const noFlag = resolveJob(loaded, domain('db01'), { ...context, metadata, env })
  const noEnv = resolveJob(loaded, domain('db01'), { ...context, metadata })

  t.strictSame(
    [all, noFlag, noEnv].map(job => job.settings.targets[0]),
    ['flag', 'env', 'meta'],
  )
  t.strictSame(
    [all, noFlag, noEnv].map(job => job.originOf('targets')),
    [
      { source: 'flag', where: undefined },
      { source: 'env', where: 'VIRTVAULT_TARGET' },
      { source: 'metadata', where: 'job nightly' },
    ],
  )
  t.match(all, { id: 'nightly', settings: { daily: 30, weekly: 1, quiesce: 'required' } })
})

t.test('an exact host entry goes before a pattern, whatever their order', async t => {
  const loaded = await load()

  t.match(resolveJob(loaded, domain('db01'), context).settings, { connections: 8 })
  t.match(resolveJob(loaded, domain('db02'), context).settings, { connections: 2, quiesce: false })
})

t.test('a domain has a job for each group that lists it, and for each job of its own', async t => {
  const loaded = await load()
  const metadata: DomainJob[] = [
    { id: 'a', settings: { schedule: '@daily' } },
    { id: 'b', group: 'lab', settings: { daily: 1 } },
    { id: 'c', group: 'prod', settings: {} },
    { id: 'd', group: 'prod', settings: {} },
    { id: 'e', group: 'elsewhere', settings: {} },
  ]

  t.strictSame(
    resolveJobs(loaded, domain('web1'), context).map(job => job.id),
    ['prod', 'lab'],
  )
  t.strictSame(
    resolveJobs(loaded, domain('web1'), { ...context, metadata }).map(job => `${job.id} ${job.group ?? '-'}`),
    ['c prod', 'd prod', 'b lab', 'a -', 'e elsewhere'],
  )
  t.strictSame(resolveJobs(loaded, domain('other'), context), [])
  t.match(resolveJob(loaded, domain('other'), context), { id: 'default', settings: { targets: ['nas'] } })
})

t.test('a metadata job inherits from the group that it names, also where that does not list the domain', async t => {
  const metadata: DomainJob[] = [{ id: 'x', group: 'prod', settings: {} }]
  const job = resolveJob(await load(), domain('other'), { ...context, metadata })

  t.match(job.settings, { daily: 14, schedule: '0 2 * * *' })
})

t.test('groups say whom they list and whether they start by themselves', async t => {
  const { config } = await load()

  t.strictSame(groupsOf(config, domain('web-test')), ['lab'])
  t.strictSame(groupsOf(config, domain('db01')), ['prod', 'lab'])
  t.strictSame(autostartGroups(config), ['prod'])
  t.strictSame(groupSelectors(config).get('lab'), ['web*', 'db01'])
  t.strictSame(
    autostartGroups((await load('default: { autostart: true }\ngroups: { a: {}, b: { autostart: false } }')).config),
    ['a'],
  )
})

t.test('the zone is the group’s, the file’s, or the machine’s', async t => {
  t.equal(resolveJobs(await load(), domain('web1'), context)[1]?.settings.timeZone, 'UTC')
  t.equal(
    resolveJob(await load(''), domain('a'), { ...context, timeZone: 'Asia/Tokyo' }).settings.timeZone,
    'Asia/Tokyo',
  )
})

t.test('every setting has a key of the file, and is read from it', async t => {
  const full = {
    targets: ['a'],
    schedule: '@daily',
    timezone: 'UTC',
    jitter: '1m',
    catch_up: true,
    window: '22:00-06:00',
    autostart: true,
    paused: true,
    priority: 1,
    disks: ['vda'],
    exclude_disks: ['vdb'],
    depth: -1,
    disable_if_powered_off: true,
    start_paused: true,
    quiesce: true,
    freeze_mounts: ['/'],
    on_broken_chain: 'fail' as const,
    threads: 2,
    bwlimit: 5,
    min_change: '1MiB',
    scratch_dir: '/s',
    scratch_devices: { vda: '/dev/vg/s' },
    last: 1,
    hourly: 2,
    daily: 3,
    weekly: 4,
    monthly: 5,
    yearly: '*' as const,
    keep_within: '1d',
    keep_tags: ['k'],
    tags: ['t'],
    prune: true,
  }
  const settings = settingsFrom(full)
  const isSet = (key: string) => Object.entries(settings).some(([name, value]) => name === key && value !== undefined)

  t.strictSame(Object.values(SETTING_KEYS).sort(), Object.keys(full).sort())
  t.ok(Object.keys(SETTING_KEYS).every(isSet))
  t.match(settings, { jitter: 60_000, minChange: 1_048_576, bwlimit: 5, within: 86_400_000 } satisfies JobSettings)
  t.match(retentionOf(settings), { last: 1, yearly: '*', within: 86_400_000, tags: ['k'] })
})
