import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import t, { type Test } from 'tap'

import { cliEnvironment } from '../demo/virtvault-cli.js'
import { requires } from '../harness/requires.js'
import { imageDifference } from '../lab/images.js'
import { KIB, MIB } from '../lab/fill.js'
import { RemoteLab } from '../lab/remote-lab.js'
import { run } from '../lab/run-program.js'

const MAIN = fileURLToPath(new URL('../../src/cli/main.cjs', import.meta.url))
const SIZE = 16 * MIB

t.setTimeout(300_000)

t.test('a libvirt on another machine, through ssh', { ...requires('remote-lab'), timeout: 300_000 }, async t => {
  const remote = await RemoteLab.start()
  t.teardown(() => remote[Symbol.asyncDispose]())
  const { lab } = remote
  const store = lab.path('store')
  const env = {
    ...cliEnvironment(lab),
    // The scratch files are there, the tunnel's sockets here.
    VIRTVAULT_SCRATCH_DIR: '',
    VIRTVAULT_RUNTIME_DIR: join(remote.home, 'run'),
    VIRTVAULT_TARGET: store,
    VIRTVAULT_CONNECT: remote.sshUri(),
  }
  const virtvault = (args: readonly string[], more: NodeJS.ProcessEnv = {}) =>
    run(process.execPath, [MAIN, ...args], { env: { ...env, ...more }, check: false })
  const web01 = await lab.domain({
    name: 'web01',
    disks: [
      { target: 'vda', size: SIZE, content: [{ kind: 'write', offset: 0, length: 2 * MIB, fill: { seed: 1 } }] },
      { target: 'vdb', size: SIZE },
    ],
  })
  await web01.start()
  t.equal((await virtvault(['init', store])).code, 0)

  /** Pulls, restores what was pulled, and compares that with what the domain held. */
  const pullAndCompare = async (t: Test, args: readonly string[] = [], more: NodeJS.ProcessEnv = {}) => {
    const { code, stdout, stderr } = await virtvault(['backup', 'pull', 'web01', '--json', ...args], more)
    t.equal(code, 0, stderr + stdout)
    const document = JSON.parse(stdout) as {
      results: { mode: string; warnings: unknown[]; disks: { read_bytes: number }[] }[]
    }
    const folder = lab.path(`restored-${Math.random()}`)
    t.equal((await virtvault(['restore', 'web01@latest', '--to', folder])).code, 0)
    for (const { target } of web01.disks) {
      const held = await web01.referenceImage(target, `held-${Math.random()}`)
      const image = readdirSync(folder).find(name => name.includes(target) && name.endsWith('.qcow2'))
      t.equal(
        await imageDifference({ path: join(folder, image!), format: 'qcow2' }, { path: held, format: 'raw' }),
        undefined,
      )
    }
    return document.results[0]!
  }
  const nothingLeft = async (t: Test, checkpoints: number) => {
    const left = await web01.leftovers()
    t.strictSame({ jobs: left.jobs, exports: left.exports, files: left.files }, { jobs: [], exports: [], files: [] })
    t.equal(left.checkpoints.length, checkpoints)
    t.equal(await web01.state(), 'running')
    await lab.inside(`[ -z "$(find /run/virtvault /var/lib/virtvault -mindepth 1 -name 'run-*')" ]`)
    t.strictSame(readdirSync(join(remote.home, 'run')), [], 'nor here')
  }

  await t.test('a pull, then an incremental one, with nothing open but ssh, and both are right', async t => {
    const full = await pullAndCompare(t)
    t.match(full, { mode: 'full', warnings: [] })
    await nothingLeft(t, 1)
    await web01.write('vda', 4 * MIB, 64 * KIB, { seed: 2 })
    const next = await pullAndCompare(t)
    t.match(next, { mode: 'incremental', disks: [{ read_bytes: 64 * KIB }, { read_bytes: 0 }], warnings: [] })
    await nothingLeft(t, 2)
  })
})
