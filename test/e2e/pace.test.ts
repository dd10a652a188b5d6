import { spawn } from 'node:child_process'
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'

import t from 'tap'

import { cliEnvironment } from '../demo/virtvault-cli.js'
import { requires } from '../harness/requires.js'
import { MIB } from '../lab/fill.js'
import { imageDifference } from '../lab/images.js'
import { Lab } from '../lab/lab.js'
import { run } from '../lab/run-program.js'

const MAIN = fileURLToPath(new URL('../../src/cli/main.cjs', import.meta.url))
const DATA_BYTES = 16 * MIB
const RATE = 4 * MIB
/** All but one burst takes its time at the rate; how much longer it takes is the machine's affair. */
const LEAST_MS = ((DATA_BYTES - RATE / 8) / RATE) * 1000

t.setTimeout(300_000)

t.test('pace and priority', { ...requires('lab'), timeout: 300_000 }, async t => {
  const lab = await Lab.start()
  t.teardown(() => lab[Symbol.asyncDispose]())
  const env = {
    ...process.env,
    ...cliEnvironment(lab),
    VIRTVAULT_TARGET: lab.path('store'),
    VIRTVAULT_CONNECT: lab.uri,
  }
  const begin = (args: readonly string[]) => {
    const child = spawn(process.execPath, [MAIN, ...args], { env, stdio: ['ignore', 'ignore', 'pipe'] })
    let stderr = ''
    let isOver = false
    child.stderr.on('data', (part: Buffer) => (stderr += part.toString()))
    const started = performance.now()
    const ended = new Promise<{ code: number | null; stderr: string; ms: number }>((done, fail) => {
      child.once('error', fail)
      child.once('close', code => {
        isOver = true
        done({ code, stderr, ms: performance.now() - started })
      })
    })
    return { pid: child.pid ?? 0, ended, isOver: () => isOver }
  }
  await run(process.execPath, [MAIN, 'init', lab.path('store')], { env })
  const content = [{ kind: 'write', offset: 0, length: DATA_BYTES, fill: { seed: 5 } }] as const
  const domain = await lab.domain({ name: 'web01', disks: [{ target: 'vda', size: 64 * MIB, content }] })
  await domain.start()
  const held = await domain.referenceImage('vda', 'held')

  await t.test('a pull keeps to --bwlimit, and all of its threads to --nice and --ionice', async t => {
    const pull = begin(['backup', 'pull', 'web01', '--bwlimit', '4MiB', '--nice', '7', '--ionice', 'idle'])
    let seen = prioritiesOf(pull.pid)
    while (!pull.isOver() && seen.some(one => one !== '7')) {
      await delay(20)
      seen = prioritiesOf(pull.pid)
    }
    const isIdle = (await run('ionice', ['-p', String(pull.pid)], { check: false })).stdout.trim()
    const { code, stderr, ms } = await pull.ended

    t.equal(code, 0, stderr)
    t.ok(seen.length > 5 && seen.every(one => one === '7'), `niceness of its threads: ${seen.join(' ')}`)
    t.equal(isIdle, 'idle')
    t.ok(ms >= LEAST_MS, `${ms} ms for ${DATA_BYTES} bytes`)
  })

  await t.test('a restore keeps to --bwlimit, and is right', async t => {
    const restore = begin(['restore', 'web01@latest', '--to', lab.path('r'), '--format', 'raw', '--bwlimit', '4MiB'])
    const { code, stderr, ms } = await restore.ended

    t.equal(code, 0, stderr)
    t.ok(ms >= LEAST_MS, `${ms} ms for ${DATA_BYTES} bytes`)
    const restored = { path: lab.path('r/vda.raw'), format: 'raw' }
    t.equal(await imageDifference(restored, { path: held, format: 'raw' }), undefined)
  })

  await t.test('what a store takes in is limited by its target', async t => {
    const config = lab.path('config.yml')
    writeFileSync(config, `nice: 3\ntargets: { nas: { path: ${lab.path('nas')}, bwlimit: 4MiB } }\n`)
    const common = ['--config', config, '-t', 'nas']
    await run(process.execPath, [MAIN, 'init', ...common], { env })

    const first = await begin(['backup', 'pull', 'web01', ...common]).ended
    const again = begin(['backup', 'pull', 'web01', ...common, '--mode', 'full'])
    t.equal((await again.ended).code, 0)

    t.equal(first.code, 0, first.stderr)
    // The last batch of 8 MiB is paid for after it was written.
    t.ok(first.ms >= LEAST_MS, `${first.ms} ms for ${DATA_BYTES} bytes`)
    const restored = await begin(['restore', 'web01@latest', '--to', lab.path('r2'), ...common]).ended
    t.ok(restored.code === 0 && restored.ms >= LEAST_MS, `${restored.ms} ms`)
  })
})

/** Niceness of each thread, as /proc has it; none once the process is gone. */
function prioritiesOf(pid: number): string[] {
  try {
    return readdirSync(`/proc/${pid}/task`).map(
      id => readFileSync(`/proc/${pid}/task/${id}/stat`, 'utf8').split(') ')[1]?.split(' ')[16] ?? '',
    )
  } catch {
    return ['?']
  }
}
