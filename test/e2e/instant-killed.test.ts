import { existsSync, readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'

import t from 'tap'

import { LabProgram } from '../harness/linux-point.js'
import { requires } from '../harness/requires.js'
import { MIB } from '../lab/fill.js'
import { Lab } from '../lab/lab.js'

t.setTimeout(120_000)

t.test(
  'an instant restore that is killed before libvirt knew its domain takes back what it had put there, without --force',
  { ...requires('lab'), timeout: 120_000 },
  async t => {
    await using lab = await Lab.start()
    await using program = new LabProgram(lab)
    for (const name of ['kernel', 'initrd']) writeFileSync(lab.path(name), `the ${name}`)
    const domain = await lab.domain({
      name: 'direct',
      disks: [{ target: 'vda', size: 16 * MIB }],
      kernel: { image: lab.path('kernel'), initrd: lab.path('initrd'), arguments: '' },
    })
    t.match(await program.run('init'), { code: 0 })
    t.match(await program.run('backup', 'pull', 'direct'), { code: 0 })
    await lab.virsh('undefine', '--checkpoints-metadata', domain.uuid)
    const folder = lab.path('restored')
    const nvram = join(lab.folder, 'lib', 'qemu', 'nvram')
    const placed = () => ['direct.kernel', 'direct.initrd'].filter(name => existsSync(join(nvram, name)))
    const states = join(program.stateDir, 'instant')
    const begun = () => existsSync(states) && readdirSync(states).some(name => name.endsWith('.json'))
    const restore = () => ['restore', 'direct@latest', '--instant', '--no-hydrate', '--to', folder]

    const first = program.start(...restore())
    // It has said what it will do; a libvirtd that hangs then never hears of the domain.
    while (!begun()) await delay(1)
    await lab.signalDaemon('SIGSTOP')
    while (placed().length < 2) await delay(10)
    await first.kill('SIGKILL')
    // With what was sent to it and not read.
    await lab.restartDaemon({ signal: 'SIGKILL' })
    t.equal(await lab.virsh('list', '--all', '--name'), '')

    const refused = await program.run(...restore())
    const [, id = ''] = /--resume ([0-9a-f]{8})/.exec(refused.stderr) ?? []
    const taken = await program.run('restore', '--resume', id)
    t.match(refused, { code: 15 })
    t.match(taken, { code: 4, stderr: /what there was of it is removed/ })
    t.strictSame(placed(), [])
    t.strictSame(readdirSync(folder), [])

    // Nothing is in its way but that QEMU cannot boot such a kernel; and that leaves nothing either.
    for (const time of ['once', 'twice']) {
      t.match(await program.run(...restore()), { stderr: /cannot start the domain/ }, time)
      t.strictSame([...placed(), ...readdirSync(folder), ...readdirSync(states)], [])
    }
    t.equal(await lab.virsh('list', '--all', '--name'), '')
  },
)
