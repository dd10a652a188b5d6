import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'

import t, { type Test } from 'tap'

import { requires } from '../harness/requires.js'
import { addPoint, type MadeDisk, mixedBytes, patchyDisk, storeDisk, writeTruth } from './served-store.js'
import { nbdkit, qemuNbd, run } from './servers.js'

const MAIN = fileURLToPath(new URL('../../src/cli/main.cjs', import.meta.url))

const folder = mkdtempSync(join(tmpdir(), 'vv-clients-'))
t.teardown(() => rmSync(folder, { recursive: true, force: true }))
t.setTimeout(240_000)

const env = { ...process.env, VIRTVAULT_TARGET: join(folder, 'store'), VIRTVAULT_RUNTIME_DIR: join(folder, 'r') }
const socket = join(folder, 's')
const truths = ['first.raw', 'second.raw', 'third.raw'].map(name => join(folder, name)) as [string, string, string]

function otherDisk(seed: number): MadeDisk {
  const disk = patchyDisk(60)
  return { ...disk, bytes: chunk => mixedBytes(seed + chunk, disk.bytes(chunk).length) }
}

/** The whole store, listening when it resolves. */
async function exportAll(t: Test, args: readonly string[] = []): Promise<ChildProcess> {
  const child = spawn(process.execPath, [MAIN, 'export', '--all', ...args, '--socket', socket], { env })
  t.teardown(async () => {
    if (child.exitCode !== null || child.signalCode !== null) return
    child.kill('SIGTERM')
    await once(child, 'exit')
  })
  await Promise.race([once(child.stdout, 'data'), once(child, 'exit')])
  return child
}

function uri(name: string): string {
  return `nbd+unix:///${name}?socket=${socket}`
}

function listed(): string[] {
  const { stdout } = spawnSync('nbdinfo', ['--list', '--json', uri('')])
  const { exports }: { readonly exports: readonly { readonly 'export-name': string }[] } = JSON.parse(stdout.toString())
  return exports.map(each => each['export-name'])
}

t.test('a store as a list of exports', requires('nbdcopy', 'nbdinfo'), async t => {
  const disks = [patchyDisk(60), otherDisk(1000), otherDisk(2000)] as const
  const first = await storeDisk(join(folder, 'store'), disks[0])
  const second = await addPoint(join(folder, 'store'), disks[1])
  for (const [i, disk] of disks.entries()) await writeTruth(truths[i]!, disk)
  const names = [first, second].map(({ id }) => `web01@${id.slice(0, 7)}:vda`)

  await t.test('every disk of every point is listed, and each gives its own bytes', async t => {
    await exportAll(t)
    t.same(listed().sort(), [...names].sort())
    for (const [i, name] of names.entries()) {
      const copy = join(folder, 'copy')
      await run('nbdcopy', [uri(name), copy])
      await t.resolves(run('cmp', [copy, truths[i]!]))
      rmSync(copy)
    }
  })

  await t.test('whatever names a point names an export, and a point made meanwhile is there', async t => {
    await exportAll(t)
    const copy = join(folder, 'copy')
    await run('nbdcopy', [uri('web01@~1'), copy])
    await t.resolves(run('cmp', [copy, truths[0]]))
    const third = await addPoint(join(folder, 'store'), disks[2])
    t.ok(listed().includes(`web01@${third.id.slice(0, 7)}:vda`))
    await run('nbdcopy', [uri('web01@latest:vda'), copy])
    await t.resolves(run('cmp', [copy, truths[2]]))
    for (const unknown of ['', 'web01', 'web01@latest:vdz', 'web02@latest:vda', 'web01@latest:vda/etc']) {
      t.not(spawnSync('nbdinfo', ['--size', uri(unknown)]).status, 0, unknown)
    }
    t.equal(spawnSync('nbdinfo', ['--size', uri('web01@latest:vda')]).stdout.toString(), `${disks[2].size}\n`)
  })

  await t.test('two points read at once by many connections stay apart', async t => {
    await exportAll(t, ['web*'])
    const [a, b] = ['a', 'b'].map(name => join(folder, name)) as [string, string]
    const copies = [
      run('nbdcopy', ['--connections=4', uri(names[0]!), a]),
      run('nbdcopy', ['--connections=4', uri(names[1]!), b]),
    ]
    await Promise.all(copies)
    await t.resolves(run('cmp', [a, truths[0]]))
    await t.resolves(run('cmp', [b, truths[1]]))
  })

  await t.test('a domain that is not there is refused before anything listens', async t => {
    const child = await exportAll(t, ['web02'])
    if (child.exitCode === null) await once(child, 'exit')
    t.equal(child.exitCode, 4)
  })

  await t.test('through nbdfuse the disk is a file with the right bytes', requires('nbdfuse'), async t => {
    await exportAll(t)
    const at = join(folder, 'fuse')
    mkdirSync(at)
    const child = spawn('nbdfuse', ['--readonly', join(at, 'vda'), uri(names[0]!)], { stdio: 'ignore' })
    const ended = once(child, 'exit')
    const isMounted = () => readFileSync('/proc/self/mountinfo', 'utf8').includes(` ${at} `)
    try {
      for (const late = AbortSignal.timeout(30_000); !isMounted() && !late.aborted; ) await delay(20)
      await t.resolves(run('cmp', [join(at, 'vda'), truths[0]]))
    } finally {
      child.kill('SIGTERM')
      await ended
    }
  })

  await t.test('qemu-nbd and nbdkit pass it on, byte for byte', requires('qemu-nbd', 'nbdkit'), async t => {
    await exportAll(t)
    const copy = join(folder, 'passed-on')
    const qemu = await qemuNbd(t, folder, ['--read-only', '--format=raw', uri(names[0]!)])
    await run('nbdcopy', [`nbd+unix:///?socket=${qemu.socket}`, copy])
    await t.resolves(run('cmp', [copy, `--bytes=${disks[0].size}`, truths[0]]))
    const kit = await nbdkit(t, folder, ['-r', 'nbd', uri(names[0]!)])
    await run('nbdcopy', [`nbd+unix:///?socket=${kit.socket}`, copy])
    await t.resolves(run('cmp', [copy, truths[0]]))
  })
})
