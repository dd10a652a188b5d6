import { spawn } from 'node:child_process'
import { join } from 'node:path'

import t, { type Test } from 'tap'

import { sshEnvironment } from '../harness/remote-scene.js'
import { requires } from '../harness/requires.js'
import { MAIN, runCli } from '../harness/run-cli.js'
import { fillBytes, KIB, MIB } from '../lab/fill.js'
import { HeldExport } from '../lab/held-export.js'
import { imageDifference } from '../lab/images.js'
import { RemoteLab } from '../lab/remote-lab.js'

t.setTimeout(300_000)
const DISK = 48 * MIB
const CONTENT = { seed: 1 }

/** A domain of another machine whose disk gives back its first half only, until `below` is released. */
async function setUp(t: Test, name: string) {
  const remote = await RemoteLab.start()
  t.teardown(() => remote[Symbol.asyncDispose]())
  const { lab } = remote
  const below = await HeldExport.listen(lab.path('below.sock'), {
    bytes: fillBytes(CONTENT, DISK),
    holdFrom: DISK / 2,
  })
  t.teardown(() => below[Symbol.asyncDispose]())
  const content = [{ kind: 'write', offset: 0, length: DISK, fill: CONTENT }] as const
  const domain = await lab.domain({ name, disks: [{ target: 'vda', size: DISK, content, over: below.socket }] })
  await domain.start()
  const env = sshEnvironment(remote)
  t.equal((await runCli(['init'], env)).code, 0)
  return { remote, lab, below, domain, env }
}

type Scene = Awaited<ReturnType<typeof setUp>>

/** Starts a pull and resolves when it waits for the second half of the disk. */
async function catchPull({ env, below, domain }: Scene) {
  const child = spawn(MAIN, ['backup', 'pull', domain.name, '--no-quiesce', '--json'], {
    env,
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let said = ''
  child.stdout.on('data', (part: Buffer) => (said += part.toString()))
  child.stderr.on('data', (part: Buffer) => (said += part.toString()))
  const ended = new Promise<{ code: number | string; said: string }>(done =>
    child.once('close', (code, signal) => done({ code: code ?? signal ?? 'nothing', said })),
  )
  const tooEarly = ended.then(end => Promise.reject(new Error(`ended too early with ${end.code}:\n${end.said}`)))
  await Promise.race([below.held, tooEarly])
  tooEarly.catch(() => undefined)
  return { child, ended }
}

/** What libvirt cannot say while a job ends is no answer. */
async function untilNoJob({ lab, domain }: Scene): Promise<void> {
  for (;;) {
    const { code, stdout } = await lab.tryVirsh('domjobinfo', domain.uuid)
    if (code === 0 && /^Job type:\s*None/m.test(stdout)) return
  }
}

/** The next pull is right, and leaves one checkpoint and nothing else. */
async function nextPullIsRight(t: Test, { lab, domain, env }: Scene): Promise<void> {
  t.match(JSON.parse((await runCli(['list', '--json'], env)).stdout), { points: { length: 0 } }, 'no point was made')
  await domain.write('vda', 0, 64 * KIB, { seed: 2 })
  const pulled = await runCli(['backup', 'pull', domain.name, '--no-quiesce', '--json'], env)
  t.equal(pulled.code, 0, pulled.stdout)
  const to = lab.path('restored')
  t.equal((await runCli(['restore', `${domain.name}@latest`, '--to', to], env)).code, 0)
  const held = await domain.referenceImage('vda', 'held')
  const restored = { path: join(to, 'vda.qcow2'), format: 'qcow2' } as const
  t.equal(await imageDifference(restored, { path: held, format: 'raw' }), undefined)
  const left = await domain.leftovers()
  t.strictSame([left.jobs, left.exports, left.files, left.checkpoints.length], [[], [], [], 1])
  t.equal(await domain.state(), 'running')
  await lab.inside(`[ -z "$(find /run/virtvault /var/lib/virtvault -mindepth 1 -name 'run-*')" ]`)
}

t.test(
  'every ssh connection cut in mid-pull: a clear error, the job is ended, the next pull is right',
  requires('remote-lab'),
  async t => {
    const scene = await setUp(t, 'cut01')
    const { ended } = await catchPull(scene)

    await scene.remote.cutSsh()
    scene.below.release()

    const { code, said } = await ended
    t.equal(code, 14)
    t.match(said, /E_UNREACHABLE|E_NBD/)
    t.match(said, /the ssh connection was lost|reconnecting failed/)
    const left = await scene.domain.leftovers()
    t.strictSame([left.jobs, left.exports], [[], []], 'by itself, over a new connection')
    t.equal(await scene.domain.state(), 'running')
    await nextPullIsRight(t, scene)
  },
)

t.test(
  'kill -9 in mid-pull: the guardian ends the job over there, the next pull is right',
  requires('remote-lab'),
  async t => {
    const scene = await setUp(t, 'killed01')
    const { child, ended } = await catchPull(scene)

    child.kill('SIGKILL')
    t.equal((await ended).code, 'SIGKILL')
    scene.below.release()

    await untilNoJob(scene)
    t.equal(await scene.domain.state(), 'running')
    await nextPullIsRight(t, scene)
  },
)

t.test('the libvirtd over there restarted in mid-pull costs nothing', requires('remote-lab'), async t => {
  const scene = await setUp(t, 'restarted01')
  const { ended } = await catchPull(scene)

  await scene.lab.restartDaemon({ signal: 'SIGKILL' })
  scene.below.release()

  const { code, said } = await ended
  t.equal(code, 0, said)
  const left = await scene.domain.leftovers()
  t.strictSame([left.jobs, left.exports, left.files, left.checkpoints.length], [[], [], [], 1])
})
