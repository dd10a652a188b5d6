import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync } from 'node:fs'
import { mkdir, writeFile } from 'node:fs/promises'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'

import t from 'tap'

import { requires } from '../harness/requires.js'
import { MIB } from '../lab/fill.js'
import { imageDifference } from '../lab/images.js'
import { Lab } from '../lab/lab.js'
import { run } from '../lab/run-program.js'

t.setTimeout(300_000)
const MAIN = fileURLToPath(new URL('../../src/cli/main.cjs', import.meta.url))

function environment(lab: Lab): NodeJS.ProcessEnv {
  return {
    ...process.env,
    VIRTVAULT_RUNTIME_DIR: `${lab.scratchFolder}/r`,
    VIRTVAULT_SCRATCH_DIR: `${lab.scratchFolder}/s`,
    VIRTVAULT_STATE_DIR: lab.path('state'),
    VIRTVAULT_TARGET: lab.path('store'),
    VIRTVAULT_CONNECT: lab.uri,
  }
}

const isServed = (lab: Lab) => {
  try {
    return readdirSync(`${lab.scratchFolder}/r`, { recursive: true }).some(path => String(path).endsWith('nbd.sock'))
  } catch {
    return false
  }
}

t.test(
  'kill -9 while a domain that is off is read: it can start at once, and abort removes the rest',
  requires('lab'),
  async t => {
    await using lab = await Lab.start()
    const env = environment(lab)
    const domain = await lab.domain({ name: 'web01', disks: [{ target: 'vda', size: 256 * MIB }] })
    await domain.write('vda', 0, 256 * MIB, { seed: 1 })
    await run(process.execPath, [MAIN, 'init'], { env })
    const child = spawn(process.execPath, [MAIN, 'backup', 'pull', 'web01', '-q'], { env, stdio: 'ignore' })
    while (!isServed(lab)) await delay(2)

    child.kill('SIGKILL')
    await once(child, 'exit')

    const left = await domain.leftovers()
    t.equal(left.bitmaps.length, 1, 'the bitmap of the new checkpoint is there')
    while ((await lab.tryVirsh('start', domain.uuid)).code !== 0) await delay(50)
    t.equal(await domain.state(), 'running')

    const aborted = await run(process.execPath, [MAIN, 'backup', 'abort', '--json'], { env })
    t.match(JSON.parse(aborted.stdout), { ok: true, domains: [{ name: 'web01', status: 'cleaned' }] })
    const after = await domain.leftovers()
    t.strictSame([after.checkpoints, after.bitmaps, after.files, after.jobs], [[], [], [], []])
    const reference = await domain.referenceImage('vda', 'r')
    await run(process.execPath, [MAIN, 'backup', 'pull', 'web01', '--no-quiesce', '-q'], { env })
    await run(process.execPath, [MAIN, 'restore', 'web01@latest', '--to', lab.path('to'), '-q'], { env })
    const restored = { path: lab.path('to/vda.qcow2'), format: 'qcow2' }
    t.equal(await imageDifference(restored, { path: reference, format: 'raw' }), undefined)
  },
)

t.test(
  'abort leaves a job that this store does not know, --force ends it, and no job of another tool',
  requires('lab'),
  async t => {
    await using lab = await Lab.start()
    const env = environment(lab)
    await run(process.execPath, [MAIN, 'init'], { env })
    const cases = [
      { name: 'ours', folder: `${lab.scratchFolder}/r/run-0123456789abcdef`, code: 3, forced: '' },
      { name: 'foreign', folder: lab.path('run-another-tool'), code: 0, forced: 'Backup' },
    ]
    for (const { name, folder, code, forced } of cases) {
      const domain = await lab.domain({ name, disks: [{ target: 'vda', size: 16 * MIB }] })
      await domain.start()
      await mkdir(folder, { recursive: true })
      const xml = lab.path(`${name}-backup.xml`)
      await writeFile(
        xml,
        `<domainbackup mode='pull'><server transport='unix' socket='${folder}/nbd.sock'/><disks><disk name='vda' type='file'><scratch file='${folder}/vda.qcow2'/></disk></disks></domainbackup>`,
      )
      await lab.virsh('backup-begin', domain.uuid, xml)
      const abort = async (...flags: readonly string[]) =>
        (await run(process.execPath, [MAIN, 'backup', 'abort', name, ...flags], { env, check: false })).code

      t.equal(await abort(), code, name)
      t.match(await lab.virsh('domjobinfo', domain.uuid), /Backup/, 'it goes on')
      t.equal(await abort('--force'), 15, 'not without --yes')
      t.equal(await abort('--force', '--yes'), 0)
      t.match(await lab.virsh('domjobinfo', domain.uuid), forced === '' ? /None/ : /Backup/, name)
    }
  },
)

t.test(
  'reset takes our checkpoints and bitmaps out of a domain that is off, and leaves those of others',
  requires('lab'),
  async t => {
    await using lab = await Lab.start()
    const env = environment(lab)
    const domain = await lab.domain({ name: 'db01', disks: [{ target: 'vda', size: 16 * MIB }] })
    await domain.write('vda', 0, MIB, { seed: 1 })
    await run('qemu-img', ['bitmap', '--add', '-f', 'qcow2', domain.disk('vda').path, 'foreign'])
    await run(process.execPath, [MAIN, 'init'], { env })
    await run(process.execPath, [MAIN, 'backup', 'pull', 'db01', '-q'], { env })
    t.equal((await domain.leftovers()).bitmaps.length, 2)

    await run(process.execPath, [MAIN, 'backup', 'reset', 'db01', '--yes', '-q'], { env })

    const left = await domain.leftovers()
    t.strictSame([left.checkpoints, left.bitmaps], [[], ['vda:foreign']])
    const next = await run(process.execPath, [MAIN, 'backup', 'pull', 'db01', '--json'], { env })
    t.match(next.stdout, /W_CHAIN/)
  },
)
