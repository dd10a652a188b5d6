import { type ChildProcess, spawn } from 'node:child_process'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'

import t, { type Test } from 'tap'

import { Store } from '../../src/store/store.js'
import { requires } from '../harness/requires.js'
import { MIB } from '../lab/fill.js'
import { imageDifference } from '../lab/images.js'
import type { LabDomain } from '../lab/lab-domain.js'
import { Lab } from '../lab/lab.js'
import { run } from '../lab/run-program.js'

// Run by `npm run test:mishaps`: it must catch a pull in the middle, which a quick machine may not let it;
// pull-cli.test.ts and backup-session.test.ts hold the same claims in the default run.
t.setTimeout(300_000)
const MAIN = fileURLToPath(new URL('../../src/cli/main.cjs', import.meta.url))
/** Enough for a pull to be caught in the middle of it. */
const DISK = 400 * MIB

interface Set {
  readonly lab: Lab
  readonly domain: LabDomain
  readonly store: string
  readonly env: NodeJS.ProcessEnv
}

async function setUp(lab: Lab): Promise<Set> {
  const domain = await lab.domain({ name: 'web01', disks: [{ target: 'vda', size: DISK }] })
  await domain.start()
  for (let at = 0; at < DISK; at += 100 * MIB) await domain.write('vda', at, 100 * MIB, { seed: 1 + at })
  const env = {
    ...process.env,
    VIRTVAULT_RUNTIME_DIR: `${lab.scratchFolder}/r`,
    VIRTVAULT_SCRATCH_DIR: `${lab.scratchFolder}/s`,
    VIRTVAULT_STATE_DIR: lab.path('state'),
    VIRTVAULT_TARGET: lab.path('store'),
    VIRTVAULT_CONNECT: lab.uri,
  }
  await run(process.execPath, [MAIN, 'init'], { env })
  return { lab, domain, store: lab.path('store'), env }
}

/** Starts a pull and resolves when it reads. */
async function startPull(env: NodeJS.ProcessEnv): Promise<{ child: ChildProcess; ended: Promise<number | string> }> {
  const child = spawn(process.execPath, [MAIN, 'backup', 'pull', 'web01', '--no-quiesce', '--progress', 'json'], {
    env,
    stdio: ['ignore', 'ignore', 'pipe'],
  })
  const ended = new Promise<number | string>(resolve => {
    child.once('exit', (code, signal) => resolve(code ?? signal ?? 'nothing'))
  })
  await new Promise<void>((resolve, reject) => {
    createInterface({ input: child.stderr }).on('line', line => {
      if (line.includes('"phase"') && line.includes('checkpoint')) resolve()
    })
    void ended.then(code => reject(new Error(`ended too early: ${code}`)))
  })
  return { child, ended }
}

/** Waits, without a clock of its own, until libvirt tells of a job. */
async function untilJob(domain: LabDomain): Promise<void> {
  while ((await domain.leftovers()).exports.length === 0);
}

async function pullAndCompare(t: Test, { lab, domain, store, env }: Set): Promise<string | undefined> {
  const reference = await domain.referenceImage('vda', `r${Math.trunc(performance.now())}`)
  await run(process.execPath, [MAIN, 'backup', 'pull', 'web01', '--no-quiesce', '-q'], { env })
  const to = lab.path(`to-${Math.trunc(performance.now())}`)
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
    const set = await setUp(lab)
    const { child, ended } = await startPull(set.env)
    await untilJob(set.domain)

    child.kill('SIGKILL')
    t.equal(await ended, 'SIGKILL')

    // The guardian needs no next run for what hurts the guest.
    while ((await set.domain.leftovers()).jobs.length > 0);
    const after = await set.domain.leftovers()
    t.strictSame([after.jobs, after.exports], [[], []])
    t.equal(await set.domain.state(), 'running')
    await using store = await Store.open(set.store)
    t.strictSame(await store.points.list(), [], 'no point was made')

    t.equal(await pullAndCompare(t, set), undefined)
    const left = await set.domain.leftovers()
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
    const set = await setUp(lab)
    const { child, ended } = await startPull(set.env)
    await untilJob(set.domain)

    child.kill(signal)

    t.equal(await ended, code)
    const left = await set.domain.leftovers()
    t.strictSame([left.jobs, left.exports, left.checkpoints, left.files], [[], [], [], []])
    t.equal(await set.domain.state(), 'running')
    t.equal(await pullAndCompare(t, set), undefined)
  })
}

t.test('a domain that is destroyed in the middle gives no point and a clear error', requires('lab'), async t => {
  await using lab = await Lab.start()
  const set = await setUp(lab)
  const { ended } = await startPull(set.env)
  await untilJob(set.domain)

  await set.domain.destroy()

  t.not(await ended, 0)
  await using store = await Store.open(set.store)
  t.strictSame(await store.points.list(), [])
  await set.domain.start()
  t.equal(await pullAndCompare(t, set), undefined)
})

t.test('libvirtd restarted in the middle costs nothing', requires('lab'), async t => {
  await using lab = await Lab.start()
  const set = await setUp(lab)
  const reference = await set.domain.referenceImage('vda', 'before')
  const { ended } = await startPull(set.env)
  await untilJob(set.domain)

  await lab.restartDaemon({ signal: 'SIGKILL' })

  t.equal(await ended, 0)
  const to = lab.path('restored')
  await run(process.execPath, [MAIN, 'restore', 'web01@latest', '--to', to, '-q'], { env: set.env })
  t.equal(
    await imageDifference({ path: `${to}/vda.qcow2`, format: 'qcow2' }, { path: reference, format: 'raw' }),
    undefined,
  )
  const left = await set.domain.leftovers()
  t.strictSame([left.jobs, left.exports, left.files], [[], [], []])
})
