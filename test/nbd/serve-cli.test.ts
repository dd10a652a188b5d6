import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import t from 'tap'

import { requires } from '../harness/requires.js'
import { patchyDisk, storeDisk, writeTruth } from './served-store.js'
import { run } from './servers.js'

const MAIN = fileURLToPath(new URL('../../src/cli/main.cjs', import.meta.url))

const folder = mkdtempSync(join(tmpdir(), 'vv-export-'))
t.teardown(() => rmSync(folder, { recursive: true, force: true }))
t.setTimeout(120_000)

interface Exporting {
  readonly child: ChildProcess
  readonly stdout: () => string
  readonly ended: Promise<number | null>
}

/** Started, and listening when it resolves: it has said where. */
async function exporting(args: readonly string[]): Promise<Exporting> {
  const env = { ...process.env, VIRTVAULT_TARGET: join(folder, 'store'), VIRTVAULT_RUNTIME_DIR: join(folder, 'r') }
  const child = spawn(MAIN, ['export', 'web01@latest', ...args], { env })
  let stdout = ''
  const ended = once(child, 'close').then(([code]) => code as number | null)
  await new Promise<void>(resolve => {
    const look = (part: Buffer) => {
      if (part.toString().includes('nbd')) resolve()
    }
    child.stdout.on('data', (part: Buffer) => {
      stdout += part.toString()
      look(part)
    })
    child.stderr.on('data', look)
    void ended.then(() => resolve())
  })
  return { child, stdout: () => stdout, ended }
}

t.test('export as users run it', requires('nbdcopy', 'nbdinfo'), async t => {
  const truth = join(folder, 'truth.raw')
  const copy = join(folder, 'copy.raw')
  const disk = patchyDisk(100)
  await storeDisk(join(folder, 'store'), disk)
  await writeTruth(truth, disk)

  await t.test('the lines it prints can be pasted, and Ctrl-C ends it with 0 and no socket left', async t => {
    const { child, stdout, ended } = await exporting([])
    const [, line = ''] = /^ *(nbdcopy .*)$/m.exec(stdout()) ?? []
    await run('bash', ['-ec', `cd "$1"; ${line.replace('--progress', '')}`, 'bash', folder])
    await run('cmp', [join(folder, 'vda.raw'), truth])
    const [, socket = ''] = /socket=([^' \n]+)/.exec(stdout()) ?? []
    t.ok(existsSync(socket))
    child.kill('SIGINT')
    t.equal(await ended, 0)
    t.notOk(existsSync(socket))
  })

  await t.test('with --once it ends when its client has gone, and --json says what was served', async t => {
    const socket = join(folder, 'once.sock')
    const { stdout, ended } = await exporting(['--once', '--json', '--socket', socket])
    await run('nbdcopy', [`nbd+unix:///?socket=${socket}`, copy])
    t.equal(await ended, 0)
    await run('cmp', [copy, truth])
    t.match(JSON.parse(stdout()), {
      schema: 'virtvault/export/1',
      ok: true,
      failed_reads: 0,
      disks: [{ target: 'vda', virtual_bytes: disk.size, export: /^web01@[0-9a-f]{7}:vda$/ }],
    })
  })

  await t.test('TCP is refused unless TLS or --insecure is asked for', async t => {
    t.equal(await (await exporting(['--listen', '127.0.0.1:0'])).ended, 15)
    t.equal(await (await exporting(['--listen', 'nonsense', '--insecure'])).ended, 2)
    const { child, stdout, ended } = await exporting(['--listen', '127.0.0.1:0', '--insecure'])
    const [, uri = ''] = /^ *(nbd:\/\/\S+)$/m.exec(stdout()) ?? []
    await run('nbdcopy', [uri, copy])
    await run('cmp', [copy, truth])
    child.kill('SIGTERM')
    t.equal(await ended, 0)
  })
})
