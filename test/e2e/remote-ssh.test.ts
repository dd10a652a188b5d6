import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import t, { type Test } from 'tap'

import { Store } from '../../src/store/store.js'
import { sshEnvironment } from '../harness/remote-scene.js'
import { requires } from '../harness/requires.js'
import { imageDifference } from '../lab/images.js'
import { KIB, MIB } from '../lab/fill.js'
import { RemoteLab } from '../lab/remote-lab.js'
import { run } from '../lab/run-program.js'

const MAIN = fileURLToPath(new URL('../../src/cli/main.cjs', import.meta.url))
const SIZE = 16 * MIB
const CODE = '/usr/share/OVMF/OVMF_CODE_4M.fd'
const VARS = '/usr/share/OVMF/OVMF_VARS_4M.fd'
const needs = existsSync(CODE) ? requires('remote-lab') : { skip: 'needs OVMF (Debian: ovmf)' }

t.setTimeout(300_000)

t.test('a libvirt on another machine, through ssh', { ...needs, timeout: 300_000 }, async t => {
  const remote = await RemoteLab.start()
  t.teardown(() => remote[Symbol.asyncDispose]())
  const { lab } = remote
  const store = lab.path('store')
  const env = sshEnvironment(remote)
  const virtvault = (args: readonly string[], more: NodeJS.ProcessEnv = {}) =>
    run(process.execPath, [MAIN, ...args], { env: { ...env, ...more }, check: false })
  const web01 = await lab.domain({
    name: 'web01',
    disks: [
      { target: 'vda', size: SIZE, content: [{ kind: 'write', offset: 0, length: 2 * MIB, fill: { seed: 1 } }] },
      { target: 'vdb', size: SIZE },
    ],
  })
  await web01.start()
  t.equal((await virtvault(['init', store])).code, 0)

  /** Pulls, restores what was pulled, and compares that with what the domain held. */
  const pullAndCompare = async (t: Test, args: readonly string[] = [], more: NodeJS.ProcessEnv = {}) => {
    const { code, stdout, stderr } = await virtvault(
      ['backup', 'pull', 'web01', '--no-quiesce', '--json', ...args],
      more,
    )
    t.equal(code, 0, stderr + stdout)
    const document = JSON.parse(stdout) as {
      results: { mode: string; warnings: unknown[]; disks: { read_bytes: number }[] }[]
    }
    const folder = lab.path(`restored-${Math.random()}`)
    t.equal((await virtvault(['restore', 'web01@latest', '--to', folder])).code, 0)
    for (const { target } of web01.disks) {
      const held = await web01.referenceImage(target, `held-${Math.random()}`)
      const image = readdirSync(folder).find(name => name.includes(target) && name.endsWith('.qcow2'))
      t.equal(
        await imageDifference({ path: join(folder, image!), format: 'qcow2' }, { path: held, format: 'raw' }),
        undefined,
      )
    }
    return document.results[0]!
  }
  const nothingLeft = async (t: Test, checkpoints: number) => {
    const left = await web01.leftovers()
    t.strictSame({ jobs: left.jobs, exports: left.exports, files: left.files }, { jobs: [], exports: [], files: [] })
    t.equal(left.checkpoints.length, checkpoints)
    t.equal(await web01.state(), 'running')
    await lab.inside(`[ -z "$(find /run/virtvault /var/lib/virtvault -mindepth 1 -name 'run-*')" ]`)
    t.strictSame(readdirSync(join(remote.home, 'run')), [], 'nor here')
  }

  await t.test('a pull, then an incremental one, with nothing open but ssh, and both are right', async t => {
    const full = await pullAndCompare(t)
    t.match(full, { mode: 'full', warnings: { length: 0 } })
    await nothingLeft(t, 1)
    await web01.write('vda', 4 * MIB, 64 * KIB, { seed: 2 })
    const next = await pullAndCompare(t)
    t.match(next, {
      mode: 'incremental',
      disks: [{ read_bytes: 64 * KIB }, { read_bytes: 0 }],
      warnings: { length: 0 },
    })
    await nothingLeft(t, 2)
  })

  await t.test('where sshd forwards no sockets, netcat carries them', async t => {
    await remote.restartSshd(['AllowStreamLocalForwarding no'])
    await web01.write('vda', 5 * MIB, 64 * KIB, { seed: 3 })
    t.match(await pullAndCompare(t), {
      mode: 'incremental',
      disks: [{ read_bytes: 64 * KIB }, {}],
      warnings: { length: 0 },
    })
    await remote.restartSshd([])
    await nothingLeft(t, 2)
  })

  await t.test('a user who is not root reads the disks by an access list, and nobody else does', async t => {
    await remote.addUser('vvuser')
    t.match(await pullAndCompare(t, [], { VIRTVAULT_CONNECT: remote.sshUri('vvuser') }), { mode: 'incremental' })
    await lab.inside(`[ -d /var/tmp/virtvault-$(id -u vvuser)/run ] && rm -r /var/tmp/virtvault-$(id -u vvuser)`)
    const doctor = await virtvault(['doctor', '--json'], { VIRTVAULT_CONNECT: remote.sshUri('vvuser') })
    t.match(doctor.stdout, /as vvuser.*access list/)
  })

  await t.test('a key that is not known is an error that says what must work', async t => {
    const { code, stdout } = await virtvault(['backup', 'pull', 'web01', '--json', '-c', remote.sshUri('nobody')])
    t.equal(code, 5)
    t.match(stdout, /E_LIBVIRT_(CONNECT|DENIED)/)
    t.match(stdout, /virsh -c/)
  })

  await t.test('doctor says which way the disks would come, and where the scratch would be', async t => {
    const { code, stdout } = await virtvault(['doctor', 'web01', '--json'])
    t.equal(code, 0, stdout)
    t.match(stdout, /tunnelled through ssh as root/)
    t.match(stdout, /free for scratch in \/var\/lib\/virtvault\/scratch/)
    t.match(stdout, /vda .*incremental since/)
    const tls = await virtvault(['doctor', '--json', '--override', 'remote.nbd=tls'])
    t.equal(tls.code, 3)
    t.match(tls.stdout, /no certificates in \/etc\/virtvault\/pki/)
    const clear = await virtvault(['doctor', '--json', '--override', 'remote.nbd=tcp'])
    t.match(clear.stdout, /in clear text/)
  })

  await t.test(
    'UEFI variables that are only over there are in the point; over TLS alone their lack is a warning',
    async t => {
      await lab.inside('mkdir /var/lib/virtvault/only-there')
      const vars = '/var/lib/virtvault/only-there/vars.fd'
      const uefi = await lab.domain({ name: 'uefi01', machine: 'q35', disks: [{ target: 'vda', size: MIB }] })
      const firmware = `<loader readonly='yes' type='pflash'>${CODE}</loader><nvram template='${VARS}'>${vars}</nvram>`
      const xml = await lab.virsh('dumpxml', '--inactive', 'uefi01')
      writeFileSync(lab.path('uefi.xml'), xml.replace('</os>', `${firmware}</os>`))
      await lab.virsh('define', lab.path('uefi.xml'))
      // Its firmware must not write while the copy is compared.
      await lab.virsh('start', 'uefi01', '--paused')

      const { code, stdout } = await virtvault(['backup', 'pull', 'uefi01', '--no-quiesce', '--json'])

      t.equal(code, 0, stdout)
      await lab.inside(`cp ${vars} ${lab.path('vars')}`)
      await using opened = await Store.open(store)
      const point = await opened.points.latest(uefi.uuid)
      const blob = point!.blobs.find(({ name }) => name === 'nvram')
      t.ok(readFileSync(lab.path('vars')).equals(await opened.readBlob(blob!)))
      const alone = ['--insecure', '--no-quiesce', '--scratch-limit', '1GiB', '--json', '-c', remote.tcpUri()]
      const without = await virtvault(['backup', 'pull', 'uefi01', ...alone])
      t.match(JSON.parse(without.stdout), {
        exit: 0,
        results: [{ warnings: [{ code: 'W_FILE_SKIPPED' }, { message: /nvram/ }] }],
      })
      await uefi.destroy()
    },
  )

  await t.test('a domain that is off can be started, paused, for the pull', async t => {
    await web01.destroy()
    t.equal((await virtvault(['backup', 'pull', 'web01', '--start-paused'])).code, 0)
    t.equal(await web01.state(), 'shut off')
  })
})
