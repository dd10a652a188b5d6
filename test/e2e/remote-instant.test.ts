import { readdirSync } from 'node:fs'
import { join } from 'node:path'

import t from 'tap'

import { requires } from '../harness/requires.js'
import { RemoteScene, THERE } from '../harness/remote-scene.js'
import { MIB } from '../lab/fill.js'

t.setTimeout(300_000)

t.test(
  'a domain of another machine runs at once on an export here, and outlives kill -9 and a cut connection',
  { ...requires('remote-lab'), timeout: 300_000 },
  async t => {
    await using scene = await RemoteScene.start()
    const { lab, remote } = scene
    const content = [{ kind: 'write', offset: 0, length: 12 * MIB, fill: { seed: 1 } }] as const
    const web01 = await lab.domain({ name: 'web01', disks: [{ target: 'vda', size: 32 * MIB, content }] })
    await web01.start()
    await scene.must('backup', 'pull', 'web01', '--no-quiesce')
    const held = await web01.referenceImage('vda', 'held')
    await web01.destroy()
    await lab.virsh('undefine', '--checkpoints-metadata', 'web01')
    const image = `${THERE}/a/vda.qcow2`
    const states = () => readdirSync(join(String(scene.env['VIRTVAULT_STATE_DIR']), 'instant'))

    await remote.restartSshd(['AllowStreamLocalForwarding no'])
    const refused = await scene.run('restore', 'web01@latest', '--instant', '--to', `${THERE}/a`)
    t.match(refused, { code: 14, stderr: /does not let QEMU there reach us[^]*AllowStreamLocalForwarding yes/ })
    t.not((await lab.tryVirsh('domstate', 'web01')).code, 0, 'nothing was defined')
    await remote.restartSshd(['AllowStreamLocalForwarding yes'])

    const first = await scene.caught(
      /--resume ([0-9a-f]{8})/,
      ...['restore', 'web01@latest', '--instant', '--no-hydrate', '--to', `${THERE}/a`],
    )
    t.equal(await web01.state(), 'running')
    t.match(await lab.virsh('dumpxml', 'web01'), /\/run\/virtvault\/instant-[0-9a-f]{8}\.sock/)
    first.child.kill('SIGKILL')
    await first.ended
    t.match(await scene.run('restore', 'web01@latest', '--instant', '--to', `${THERE}/b`), {
      code: 15,
      stderr: new RegExp(`--resume ${first.id}`),
    })

    const slow = ['--bwlimit', '1MiB', '--progress', 'json']
    const filling = await scene.caught(/"target": ?"vda"/, 'restore', '--resume', first.id, ...slow)
    await remote.cutSsh()
    const cut = await filling.ended
    t.equal(cut.code, 14, cut.said)
    t.match(cut.said, /web01 still needs its export: .*the ssh connection was lost/)
    t.match(cut.said, new RegExp(`--resume ${first.id}`))

    // Where it was begun is known: nobody has to say it again.
    delete scene.env['VIRTVAULT_CONNECT']
    const { code, stdout, stderr } = await scene.run('restore', '--resume', first.id, '--json')
    t.equal(code, 0, stderr + stdout)
    t.match(JSON.parse(stdout), { ok: true, hydrated: true, domain: 'web01' })
    t.strictSame(states(), [])
    t.notMatch(await lab.virsh('dumpxml', 'web01'), /instant-/)
    t.notMatch(await lab.virsh('dumpxml', '--inactive', 'web01'), /instant-|nbd|rerror_policy/)
    t.equal(await web01.state(), 'running')
    await web01.destroy()
    await scene.isSame(t, image, 'qcow2', held)
    await scene.nothingLeft(t, 'a')
  },
)
