import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'

import t, { type Test } from 'tap'

import { cliEnvironment } from '../demo/virtvault-cli.js'
import { NoticeServer } from '../harness/notice-server.js'
import { requires } from '../harness/requires.js'
import { FakeAgent } from '../lab/fake-agent.js'
import { MIB } from '../lab/fill.js'
import { Lab } from '../lab/lab.js'
import { run } from '../lab/run-program.js'

const MAIN = fileURLToPath(new URL('../../src/cli/main.cjs', import.meta.url))
const PATIENCE_MS = 120_000

t.setTimeout(900_000)

interface Ended {
  readonly code: number | null
  readonly stdout: string
  readonly stderr: string
}

interface Job {
  readonly id: string
  readonly domain?: string
  readonly target: string
  readonly state: string
  readonly last_status?: string
  readonly last_success?: string
}

interface Status {
  readonly libvirt_connected: boolean
  readonly config_problems: readonly string[]
  readonly jobs: readonly Job[]
}

interface Run {
  readonly kind: string
  readonly domain: string
  readonly target: string
  readonly status: string
  readonly attempt: number
  readonly retry_at?: string
  readonly point?: string
  readonly error?: { readonly code: string }
}

/** What must come of the night, domain by domain. */
const EXPECTED: Readonly<Record<string, string>> = {
  'prod-1': 'success',
  'prod-2': 'E_AGENT',
  'prod-3': 'skipped',
  'prod-4': 'success',
  'lab-1': 'success',
  'lab-2': 'success',
  'lab-3': 'E_NO_SPACE',
  'lab-4': 'success',
  'lab-5': 'success',
  'lab-6': 'success',
}

t.test('a night with everything that can happen', { ...requires('lab'), timeout: 900_000 }, async t => {
  await using lab = await Lab.start()
  await using service = await NoticeServer.listen()
  const config = lab.path('config.yml')
  const textfile = lab.path('virtvault.prom')
  const hooks = lab.path('hooks.log')
  await using tiny = await smallFileSystem(lab.path('tiny'))
  const settings = `
uri: ${lab.uri}
threads: 3
retry: { attempts: 1, delay: 2s }
targets:
  nas: { path: ${lab.path('nas')} }
  mirror: { path: ${lab.path('mirror')} }
  offsite: { path: ${lab.path('offsite')}, parallel: 2 }
  tiny: { path: ${tiny.path}/store }
default: { quiesce: false }
groups:
  prod: { targets: [nas, mirror], schedule: '0 2 * * *', daily: 7, hosts: ['r:^prod-', { host: prod-2, quiesce: required }, { host: prod-3, disable_if_powered_off: true }] }
  lab: { target: offsite, schedule: '0 3 * * *', daily: 3, hosts: ['r:^lab-'] }
commands:
  - before: everything
    run: 'echo before $VIRTVAULT_EVENT >> ${hooks}'
  - after: domain
    states: [failed]
    run: 'echo $VIRTVAULT_DOMAIN $VIRTVAULT_ERROR_CODE $VIRTVAULT_EXIT >> ${hooks}'
notify:
  webhook: { url: '${service.url('/hook')}', on: [all] }
  healthchecks: { url: '${service.url('/ping/secret')}', start: true }
metrics: { textfile: ${textfile} }
`
  writeFileSync(config, settings, { mode: 0o600 })
  const env = { ...process.env, ...cliEnvironment(lab), VIRTVAULT_CONFIG: config }

  const virtvault = (...args: readonly string[]) =>
    new Promise<Ended>((done, fail) => {
      const child = spawn(MAIN, args, { env, stdio: ['ignore', 'pipe', 'pipe'] })
      let stdout = ''
      let stderr = ''
      child.stdout.on('data', (part: Buffer) => (stdout += part.toString()))
      child.stderr.on('data', (part: Buffer) => (stderr += part.toString()))
      child.once('error', fail)
      child.once('close', code => done({ code, stdout, stderr }))
    })
  const json = async (...args: readonly string[]) => JSON.parse((await virtvault(...args, '--json')).stdout) as unknown
  const until = async (what: string, isTrue: () => Promise<boolean>) => {
    const deadline = performance.now() + PATIENCE_MS
    while (!(await isTrue())) {
      if (performance.now() > deadline) throw new Error(`never: ${what}\n${log.text}`)
      await delay(200)
    }
  }
  const newDomain = async (name: string, agent?: 'fake') => {
    const content = [{ kind: 'write', offset: 0, length: 4 * MIB, fill: { seed: name.length } }] as const
    return await lab.domain({
      name,
      ...(agent === undefined ? {} : { agent }),
      disks: [{ target: 'vda', size: 64 * MIB, content }],
    })
  }

  for (const target of ['nas', 'mirror', 'offsite', 'tiny'])
    t.equal((await virtvault('init', target)).code, 0, `init ${target}`)
  const log = { text: '' }
  for (const name of ['prod-1', 'prod-3', 'prod-4', 'prod-5', 'lab-1', 'lab-2', 'lab-3', 'lab-4', 'lab-5']) {
    const domain = await newDomain(name)
    if (name !== 'prod-3') await domain.start()
  }
  const mute = await newDomain('prod-2', 'fake')
  await using agent = await FakeAgent.listen(mute.agentSocket)
  await mute.start()
  for (const command of ['guest-ping', 'guest-fsfreeze-freeze', 'guest-fsfreeze-status'])
    agent.moods.set(command, 'hang')

  const daemon = spawn(MAIN, ['daemon', 'run'], { env, stdio: ['ignore', 'inherit', 'pipe'] })
  daemon.stderr.on('data', (part: Buffer) => (log.text += part.toString()))
  t.teardown(() => daemon.kill('SIGKILL'))
  const status = async () => (await json('daemon', 'status')) as Status
  const names = async () => [...new Set((await status()).jobs.map(({ domain }) => domain))].sort()
  await until('the daemon knows ten domains', async () => {
    const { code } = await virtvault('daemon', 'status')
    return code === 0 && (await names()).length === 10
  })

  await t.test('a domain that is added, one that is removed and a job in metadata are seen by themselves', async t => {
    const added = await newDomain('lab-6')
    await added.start()
    await lab.virsh('destroy', 'prod-5')
    await lab.virsh('undefine', 'prod-5')
    t.match(await virtvault('job', 'set', 'lab-3', '--group', 'lab', '--to', 'tiny'), { code: 0 })

    await until('the daemon has followed', async () => {
      const { jobs } = await status()
      const found = new Map(jobs.map(({ domain, target }) => [domain, target]))
      return found.has('lab-6') && !found.has('prod-5') && found.get('lab-3') === 'tiny'
    })
    t.strictSame(await names(), Object.keys(EXPECTED).sort())
    const shown = (await virtvault('job', 'show', 'lab-3')).stdout
    t.match(shown, /targets +tiny +job lab/)
    t.match(shown, /daily +3 +.*config\.yml:\d+:\d+/)
    t.match(shown, /catch_up +true +built-in/)
  })

  await t.test('a broken edit keeps the last good configuration, and says so', async t => {
    writeFileSync(config, settings.replace('daily: 7', 'dayly: 7'))
    t.match(await virtvault('daemon', 'reload'), { code: 2, stderr: /dayly: unknown key/ })
    const { config_problems, jobs } = await status()
    t.match(config_problems, [/Did you mean "daily"/])
    t.equal(jobs.length, 14)
    writeFileSync(config, settings)
    await until('it is mended by itself', async () => (await status()).config_problems.length === 0)
  })

  let runs: readonly Run[] = []
  await t.test('each domain gets the result that fits it, although libvirtd restarts in the middle', async t => {
    t.equal((await virtvault('job', 'run', '-g', 'prod')).code, 0)
    const waiting = virtvault('job', 'run', '-g', 'lab', '--wait', '--json')
    await until('something runs', async () => (await status()).jobs.some(({ state }) => state === 'running'))
    await lab.restartDaemon({ signal: 'SIGTERM' })

    const { code, stdout } = await waiting
    // A job that waits for its next attempt is idle too: what has ended is known by its last entry.
    await until('all have ended', async () => {
      const { entries } = (await json('job', 'history', '--limit', '1000')) as { entries: Run[] }
      runs = entries.filter(({ kind, retry_at }) => kind === 'run' && retry_at === undefined)
      return runs.length >= 14
    })
    t.equal(code, 3, stdout)
    const results = Object.fromEntries(runs.map(({ domain, error, status: how }) => [domain, error?.code ?? how]))
    t.strictSame(results, EXPECTED, log.text)
  })

  await t.test('points, summary and exit codes agree with it', async t => {
    const listed = async (target: string) =>
      ((await json('list', '-t', target)) as { points: { domain: string; id: string }[] }).points
    const targets = await Promise.all(['nas', 'mirror', 'offsite'].map(listed))
    const points = targets.flat().map(({ id }) => id)
    const made = runs.flatMap(({ point }) => point ?? [])
    t.strictSame(points.sort(), made.sort())
    t.strictSame(await listed('tiny'), [])
    t.match(await virtvault('status', '--check'), { code: 20, stdout: /^critical: 14 jobs, 3 critical/ })
    const nagios = await virtvault('status', '--nagios')
    t.match(nagios, { code: 2, stdout: /^VIRTVAULT CRITICAL - / })
    for (const name of ['prod-2', 'lab-3']) t.match(nagios.stdout, `${name} to`)
  })

  await t.test('notifications agree with it', async t => {
    const results = async () => {
      const told = service.received.filter(({ path }) => path === '/hook').map(({ body }) => JSON.parse(body) as Notice)
      return told.flatMap(one =>
        one.results.map(({ domain, status, error }) => [domain, error?.code ?? status] as const),
      )
    }
    await until('all are told', async () => (await results()).length >= 14)
    t.strictSame(Object.fromEntries(await results()), EXPECTED)
    const pings = service.received.map(({ path }) => path).filter(path => path.startsWith('/ping'))
    t.ok(pings.includes('/ping/secret/start'))
    t.ok(pings.includes('/ping/secret/3'), 'partial is no success')
    t.notMatch(log.text, 'ping/secret', 'the secret of a URL is in no log')
  })

  await t.test('metrics agree with it', async t => {
    const value = (text: string, name: string, domain: string) =>
      Number(new RegExp(`^${name}\\{domain="${domain}",.*\\} (.*)$`, 'm').exec(text)?.[1])
    await until('the file is written', async () => {
      const text = readFileSync(textfile, 'utf8')
      return Object.entries(EXPECTED).every(
        ([name, result]) => value(text, 'virtvault_backup_last_status', name) === (result.startsWith('E_') ? 2 : 0),
      )
    })
    const text = readFileSync(textfile, 'utf8')
    for (const [name, result] of Object.entries(EXPECTED)) {
      const isGood = result === 'success'
      t.equal(value(text, 'virtvault_backup_last_status', name), result.startsWith('E_') ? 2 : 0, name)
      const success = value(text, 'virtvault_backup_last_success_timestamp_seconds', name)
      t.equal(Number.isNaN(success), !isGood, name)
      if (isGood) t.ok(value(text, 'virtvault_backup_read_bytes', name) >= 4 * MIB, name)
    }
  })

  await t.test('hooks ran once for everything, and for each domain that failed', async t => {
    const lines = readFileSync(hooks, 'utf8').trim().split('\n')
    t.equal(lines.filter(line => line === 'before before.everything').length, 1)
    t.equal(lines.filter(line => line.startsWith('prod-2')).length, 2, 'once for both its targets, at each attempt')
    for (const line of ['prod-2 E_AGENT 6', 'lab-3 E_NO_SPACE 13']) t.ok(lines.includes(line), line)
  })

  await t.test('SIGTERM ends it in order, and its memory serves the next one', async t => {
    t.strictSame(await end(daemon), 0)
    t.equal((await virtvault('daemon', 'status')).code, 14)
    const offline = (await json('status')) as { source: string; jobs: Job[] }
    t.equal(offline.source, 'offline')
    for (const { domain, last_status } of offline.jobs) {
      t.equal(last_status, (EXPECTED[domain ?? ''] ?? '').replace(/^E_.*/, 'failed'), domain ?? '')
    }
    await leavesNothing(t, lab)
  })
})

/** Of 1 MiB, in memory. Gone before the lab is, whoever still uses it. */
async function smallFileSystem(path: string): Promise<AsyncDisposable & { readonly path: string }> {
  mkdirSync(path)
  await run('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', path])
  return {
    path,
    [Symbol.asyncDispose]: async () => {
      await run('umount', ['--lazy', path])
    },
  }
}

interface Notice {
  readonly results: readonly {
    readonly domain: string
    readonly status: string
    readonly error?: { readonly code: string }
  }[]
}

async function end(daemon: ChildProcess): Promise<unknown> {
  const ended = once(daemon, 'exit')
  daemon.kill('SIGTERM')
  const [code] = (await ended) as unknown[]
  return code
}

async function leavesNothing(t: Test, lab: Lab): Promise<void> {
  for (const name of Object.keys(EXPECTED)) {
    const { code } = await lab.tryVirsh('domjobinfo', name)
    if (name !== 'prod-3') t.equal(code, 0)
    t.notMatch((await lab.tryVirsh('domjobinfo', name)).stdout, /Operation: +Backup/)
  }
}
