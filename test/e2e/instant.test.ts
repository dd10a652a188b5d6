import { existsSync, readdirSync } from 'node:fs'
import { join } from 'node:path'

import t from 'tap'

import { isOverlay } from '../../src/image/overlay.js'
import { LabProgram, linuxPoint } from '../harness/linux-point.js'
import { requires } from '../harness/requires.js'
import { MIB } from '../lab/fill.js'
import { Lab } from '../lab/lab.js'

// A real Linux boots several times, on an emulated processor.
t.setTimeout(600_000)

const DISKS = [{ target: 'vda', size: 128 * MIB, fileSystem: 'ext4' }] as const
const FILL = 'echo precious > /mnt/vda/file; head -c 40000000 /dev/urandom > /mnt/vda/noise'

t.test(
  'a domain runs at once, and outlives kill -9 of its export while it boots, runs and is filled in',
  { ...requires('lab'), timeout: 600_000 },
  async t => {
    await using lab = await Lab.start()
    await using program = new LabProgram(lab)
    const guest = await linuxPoint(lab, program, { disks: DISKS, command: FILL })
    const folder = lab.path('restored')
    const image = join(folder, 'vda.qcow2')
    const sum = await guest.exec('md5sum < /mnt/vda/noise')
    await guest.domain.destroy()
    await lab.virsh('undefine', '--checkpoints-metadata', 'linux')

    const first = program.start('restore', 'linux@latest', '--instant', '--no-hydrate', '--to', folder)
    const [, id = ''] = await first.says(/--resume ([0-9a-f]{8})/)
    await first.kill('SIGKILL')
    t.match(await program.run('restore', 'linux@latest', '--instant', '--to', `${folder}2`), {
      code: 15,
      stderr: new RegExp(`--resume ${id}`),
    })
    // Its kernel is loaded without a disk; it pauses when it mounts one.
    await guest.domain.waitFor('paused')
    t.match(await lab.virsh('domstate', '--reason', 'linux'), /I\/O error/)

    const looking = program.start('restore', '--resume', id, '--no-hydrate')
    await looking.says(/linux runs/)
    t.match(await program.run('restore', '--resume', id), { code: 15 }, 'two cannot serve it at once')
    await guest.waitForAgent()
    await guest.exec('echo written > /mnt/vda/new; sync; echo 3 > /proc/sys/vm/drop_caches')
    await looking.kill('SIGKILL')

    // Not paused now, but its next read is of a dead export: QEMU fails several before it has connected again.
    const again = program.start('restore', '--resume', id, '--no-hydrate')
    await again.says(/linux runs/)
    t.equal(await guest.exec('cat /mnt/vda/file /mnt/vda/new'), 'precious\nwritten')
    t.match(await again.kill('SIGINT'), { code: 0 })
    t.ok(await isOverlay(image), 'nothing was filled in')

    const filling = program.start('restore', '--resume', id, '--bwlimit', '2MiB', '--progress', 'json')
    await filling.says(/"target": ?"vda"/)
    await filling.kill('SIGKILL')
    t.ok(await isOverlay(image), 'it was killed in the middle')
    const ended = await program.run('restore', '--resume', id, '--json')
    t.equal(ended.code, 0, ended.stderr)
    t.match(JSON.parse(ended.stdout), { ok: true, hydrated: true, domain: 'linux' })
    t.notOk(await isOverlay(image))
    t.equal(await guest.exec('echo 3 > /proc/sys/vm/drop_caches; md5sum < /mnt/vda/noise'), sum)
    t.equal(await guest.exec('dmesg | grep -ci "i/o error" || true'), '0', 'the guest never saw an error')

    t.strictSame(readdirSync(join(program.stateDir, 'instant')), [])
    t.notMatch(await lab.virsh('dumpxml', 'linux'), /instant-/)
    t.notMatch(await lab.virsh('dumpxml', '--inactive', 'linux'), /instant-|nbd|rerror_policy/)
    t.notOk(existsSync(join(program.runtimeDir, `instant-${id}.sock`)))
    t.match(await program.run('restore', '--resume', id), { code: 4, stderr: /there is no restore/ })
    await guest.domain.shutdown()
    await guest.start()
    t.equal(await guest.exec('cat /mnt/vda/new'), 'written')
    t.equal(await guest.exec('md5sum < /mnt/vda/noise'), sum)
  },
)
