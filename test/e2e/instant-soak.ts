import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

import t from 'tap'

import { cliEnvironment } from '../demo/virtvault-cli.js'
import { requires } from '../harness/requires.js'
import { MIB } from '../lab/fill.js'
import { Lab } from '../lab/lab.js'

const MAIN = fileURLToPath(new URL('../../src/cli/main.cjs', import.meta.url))

// A real Linux boots several times, on an emulated processor.
// Not part of `npm test`, but of `npm run test:instant`: of three runs one ended with
// a guest whose agent did not come up after its export was killed while it booted.
t.setTimeout(600_000)

t.test(
  'a domain runs at once, keeps what its guest writes, and outlives kill -9 of its export',
  { ...requires('lab'), timeout: 600_000 },
  async t => {
    await using lab = await Lab.start()
    const store = lab.path('store')
    const folder = lab.path('restored')
    const env = {
      ...process.env,
      ...cliEnvironment(lab),
      VIRTVAULT_TARGET: store,
      VIRTVAULT_CONNECT: lab.uri,
      VIRTVAULT_RUNTIME_DIR: lab.path('r'),
      VIRTVAULT_STATE_DIR: lab.path('s'),
    }
    const virtvault = (...args: string[]) =>
      new Promise<{ code: number; stdout: string; stderr: string }>(done => {
        const child = execFile(MAIN, args, { env, maxBuffer: 1 << 26 }, (_, stdout, stderr) => {
          done({ code: child.exitCode ?? -1, stdout, stderr })
        })
      })
    const guest = await lab.linuxGuest({
      name: 'linux',
      disks: [{ target: 'vda', size: 256 * MIB, fileSystem: 'ext4' }],
    })
    await guest.start()
    await guest.exec('echo precious > /mnt/vda/file; head -c 100000000 /dev/urandom > /mnt/vda/noise; sync')
    const sum = await guest.exec('md5sum < /mnt/vda/noise')
    t.equal((await virtvault('init', store)).code, 0)
    t.equal((await virtvault('backup', 'pull', 'linux')).code, 0)
    await guest.domain.destroy()
    await lab.virsh('undefine', '--checkpoints-metadata', 'linux')

    // Killed as soon as the domain runs: nearly nothing is filled in.
    const child = spawn(MAIN, ['restore', 'linux@latest', '--instant', '--to', folder], { env })
    let said = ''
    child.stderr.on('data', (part: Buffer) => (said += part.toString()))
    for await (const part of child.stdout) {
      said += String(part)
      if (said.includes('--resume')) break
    }
    child.kill('SIGKILL')
    await once(child, 'exit')
    const [, id = ''] = /--resume ([0-9a-f]{8})/.exec(said) ?? []
    t.match(said, /linux runs, after/)
    t.ok(await isOverlay(join(folder, 'vda.qcow2')), 'it was killed before the disk was filled in')

    const resumed = virtvault('restore', '--resume', id, '--json')
    await guest.waitForAgent()
    await guest.exec('echo written while hydrating > /mnt/vda/new; sync')
    t.equal(await guest.exec('cat /mnt/vda/file'), 'precious')
    const ended = await resumed
    t.equal(ended.code, 0, ended.stderr + ended.stdout)
    t.match(JSON.parse(ended.stdout), { ok: true, hydrated: true, domain: 'linux' })

    t.notOk(await isOverlay(join(folder, 'vda.qcow2')))
    t.strictSame(readdirSync(join(lab.path('s'), 'instant')), [])
    t.notMatch(await lab.virsh('dumpxml', 'linux'), /instant-/)
    t.notMatch(await lab.virsh('dumpxml', '--inactive', 'linux'), /instant-|nbd|rerror_policy/)
    t.notOk(existsSync(join(lab.path('r'), `instant-${id}.sock`)))
    t.equal(await guest.exec('md5sum < /mnt/vda/noise'), sum)
    await guest.domain.shutdown()
    await guest.start()
    t.equal(await guest.exec('cat /mnt/vda/new'), 'written while hydrating')
    t.equal(await guest.exec('md5sum < /mnt/vda/noise'), sum)
    t.match(await virtvault('restore', '--resume', id), { code: 4, stderr: /no instant restore/ })
  },
)

async function isOverlay(path: string): Promise<boolean> {
  const { stdout } = await promisify(execFile)('qemu-img', ['info', '-U', '--output=json', path])
  return stdout.includes('"backing-filename"')
}
