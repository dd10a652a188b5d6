import t, { type Test } from 'tap'

import { requires } from '../harness/requires.js'
import { RemoteScene, THERE } from '../harness/remote-scene.js'
import type { Ended } from '../harness/run-cli.js'
import { KIB, MIB } from '../lab/fill.js'

const CHUNK = 64 * KIB
const SIZE = 64 * MIB

t.setTimeout(300_000)

/** The checkpoint since which a rolled back disk was known, of its first disk; null where all of it was read. */
function since({ stdout }: Ended): string | null {
  return (JSON.parse(stdout) as { disks: { since: string | null }[] }).disks[0]!.since
}

t.test(
  'restore --in-place on another machine, through ssh',
  { ...requires('remote-lab'), timeout: 300_000 },
  async t => {
    const scene = await RemoteScene.start()
    t.teardown(() => scene[Symbol.asyncDispose]())
    const { lab, remote } = scene
    const content = [{ kind: 'write', offset: 0, length: 16 * MIB, fill: { seed: 1 } }] as const
    const web01 = await lab.domain({ name: 'web01', disks: [{ target: 'vda', size: SIZE, content }] })
    // From now on its disk is only over there.
    await web01.start()
    await scene.must('backup', 'pull', 'web01', '--no-quiesce')
    await web01.destroy()
    await lab.virsh('undefine', '--checkpoints-metadata', 'web01')
    await scene.must('restore', 'web01@latest', '--to', `${THERE}/web01`, '--start')
    const image = `${THERE}/web01/vda.qcow2`
    await scene.must('backup', 'pull', 'web01', '--no-quiesce', '--tag', 'first')
    const first = await web01.referenceImage('vda', 'first')
    const inPlace = (...more: string[]) => ['restore', 'web01@first', '--in-place', '--yes', ...more]
    const isFirst = async (t: Test) => {
      await scene.isSame(t, image, 'qcow2', first)
      await scene.nothingLeft(t, 'web01')
    }
    /** So much that a slow rollback is caught in it. */
    const scribble = async (seed: number) => {
      if ((await web01.state()) === 'shut off') await web01.start()
      await web01.write('vda', 0, 8 * MIB, { seed })
      await web01.destroy()
    }
    const caught = () =>
      scene.caught(
        /"phase": ?"write"[^]*"target": ?"vda"/,
        ...inPlace('--bwlimit', '2MiB', '--progress', 'json', '--json'),
      )

    await t.test('it writes the difference and nothing else, and the next pull is incremental', async t => {
      t.match(await scene.run(...inPlace()), { code: 6, stderr: /not shut off.*E_DOMAIN_STATE/ })
      await web01.write('vda', 10 * CHUNK, 3 * CHUNK, { seed: 2 })
      await web01.write('vda', 40 * MIB, 2 * CHUNK, { seed: 3 })
      await scene.must('backup', 'pull', 'web01', '--no-quiesce')
      await web01.write('vda', 12 * CHUNK, 2 * CHUNK, { seed: 4 })
      await web01.destroy()

      const ended = await scene.must(...inPlace('--json'))

      t.match(JSON.parse(ended.stdout), { disks: [{ data_bytes: 4 * CHUNK, zero_bytes: 2 * CHUNK }] })
      await isFirst(t)
      await web01.start()
      const pulled = await scene.must('backup', 'pull', 'web01', '--no-quiesce', '--json')
      t.match(JSON.parse(pulled.stdout), { results: [{ mode: 'incremental', warnings: { length: 0 } }] })
    })

    await t.test('an image that something over there has open is not touched', async t => {
      await web01.destroy()
      await lab.inside(`
        qemu-nbd --fork --persistent --socket=${lab.path('busy.sock')} --pid-file=${lab.path('busy.pid')} -f qcow2 ${image}`)
      const busy = await scene.run(...inPlace())
      await lab.inside(`pid=$(cat ${lab.path('busy.pid')}); kill $pid; while kill -0 $pid; do sleep 0.1; done; true`)
      t.match(busy, { code: 6, stderr: new RegExp(`${image} on 10\\..* is in use.*E_DOMAIN_BUSY`) })
    })

    await t.test('every ssh connection cut in the middle: a clear error, and the second try finishes', async t => {
      await scribble(5)
      const { ended } = await caught()

      await remote.cutSsh()

      const { code, said } = await ended
      t.equal(code, 14, said)
      t.match(said, /the ssh connection was lost[^]*half rolled back/)
      const again = await scene.must(...inPlace('--json'))
      t.not(since(again), null, 'bitmaps were saved')
      await isFirst(t)
    })

    await t.test('kill -9 in the middle, and the second try finishes', async t => {
      await scribble(6)
      const { child, ended } = await caught()

      child.kill('SIGKILL')

      t.match(await ended, { code: 'SIGKILL' })
      const again = await scene.must(...inPlace('--json'))
      t.not(since(again), null, 'bitmaps were saved')
      await isFirst(t)
    })
  },
)
