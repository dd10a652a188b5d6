import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { setTimeout as delay } from 'node:timers/promises'

import t from 'tap'

import { metricFamilies } from '../../src/daemon/metrics.js'
import { VIRT_DUP_METADATA_URI } from '../../src/libvirt/virt-dup-xml.js'
import { cliEnvironment } from '../demo/virtvault-cli.js'
import { NoticeServer } from '../harness/notice-server.js'
import { requires } from '../harness/requires.js'
import { MAIN, runCli } from '../harness/run-cli.js'
import { MIB } from '../lab/fill.js'
import { Lab } from '../lab/lab.js'

// A Linux boots three times on an emulated processor, and schedules go by the minute.
t.setTimeout(600_000)
const PATIENCE_MS = 180_000

interface Job {
  readonly id: string
  readonly verb: string
  readonly target: string
  readonly state: string
  readonly last_status?: string
}

interface Run {
  readonly kind: string
  readonly verb: string
  readonly task: string
  readonly trigger: string
  readonly status: string
  readonly domain?: string
  readonly figures: Readonly<Record<string, number>>
}

/** The service manager's end of NOTIFY_SOCKET: a datagram socket, which Node has none of. */
class ServiceManager implements AsyncDisposable {
  readonly told: string[] = []
  readonly #child: ChildProcess

  private constructor(child: ChildProcess) {
    this.#child = child
    createInterface({ input: child.stdout! }).on('line', line => this.told.push(line))
  }

  static async listen(path: string): Promise<ServiceManager> {
    const script = `
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1])
print("listening", flush=True)
while True: print(s.recv(4096).decode(), flush=True)
`
    const manager = new ServiceManager(spawn('python3', ['-c', script, path], { stdio: ['ignore', 'pipe', 'inherit'] }))
    while (manager.told.length === 0) await delay(20)
    return manager
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.#child.kill('SIGKILL')
    return Promise.resolve()
  }
}

t.test('the daemon and everything that it does by itself', { ...requires('lab'), timeout: 600_000 }, async t => {
  await using lab = await Lab.start()
  await using service = await NoticeServer.listen()
  await using manager = await ServiceManager.listen(lab.path('notify'))
  const config = lab.path('config.yml')
  const textfile = lab.path('virtvault.prom')
  const hooks = lab.path('hooks.log')
  mkdirSync(lab.path('credentials'))
  writeFileSync(lab.path('credentials/offsite-key'), 'correct horse battery staple\n', { mode: 0o600 })
  const settings = `
uri: ${lab.uri}
threads: 1
retry: { attempts: 0 }
targets:
  nas: { path: ${lab.path('nas')} }
  offsite: { path: ${lab.path('offsite')}, encryption: { passphrase_credential: offsite-key } }
groups:
  prod: { targets: [nas, offsite], schedule: '0 2 1 1 *', quiesce: required, last: 1, hosts: [linux] }
commands:
  - { before: domain, when: [pull], inside: true, run: 'echo "$VIRTVAULT_EVENT $VIRTVAULT_TARGET" >> /mnt/vda/hooked' }
  - { after: point, run: 'echo "$VIRTVAULT_EVENT $VIRTVAULT_TARGET $VIRTVAULT_STATUS" >> ${hooks}' }
  - { after: domain, when: [pull], run: 'echo "$VIRTVAULT_EVENT $VIRTVAULT_TARGET $VIRTVAULT_STATUS" >> ${hooks}' }
notify:
  ntfy: { topic: '${service.url('/ntfy')}', on: [all] }
metrics: { textfile: ${textfile} }
`
  const upkeep = `
prune: { schedule: '* * * * *' }
gc: { schedule: '* * * * *', targets: [nas] }
verify: { schedule: '* * * * *', targets: [nas], level: restore, boot: { schedule: '* * * * *', groups: [prod], timeout: 3m } }
`
  writeFileSync(config, settings, { mode: 0o600 })
  const env = {
    ...process.env,
    ...cliEnvironment(lab),
    VIRTVAULT_CONFIG: config,
    CREDENTIALS_DIRECTORY: lab.path('credentials'),
  }
  const virtvault = (...args: readonly string[]) => runCli(args, env)
  const json = async (...args: readonly string[]) => JSON.parse((await virtvault(...args, '--json')).stdout) as unknown
  const log = { text: '' }
  const until = async (what: string, isTrue: () => boolean | Promise<boolean>) => {
    const deadline = performance.now() + PATIENCE_MS
    while (!(await isTrue())) {
      if (performance.now() > deadline) throw new Error(`never: ${what}\n${log.text}`)
      await delay(500)
    }
  }
  const jobs = async () => ((await json('daemon', 'status')) as { jobs: readonly Job[] }).jobs
  const runs = async () => {
    const { entries } = (await json('job', 'history', '--limit', '1000')) as { entries: readonly Run[] }
    return entries.filter(({ kind }) => kind === 'run')
  }

  for (const target of ['nas', 'offsite']) t.equal((await virtvault('init', target)).code, 0, `init ${target}`)
  const guest = await lab.linuxGuest({ name: 'linux', disks: [{ target: 'vda', size: 64 * MIB, fileSystem: 'ext4' }] })
  await guest.start()
  const daemon = spawn(MAIN, ['daemon', 'run'], {
    env: { ...env, NOTIFY_SOCKET: lab.path('notify'), WATCHDOG_USEC: '60000000' },
    stdio: ['ignore', 'inherit', 'pipe'],
  })
  daemon.stderr.on('data', (part: Buffer) => (log.text += part.toString()))
  t.teardown(() => daemon.kill('SIGKILL'))

  await t.test('the service manager hears that it is ready, and that it lives', async t => {
    await until('READY=1', () => manager.told.includes('READY=1'))
    await until('the domain is known', async () => (await jobs()).length === 2)
    await until('WATCHDOG=1', () => manager.told.includes('WATCHDOG=1'))
    t.ok(manager.told.some(line => /^STATUS=2 jobs/.test(line)))
  })

  await t.test(
    'one read goes to both targets, one of them with a key from a credential, with hooks in the guest',
    async t => {
      const { code, stdout } = await virtvault('job', 'run', 'linux', '--wait')
      t.equal(code, 0, stdout + log.text)
      t.equal((await guest.exec('cat /mnt/vda/hooked')).trim(), 'before.domain nas,offsite', 'in the guest, once')
      t.strictSame(readFileSync(hooks, 'utf8').trim().split('\n'), [
        'after.point nas success',
        'after.point offsite success',
        'after.domain nas,offsite success',
      ])
      const made = await runs()
      t.strictSame(made.map(({ task, status }) => `${task.split('/').at(-1)} ${status}`).sort(), [
        'nas success',
        'offsite success',
      ])
      t.ok(
        made.every(({ figures }) => figures['frozen_seconds'] !== undefined),
        'the guest was frozen',
      )
      await until('ntfy is told', () => service.received.some(({ path }) => path === '/ntfy'))
      t.match(
        service.received.find(({ path }) => path === '/ntfy'),
        { headers: { title: /linux|success|backup/i } },
      )
    },
  )

  await t.test('jobs in the domain are paused, resumed, taken over from virt-dup, and removed', async t => {
    const states = async () =>
      Object.fromEntries((await jobs()).map(({ id, state }) => [id.split('/').slice(2).join('/'), state]))
    t.match(await virtvault('job', 'pause', 'linux'), { code: 0, stdout: /linux: job prod is paused/ })
    await until('both are paused', async () => Object.values(await states()).every(state => state === 'paused'))
    t.match(await virtvault('job', 'resume', 'linux'), { code: 0, stdout: /resumed/ })
    await until('both wait again', async () => Object.values(await states()).every(state => state === 'idle'))

    const xml = '<instance><job uuid="dup" schedule="31 * * * *" backends="s3"><dev>vda</dev></job></instance>'
    const place = ['--uri', VIRT_DUP_METADATA_URI, '--key', 'virt-dup']
    await lab.virsh('metadata', 'linux', ...place, '--set', xml, '--config', '--live')
    t.match(await virtvault('job', 'import', '--dry-run'), { code: 0, stdout: /linux: job dup\n +! .*choose a target/ })
    t.match(await virtvault('job', 'import', 'linux'), { code: 0 })
    t.match(await virtvault('job', 'set', 'linux', '--job', 'dup', '--to', 'nas'), { code: 0 })
    await until('the daemon has it', async () => 'dup/nas' in (await states()))
    t.match((await virtvault('job', 'show', 'linux')).stdout, /schedule +31 \* \* \* \*/)
    t.match(await virtvault('job', 'unset', 'linux', '--job', 'dup'), { code: 0 })
    await until('it is gone again', async () => !('dup/nas' in (await states())))
    t.match(await virtvault('job', 'unset', 'linux', '--job', 'never'), { code: 4 })
  })

  await t.test('SIGHUP reads the configuration again, and says so to the service manager', async t => {
    t.equal((await virtvault('job', 'run', 'linux', '--wait')).code, 0)
    t.notOk(manager.told.includes('RELOADING=1'))
    writeFileSync(config, settings + upkeep, { mode: 0o600 })
    daemon.kill('SIGHUP')
    await until('RELOADING=1', () => manager.told.includes('RELOADING=1'))
    await until('READY=1 once more', () => manager.told.filter(line => line === 'READY=1').length === 2)
    t.equal((await jobs()).length, 7, 'prune of both targets, gc, verify and boot test of one have come')
  })

  await t.test('prune, gc, verify and boot test run on their schedules, and do their work', async t => {
    const kinds = ['prune/nas', 'prune/offsite', 'gc/nas', 'verify/nas', 'verify/nas/boot']
    const done = async (task: string) =>
      (await runs()).find(run => run.task === task && run.trigger === 'schedule' && run.status !== 'failed')
    for (const task of kinds) await until(`${task} has run`, async () => (await done(task)) !== undefined)

    t.match(await done('prune/nas'), { status: 'success', figures: { expired_points: 1 } })
    t.match(await done('verify/nas'), { status: 'success', figures: { points: 1 } })
    t.ok(((await done('verify/nas/boot'))?.figures['boot_seconds'] ?? 0) > 0)
    const { points } = (await json('list', '-t', 'nas')) as { points: readonly object[] }
    t.equal(points.length, 1)
  })

  await t.test('every metric that there is comes from what has run', async t => {
    const facts = { version: '1', views: [], figures: new Map(), stores: [], libvirtConnected: true, configOk: true }
    const names = metricFamilies(facts).map(({ name }) => name)
    const missing = () => {
      const text = readFileSync(textfile, 'utf8')
      return names.filter(name => !text.includes(`\n${name}{`) && !text.includes(`\n${name} `))
    }
    await until('the file has all', () => missing().length === 0).catch(() => undefined)
    t.strictSame(missing(), [])
  })

  await t.test('SIGTERM begins nothing more, and waits for what runs', async t => {
    writeFileSync(config, settings, { mode: 0o600 })
    t.equal((await virtvault('daemon', 'reload')).code, 0)
    await until('nothing runs', async () => (await jobs()).every(({ state }) => state === 'idle'))
    t.match(await lab.virsh('list', '--all', '--name'), /^\s*linux\s*$/, 'no trial is left')
    await guest.exec('head -c 30000000 /dev/urandom > /mnt/vda/noise; sync')
    const before = (await runs()).length
    t.equal((await virtvault('job', 'run', 'linux')).code, 0)
    await until('it runs', async () => (await jobs()).some(({ state }) => state === 'running'))
    const ended = once(daemon, 'exit')
    daemon.kill('SIGTERM')
    t.strictSame(await ended, [0, null])

    t.ok(manager.told.includes('STOPPING=1'))
    const after = (await runs()).slice(-2)
    t.equal((await runs()).length, before + 2)
    t.match(after, [{ status: 'success' }, { status: 'success' }], 'what ran was finished')
    t.strictSame((await guest.domain.leftovers()).jobs, [])
  })
})
