import { spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'

import t, { type Test } from 'tap'

import { cliEnvironment } from '../demo/virtvault-cli.js'
import { requires } from '../harness/requires.js'
import { MIB } from '../lab/fill.js'
import { Lab } from '../lab/lab.js'
import type { LabDomain } from '../lab/lab-domain.js'

const MAIN = fileURLToPath(new URL('../../src/cli/main.cjs', import.meta.url))

interface Ended {
  readonly code: number | null
  readonly stdout: string
  readonly stderr: string
}

// Real domains, on a machine that others use as well.
t.setTimeout(300_000)

t.test('backup pull as users run it', { ...requires('lab'), timeout: 300_000 }, async t => {
  const lab = await Lab.start()
  t.teardown(() => lab[Symbol.asyncDispose]())
  const store = lab.path('store')
  const env = { ...process.env, ...cliEnvironment(lab), VIRTVAULT_TARGET: store, VIRTVAULT_CONNECT: lab.uri }

  const virtvault = (
    args: readonly string[],
    onError?: (stderr: string, kill: (signal: NodeJS.Signals) => void) => void,
  ) =>
    new Promise<Ended>((done, fail) => {
      const child = spawn(MAIN, args, { env, stdio: ['ignore', 'pipe', 'pipe'] })
      let stdout = ''
      let stderr = ''
      child.stdout.on('data', (part: Buffer) => (stdout += part.toString()))
      child.stderr.on('data', (part: Buffer) => {
        stderr += part.toString()
        onError?.(stderr, signal => child.kill(signal))
      })
      child.once('error', fail)
      child.once('close', code => done({ code, stdout, stderr }))
    })
  const newDomain = async (name: string): Promise<LabDomain> => {
    const content = [{ kind: 'write', offset: 0, length: 8 * MIB, fill: { seed: 1 } }] as const
    const domain = await lab.domain({ name, disks: [{ target: 'vda', size: 64 * MIB, content }] })
    await domain.start()
    return domain
  }
  const nothingLeft = async (t: Test, domain: LabDomain) => {
    const { jobs, exports, files, checkpoints, bitmaps } = await domain.leftovers()
    t.strictSame(
      { jobs, exports, files, checkpoints, bitmaps },
      { jobs: [], exports: [], files: [], checkpoints: [], bitmaps: [] },
    )
    t.equal(await domain.state(), 'running')
  }
  const web01 = await newDomain('web01')

  await t.test('without a store it fails with 10 and touches no domain', async t => {
    t.match(await virtvault(['backup', 'pull', 'web01']), { code: 10, stderr: /E_NO_STORE/ })
    await nothingLeft(t, web01)
  })
  t.equal((await virtvault(['init', store])).code, 0)

  await t.test('a domain that is not there is an error, also among others', async t => {
    t.match(await virtvault(['backup', 'pull', 'web1']), { code: 4, stderr: /Did you mean "web01"/ })
    t.match(await virtvault(['backup', 'pull', 'web01', 'db*']), { code: 4 })
    t.match(await virtvault(['backup', 'pull']), { code: 2, stderr: /no domain was chosen/ })
    await nothingLeft(t, web01)
  })

  await t.test('without libvirt it fails with 5', async t => {
    const uri = 'qemu+unix:///system?socket=/nonexistent'
    t.match(await virtvault(['backup', 'pull', 'web01', '-c', uri]), { code: 5, stderr: /E_LIBVIRT_CONNECT/ })
  })

  for (const [signal, code] of [
    ['SIGINT', 130],
    ['SIGTERM', 143],
  ] as const) {
    await t.test(`${signal} in a pull leaves nothing behind and ends with ${code}`, async t => {
      let isSent = false
      const ended = await virtvault(['backup', 'pull', 'web01', '--progress', 'json', '--json'], (stderr, kill) => {
        if (isSent || !stderr.includes('"checkpoint"')) return
        isSent = true
        kill(signal)
      })

      t.equal(ended.code, code)
      t.match(JSON.parse(ended.stdout), { ok: false, exit: code, results: [{ error: { code: 'E_INTERRUPTED' } }] })
      await nothingLeft(t, web01)
      t.match(JSON.parse((await virtvault(['list', '--json'])).stdout), { points: [] })
    })
  }

  await t.test('after kill -9 in a pull the next one is right and leaves nothing of it', async t => {
    let isSent = false
    const killed = await virtvault(['backup', 'pull', 'web01', '--progress', 'json'], (stderr, kill) => {
      if (isSent || !stderr.includes('"checkpoint"')) return
      isSent = true
      kill('SIGKILL')
    })
    t.ok(isSent, 'it was killed when it had begun')
    t.equal(killed.code, null)

    const next = await virtvault(['backup', 'pull', 'web01', '--json'])

    t.match(JSON.parse(next.stdout), { exit: 0, results: [{ warnings: [{ code: 'W_RECOVERED' }] }] })
    const { jobs, exports, files, checkpoints } = await web01.leftovers()
    t.strictSame({ jobs, exports, files }, { jobs: [], exports: [], files: [] })
    t.equal(checkpoints.length, 1)
    t.equal((await virtvault(['forget', 'web01@latest', '--yes'])).code, 0)
    t.equal((await virtvault(['backup', 'reset', 'web01', '--yes'])).code, 0)
  })

  await t.test('a pull of two domains, one of them without a disk, is partial', async t => {
    await lab.domain({ name: 'bare01', disks: [] })

    const ended = await virtvault(['backup', 'pull', 'web01', 'bare01', '--json', '--tag', 'first'])

    t.equal(ended.code, 3)
    t.match(JSON.parse(ended.stdout), {
      schema: 'virtvault/backup_pull/1',
      status: 'partial',
      totals: { domains: 2, points: 1, failed: 1 },
      results: [
        { domain: 'bare01', status: 'failed', error: { exit: 6 } },
        { domain: 'web01', status: 'success' },
      ],
    })
  })

  await t.test('the summary, list and show say what was done', async t => {
    const pulled = await virtvault(['backup', 'pull', 'web01'])
    t.equal(pulled.code, 0)
    t.match(pulled.stdout, /^web01 {2}@[0-9a-f]{7} {2}incremental {2}read {1,2}0 B/)
    t.match(pulled.stdout, /1 point on .*, 1 warning, /)
    t.match(pulled.stderr, /web01 start mode=incremental since=@/)
    t.match((await virtvault(['list', 'web01'])).stdout, /web01 .* full .* first\nweb01 .* inc /)
    t.match((await virtvault(['show', 'web01@first'])).stdout, /mode +full/)
    t.match((await virtvault(['restore', 'web01@first', '--to', lab.path('r'), '-n'])).stdout, /Nothing was written/)
  })

  await t.test('tags find points, holds are shown, both go again', async t => {
    t.match(await virtvault(['tag', 'web01@latest', '+gold']), { code: 0, stdout: /gold\n$/ })
    t.equal((await virtvault(['hold', 'web01@gold', '--until', '90d', '--reason', 'audit'])).code, 0)
    t.match((await virtvault(['show', 'web01@gold'])).stdout, /held +until 20.*: audit/)
    t.match((await virtvault(['list'])).stdout, /gold, \(held\)/)
    t.match(await virtvault(['release', 'web01@gold']), { code: 0, stdout: /released\n$/ })
    t.match(await virtvault(['release', 'web01@gold']), { code: 0, stdout: /was not held\n$/ })
    t.match(await virtvault(['tag', 'web01@gold', '--', '-gold']), { code: 0, stdout: /no tags\n$/ })
    t.match(await virtvault(['show', 'web01@gold']), { code: 4 })
    t.match(await virtvault(['tag', 'web01@latest', '--', '-gold']), { code: 4 })
  })

  await t.test('a reset makes the next pull full, and it stores nothing new', async t => {
    t.equal((await virtvault(['backup', 'reset', 'web01'])).code, 15, 'not without --yes')
    t.equal((await web01.leftovers()).checkpoints.length, 2)
    t.equal((await virtvault(['backup', 'reset', 'web01', '--yes'])).code, 0)
    t.strictSame((await web01.leftovers()).checkpoints, [])
    const pulled = await virtvault(['backup', 'pull', 'web01', '--json'])
    t.match(JSON.parse(pulled.stdout), { exit: 0, totals: { new_bytes: 0 }, results: [{ mode: 'full' }] })
  })

  await t.test('forget deletes what is not held, and asks', async t => {
    t.equal((await virtvault(['hold', 'web01@first'])).code, 0)
    t.match(await virtvault(['forget', 'web01@first', '--yes']), { code: 15, stderr: /is held/ })
    t.equal((await virtvault(['release', 'web01@first'])).code, 0)
    t.match(await virtvault(['forget', 'web01@first']), { code: 15, stderr: /--yes/ })
    t.match(await virtvault(['forget', 'web01@first', '-n']), { code: 0, stdout: /Nothing was changed/ })
    t.equal((await virtvault(['show', 'web01@first'])).code, 0)
    t.equal((await virtvault(['forget', 'web01@first', '--yes'])).code, 0)
    t.equal((await virtvault(['show', 'web01@first'])).code, 4)
    t.equal((await virtvault(['restore', 'web01@latest', '--to', lab.path('kept')])).code, 0, 'others stay whole')
  })
})
