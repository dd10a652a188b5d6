import { once } from 'node:events'
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'

import t from 'tap'

import type { RemoteProgram } from '../../src/libvirt/remote-program.js'
import { SshLink } from '../../src/libvirt/ssh-link.js'
import { parseLibvirtUri } from '../../src/model/libvirt-uri.js'
import { requires } from '../harness/requires.js'
import { RemoteLab } from '../lab/remote-lab.js'

t.setTimeout(120_000)

/** Takes no notice of its standard input, and says its process id. */
const STUBBORN = ['sh', '-c', 'echo $$; exec sleep 1000']

t.test('programs on another machine, through ssh', requires('remote-lab'), async t => {
  await using remote = await RemoteLab.start()
  const { lab } = remote
  const connect = (leaseSeconds = 60) => {
    const uri = parseLibvirtUri(remote.sshUri())
    return new SshLink(uri!, { runtimeDir: join(remote.home, 'run'), leaseSeconds })
  }
  const pidOf = async (program: RemoteProgram) => {
    const [said] = (await once(program.stdout, 'data')) as [Buffer]
    return Number(said.toString())
  }
  /** Throws where it is still there after ten seconds. */
  const isGone = (pid: number) =>
    lab.inside(`for i in $(seq 100); do kill -0 ${pid} 2>/dev/null || exit 0; sleep 0.1; done; exit 1`)

  await t.test('one gets words, standard input to its end, and gives its output and exit code back', async t => {
    await using link = connect()
    const program = await link.start(['sh', '-c', 'echo "$1" >&2; head -c 4; exit 3', 'sh', "a ' b"])
    const said = Promise.all([text(program.stdout), text(program.stderr)])
    program.stdin.write('1234')

    t.equal(await program.ended, 3)
    t.strictSame(await said, ['1234', "a ' b\n"])
  })

  await t.test('one that is not there ends with 127', async t => {
    await using link = connect()
    const program = await link.start(['no-such-program'])
    const said = text(program.stderr)

    t.equal(await program.ended, 127)
    t.match(await said, /no-such-program/)
  })

  await t.test('disposing ends one that does not look at its input', async t => {
    await using link = connect()
    const program = await link.start(STUBBORN)
    const pid = await pidOf(program)
    await lab.inside(`kill -0 ${pid}`)

    await program[Symbol.asyncDispose]()

    await lab.inside(`! kill -0 ${pid}`)
    t.pass('it is gone when disposing has returned')
  })

  await t.test('with the connection ends what runs over it', async t => {
    await using link = connect()
    const program = await link.start(STUBBORN)
    const pid = await pidOf(program)

    await remote.cutSsh()

    t.equal(await program.ended, 255)
    await isGone(pid)
  })

  await t.test('where the network falls silent it ends with its lease, though sshd notices nothing', async t => {
    await using link = connect(2)
    const program = await link.start(['sh', '-c', 'for i in 1 2 3 4; do sleep 1; done; echo $$; exec sleep 1000'])
    const pid = await pidOf(program)
    await lab.inside(`kill -0 ${pid}`)

    await lab.inside('ip link set eth0 down')
    await isGone(pid)
    await lab.inside('ip link set eth0 up')
    t.pass('and not before, while there were signs of life')
  })

  t.strictSame(readdirSync(join(remote.home, 'run')), [], 'nothing is left here')
})
