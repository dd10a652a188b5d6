import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { setTimeout as delay } from 'node:timers/promises'

import t from 'tap'

import { cliEnvironment } from '../demo/virtvault-cli.js'
import { requires } from '../harness/requires.js'
import { MAIN, runCli } from '../harness/run-cli.js'
import { MIB } from '../lab/fill.js'
import { imageDifference } from '../lab/images.js'
import { Lab } from '../lab/lab.js'

const RATE = 4 * MIB
const DATA_BYTES = 16 * MIB
/** All but one burst takes its time at the rate; how much longer it takes is the machine's affair. */
const LEAST_MS = ((DATA_BYTES - RATE / 8) / RATE) * 1000
const PATIENCE_MS = 60_000

t.setTimeout(240_000)

interface Run {
  readonly kind: string
  readonly status: string
  readonly domain?: string
  readonly duration_ms?: number
  readonly figures: Readonly<Record<string, number>>
}

t.test(
  'the daemon keeps to bwlimit and min_change of its configuration',
  { ...requires('lab'), timeout: 240_000 },
  async t => {
    await using lab = await Lab.start()
    const config = lab.path('config.yml')
    writeFileSync(
      config,
      `
uri: ${lab.uri}
retry: { attempts: 0 }
targets: { nas: { path: ${lab.path('nas')} } }
groups:
  prod: { target: nas, schedule: '0 2 1 1 *', bwlimit: 4MiB, min_change: 1MiB, hosts: [web01] }
`,
    )
    const env = { ...process.env, ...cliEnvironment(lab), VIRTVAULT_CONFIG: config }
    const virtvault = (...args: readonly string[]) => runCli(args, env)
    const content = [{ kind: 'write', offset: 0, length: DATA_BYTES, fill: { seed: 5 } }] as const
    const domain = await lab.domain({ name: 'web01', disks: [{ target: 'vda', size: 64 * MIB, content }] })
    await domain.start()
    t.equal((await virtvault('init', 'nas')).code, 0)

    const daemon = spawn(MAIN, ['daemon', 'run'], { env, stdio: ['ignore', 'ignore', 'pipe'] })
    let said = ''
    daemon.stderr.on('data', (part: Buffer) => (said += part.toString()))
    t.teardown(() => daemon.kill('SIGKILL'))
    const until = async (what: string, isTrue: () => Promise<boolean>) => {
      const deadline = performance.now() + PATIENCE_MS
      while (!(await isTrue())) {
        if (performance.now() > deadline) throw new Error(`never: ${what}\n${said}`)
        await delay(100)
      }
    }
    const runs = async () => {
      const { stdout } = await virtvault('job', 'history', '--json')
      return (JSON.parse(stdout) as { entries: readonly Run[] }).entries.filter(({ kind }) => kind === 'run')
    }
    const runNow = async () => {
      const before = (await runs()).length
      const from = performance.now()
      t.equal((await virtvault('job', 'run', 'web01')).code, 0)
      await until('it has run', async () => (await runs()).length > before)
      return { run: (await runs()).at(-1), ms: performance.now() - from }
    }
    await until('the domain is known', async () => (await virtvault('daemon', 'status')).stdout.includes('web01'))

    const full = await runNow()
    await domain.write('vda', 0, 64 * 1024, { seed: 6 })
    const tooLittle = await runNow()
    await domain.write('vda', 2 * MIB, 2 * MIB, { seed: 7 })
    const enough = await runNow()
    const ended = once(daemon, 'exit')
    daemon.kill('SIGTERM')
    await ended

    t.match(full.run, { status: 'success', figures: { read_bytes: DATA_BYTES } })
    t.ok(full.ms >= LEAST_MS, `${Math.round(full.ms)} ms for ${DATA_BYTES} bytes at ${RATE} in a second`)
    t.match(tooLittle.run, { status: 'skipped', figures: { changed_bytes: 64 * 1024 } })
    t.match(enough.run, { status: 'success', figures: { read_bytes: 2 * MIB + 64 * 1024 } })
  },
)

t.test('restores into a domain keep to --bwlimit', { ...requires('lab'), timeout: 240_000 }, async t => {
  await using lab = await Lab.start()
  const env = {
    ...process.env,
    ...cliEnvironment(lab),
    VIRTVAULT_TARGET: lab.path('store'),
    VIRTVAULT_CONNECT: lab.uri,
  }
  const virtvault = async (...args: readonly string[]) => {
    const from = performance.now()
    return { ...(await runCli(args, env)), ms: performance.now() - from }
  }
  const content = [{ kind: 'write', offset: 0, length: DATA_BYTES, fill: { seed: 5 } }] as const
  const domain = await lab.domain({ name: 'web01', disks: [{ target: 'vda', size: 64 * MIB, content }] })
  await domain.start()
  const held = { path: await domain.referenceImage('vda', 'held'), format: 'raw' }
  t.equal((await virtvault('init')).code, 0)
  t.equal((await virtvault('backup', 'pull', 'web01')).code, 0)

  await t.test('one in place', async t => {
    await domain.write('vda', 0, DATA_BYTES, { seed: 8 })
    await domain.destroy()
    const { code, stderr, ms } = await virtvault('restore', 'web01@latest', '--in-place', '--yes', '--bwlimit', '4MiB')

    t.equal(code, 0, stderr)
    t.ok(ms >= LEAST_MS, `${Math.round(ms)} ms`)
    t.equal(await imageDifference(domain.disk('vda'), held), undefined)
  })

  await t.test('one that runs at once, while its disks are filled in', async t => {
    const folder = lab.path('instant')
    const { code, stderr, ms } = await virtvault(
      ...['restore', 'web01@latest', '--instant', '--name', 'copy', '--to', folder, '--bwlimit', '4MiB'],
    )

    t.equal(code, 0, stderr)
    t.ok(ms >= LEAST_MS, `${Math.round(ms)} ms`)
    await lab.virsh('destroy', 'copy')
    t.equal(await imageDifference({ path: `${folder}/vda.qcow2`, format: 'qcow2' }, held), undefined)
  })
})
