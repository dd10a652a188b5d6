import t from 'tap'

import { requires } from '../harness/requires.js'
import { RemoteScene, THERE } from '../harness/remote-scene.js'
import { KIB, MIB } from '../lab/fill.js'

const DATA = 8 * MIB

t.setTimeout(300_000)

t.test(
  'what may go wrong with a restore to another machine leaves nothing there',
  { ...requires('remote-lab'), timeout: 300_000 },
  async t => {
    const scene = await RemoteScene.start()
    t.teardown(() => scene[Symbol.asyncDispose]())
    const { lab, remote } = scene
    const content = [{ kind: 'write', offset: 0, length: DATA, fill: { seed: 1 } }] as const
    const web01 = await lab.domain({ name: 'web01', disks: [{ target: 'vda', size: 64 * MIB, content }] })
    await web01.start()
    await scene.must('backup', 'pull', 'web01', '--no-quiesce')
    const restore = (name: string) => [
      'restore',
      'web01@latest',
      '--to',
      `${THERE}/${name}`,
      '--define',
      '--name',
      name,
    ]
    /** A slow one, caught when it writes. */
    const caught = async (name: string) =>
      await scene.caught(/"target": ?"vda"/, ...restore(name), '--bwlimit', '1MiB', '--progress', 'json', '--json')

    await t.test('no room is said before anything is written; room that runs out is noticed', async t => {
      for (const [size, when] of [
        [DATA / 2, /no room for the images/],
        [DATA + 128 * KIB, /no room for .*vda.qcow2/],
      ] as const) {
        await lab.inside(`mkdir -p ${THERE}/small; mount -t tmpfs -o size=${size} none ${THERE}/small`)
        const full = await scene.run(...restore('small'))
        t.match(full, { code: 13, stderr: when })
        t.match(full.stderr, /E_NO_SPACE/)
        await lab.inside(`[ -z "$(ls -A ${THERE}/small)" ] && umount ${THERE}/small && rmdir ${THERE}/small`)
      }
      await scene.nothingLeft(t)
    })

    await t.test('every ssh connection cut in the middle is a clear error', async t => {
      const { ended } = await caught('cut')

      await remote.cutSsh()

      const { code, said } = await ended
      t.equal(code, 14, said)
      t.match(said, /E_UNREACHABLE/)
      t.match(said, /the ssh connection was lost/)
      t.match(said, /nothing of this restore is left on/)
      await scene.nothingLeft(t)
      t.not((await lab.tryVirsh('domstate', 'cut')).code, 0)
    })

    await t.test('a machine that is not reached any more removes the images itself; the error names them', async t => {
      const { ended } = await caught('gone')

      await lab.inside(`kill "$(cat ${lab.folder}/sshd/pid)"`)
      await lab.inside('for one in $(pgrep sshd); do kill -KILL "$one"; done; true')

      const { code, said } = await ended
      await remote.startSshd()
      t.equal(code, 14, said)
      t.match(said, new RegExp(`these files may be left there [^]*rm ${THERE}/gone/`))
      await scene.nothingLeft(t, 'gone')
      await lab.inside(`rmdir ${THERE}/gone`)
    })

    await t.test('Ctrl-C', async t => {
      const { child, ended } = await caught('interrupted')

      child.kill('SIGINT')

      t.match(await ended, { code: 130 })
      await scene.nothingLeft(t)
    })

    await t.test('kill -9, but for the directory', async t => {
      const { child, ended } = await caught('killed')

      child.kill('SIGKILL')

      t.match(await ended, { code: 'SIGKILL' })
      await scene.nothingLeft(t, 'killed')
      await lab.inside(`rmdir ${THERE}/killed`)
    })
  },
)
