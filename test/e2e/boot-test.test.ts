import { readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import t from 'tap'

import { LabProgram, linuxPoint } from '../harness/linux-point.js'
import { requires } from '../harness/requires.js'
import { MIB } from '../lab/fill.js'
import { Lab } from '../lab/lab.js'

// A real Linux boots several times, on an emulated processor.
t.setTimeout(600_000)

t.test(
  'verify --level boot passes on a good point and fails on a damaged one',
  { ...requires('lab'), timeout: 600_000 },
  async t => {
    await using lab = await Lab.start()
    await using program = new LabProgram(lab)
    const { store } = program
    const virtvault = (...args: string[]) => program.run(...args)
    const command = 'echo precious > /mnt/vda/file; head -c 8000000 /dev/urandom > /mnt/vda/noise'
    const guest = await linuxPoint(lab, program, {
      disks: [{ target: 'vda', size: 64 * MIB, fileSystem: 'ext4' }],
      command,
    })

    const good = await virtvault('verify', 'linux', '--level', 'boot', '--json')
    t.equal(good.code, 0, good.stderr + good.stdout)
    t.match(JSON.parse(good.stdout), {
      ok: true,
      results: [{ domain: 'linux', ok: true, sign: 'agent', detail: /booted in/ }],
    })
    t.match((await virtvault('list', '--json')).stdout, /"boot"/)
    t.match(await virtvault('verify', '--level', 'boot', '--console', 'guest: ready, mounted: */mnt/vda'), {
      code: 0,
      stdout: /ok: linux@.*console/,
    })
    t.match(await virtvault('verify', '--level', 'boot', '--console', 'never said', '--boot-timeout', '2s'), {
      code: 7,
      stdout: /FAILED: linux@.*no sign of life/,
    })
    t.match(await virtvault('verify', 'linux@latest', '--level', 'restore'), { code: 0, stdout: /ok: linux@/ })
    t.equal(await guest.domain.state(), 'running', 'the original never noticed')
    t.match(await guest.exec('cat /mnt/vda/file'), 'precious')

    // The file system's own blocks are among the first: the guest reads them when it mounts.
    for (const pack of packs(join(store, 'packs'))) {
      const bytes = readFileSync(pack)
      for (let at = 4096; at < bytes.length - 512; at += 8192) bytes[at] = bytes[at]! ^ 0x5a
      writeFileSync(pack, bytes)
    }
    const bad = await virtvault('verify', 'linux', '--level', 'boot', '--json')
    t.equal(bad.code, 7, bad.stderr + bad.stdout)
    t.match(JSON.parse(bad.stdout), { ok: false, results: [{ ok: false, detail: /did not boot/ }] })
    t.equal((await virtvault('verify', 'linux', '--level', 'restore')).code, 7)

    t.match(await lab.virsh('list', '--all', '--name'), /^\s*linux\s*$/, 'no trial is left')
    t.strictSame(
      readdirSync(program.runtimeDir).filter(name => name.startsWith('boot-')),
      [],
    )
  },
)

/** Those with the guest's data. */
function packs(folder: string): string[] {
  return readdirSync(folder, { recursive: true, encoding: 'utf8' })
    .map(name => join(folder, name))
    .filter(path => path.endsWith('.pack') && statSync(path).size > 2 * MIB)
}
