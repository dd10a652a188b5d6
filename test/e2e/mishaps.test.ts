import { type ChildProcess, spawn } from 'node:child_process'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'

import t, { type Test } from 'tap'

import { Store } from '../../src/store/store.js'
import { requires } from '../harness/requires.js'
import { fillBytes, MIB } from '../lab/fill.js'
import { HeldExport } from '../lab/held-export.js'
import { imageDifference } from '../lab/images.js'
import type { LabDomain } from '../lab/lab-domain.js'
import { Lab } from '../lab/lab.js'
import { run } from '../lab/run-program.js'

t.setTimeout(300_000)
const MAIN = fileURLToPath(new URL('../../src/cli/main.cjs', import.meta.url))
const DISK = 48 * MIB
const CONTENT = { seed: 1 }

/** A running domain whose disk gives back its first half only, until `below` is released. */
interface Scene {
  readonly lab: Lab
  readonly domain: LabDomain
  readonly below: HeldExport
  readonly store: string
  readonly env: NodeJS.ProcessEnv
}

async function belowOf(lab: Lab): Promise<HeldExport> {
  return HeldExport.listen(lab.path('below.sock'), { bytes: fillBytes(CONTENT, DISK), holdFrom: DISK / 2 })
}

async function setUp(lab: Lab, below: HeldExport): Promise<Scene> {
  const content = [{ kind: 'write', offset: 0, length: DISK, fill: CONTENT }] as const
  const disks = [{ target: 'vda', size: DISK, content, over: below.socket }]
  const domain = await lab.domain({ name: 'web01', disks })
  await domain.start()
  const env = {
    ...process.env,
    VIRTVAULT_RUNTIME_DIR: `${lab.scratchFolder}/r`,
    VIRTVAULT_SCRATCH_DIR: `${lab.scratchFolder}/s`,
    VIRTVAULT_STATE_DIR: lab.path('state'),
    VIRTVAULT_TARGET: lab.path('store'),
    VIRTVAULT_CONNECT: lab.uri,
  }
  await run(process.execPath, [MAIN, 'init'], { env })
  return { lab, domain, below, store: lab.path('store'), env }
}

interface CaughtPull {
  readonly child: ChildProcess
  readonly ended: Promise<number | string>
  /** Resolves when it says so on stderr; rejects where it ends without. */
  readonly says: (text: string) => Promise<void>
}

/** Starts a pull and resolves when it waits for the second half of the disk. */
async function catchPull({ env, below }: Scene): Promise<CaughtPull> {
  const child = spawn(process.execPath, [MAIN, 'backup', 'pull', 'web01', '--no-quiesce', '--progress', 'json'], {
    env,
    stdio: ['ignore', 'ignore', 'pipe'],
  })
  const said: string[] = []
  const ended = new Promise<number | string>(resolve => {
    child.once('exit', (code, signal) => resolve(code ?? signal ?? 'nothing'))
  })
  const lines = createInterface({ input: child.stderr })
  lines.on('line', line => said.push(line))
  const says = (text: string) =>
    new Promise<void>((resolve, reject) => {
      const isThere = () => said.some(line => line.includes(text))
      if (isThere()) resolve()
      lines.on('line', () => isThere() && resolve())
      lines.once('close', () => reject(new Error(`never said "${text}":\n${said.join('\n')}`)))
    })
  const tooEarly = ended.then(code => Promise.reject(new Error(`ended too early with ${code}:\n${said.join('\n')}`)))
  await Promise.race([below.held, tooEarly])
  tooEarly.catch(() => undefined)
  return { child, ended, says }
}

/** Waits until libvirt knows of no job of the domain; what it cannot say while one ends is no answer. */
async function untilNoJob({ lab, domain }: Scene): Promise<void> {
  for (;;) {
    const { code, stdout } = await lab.tryVirsh('domjobinfo', domain.uuid)
    if (code === 0 && /^Job type:\s*None/m.test(stdout)) return
  }
}

async function pullAndCompare(t: Test, { lab, domain, store, env }: Scene): Promise<string | undefined> {
  const reference = await domain.referenceImage('vda', 'before')
  await run(process.execPath, [MAIN, 'backup', 'pull', 'web01', '--no-quiesce', '-q'], { env })
  const to = lab.path('restored')
  await run(process.execPath, [MAIN, 'restore', 'web01@latest', '--to', to, '-q'], { env })
  await using opened = await Store.open(store)
  t.equal((await opened.runs.dead()).length, 0, 'no journal is left')
  return await imageDifference({ path: `${to}/vda.qcow2`, format: 'qcow2' }, { path: reference, format: 'raw' })
}

t.test(
  'kill -9 in the middle: the guardian ends the job, the next pull cleans the rest and is right',
  requires('lab'),
  async t => {
    await using lab = await Lab.start()
    await using below = await belowOf(lab)
    const scene = await setUp(lab, below)
    const { child, ended } = await catchPull(scene)

    child.kill('SIGKILL')
    t.equal(await ended, 'SIGKILL')
    below.release()

    // The guardian needs no next run for what hurts the guest.
    await untilNoJob(scene)
    const after = await scene.domain.leftovers()
    t.strictSame([after.jobs, after.exports], [[], []])
    t.equal(await scene.domain.state(), 'running')
    await using store = await Store.open(scene.store)
    t.strictSame(await store.points.list(), [], 'no point was made')

    t.equal(await pullAndCompare(t, scene), undefined)
    const left = await scene.domain.leftovers()
    t.equal(left.checkpoints.length, 1, 'only the checkpoint of the new point')
    t.strictSame([left.jobs, left.exports, left.files], [[], [], []])
  },
)

for (const [signal, code] of [
  ['SIGINT', 130],
  ['SIGTERM', 143],
] as const) {
  t.test(`${signal} in the middle ends with ${code} and leaves nothing`, requires('lab'), async t => {
    await using lab = await Lab.start()
    await using below = await belowOf(lab)
    const scene = await setUp(lab, below)
    const { child, ended, says } = await catchPull(scene)

    child.kill(signal)
    await says('cleaning up')
    below.release()

    t.equal(await ended, code)
    const left = await scene.domain.leftovers()
    t.strictSame([left.jobs, left.exports, left.checkpoints, left.files], [[], [], [], []])
    t.equal(await scene.domain.state(), 'running')
    t.equal(await pullAndCompare(t, scene), undefined)
  })
}

t.test('a domain that is destroyed in the middle gives no point and a clear error', requires('lab'), async t => {
  await using lab = await Lab.start()
  await using below = await belowOf(lab)
  const scene = await setUp(lab, below)
  const { ended, says } = await catchPull(scene)

  await scene.domain.destroy()
  below.release()

  t.not(await ended, 0)
  await says('"E_')
  await using store = await Store.open(scene.store)
  t.strictSame(await store.points.list(), [])
  await scene.domain.start()
  t.equal(await pullAndCompare(t, scene), undefined)
})

t.test('libvirtd restarted in the middle costs nothing', requires('lab'), async t => {
  await using lab = await Lab.start()
  await using below = await belowOf(lab)
  const scene = await setUp(lab, below)
  const { ended } = await catchPull(scene)

  await lab.restartDaemon({ signal: 'SIGKILL' })
  below.release()

  t.equal(await ended, 0)
  const to = lab.path('restored')
  await run(process.execPath, [MAIN, 'restore', 'web01@latest', '--to', to, '-q'], { env: scene.env })
  const reference = await scene.domain.referenceImage('vda', 'before')
  t.equal(
    await imageDifference({ path: `${to}/vda.qcow2`, format: 'qcow2' }, { path: reference, format: 'raw' }),
    undefined,
  )
  const left = await scene.domain.leftovers()
  t.strictSame([left.jobs, left.exports, left.files], [[], [], []])
})
