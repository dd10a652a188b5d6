import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import t, { type Test } from 'tap'

import { redefine } from '../harness/matrix.js'
import { sshEnvironment } from '../harness/remote-scene.js'
import { requires } from '../harness/requires.js'
import { MAIN, runCli } from '../harness/run-cli.js'
import { type Fill, fillBytes, KIB, MIB } from '../lab/fill.js'
import { imageDifference } from '../lab/images.js'
import { RemoteLab } from '../lab/remote-lab.js'

t.setTimeout(600_000)

const SIZE = 24 * MIB
/** Of the other machine alone: nothing here could open it. */
const FOLDER = '/var/lib/virtvault/images'
const KEY = 'open sesame'
const SECRET = '6a1d4a7e-1c5b-4c0e-9d2f-000000000003'

interface Pulled {
  readonly results: readonly {
    readonly mode: string
    readonly warnings: readonly { readonly code: string }[]
    readonly disks: readonly { readonly target: string; readonly read_bytes: number }[]
  }[]
}

t.test(
  'domains that are off on another machine, through ssh',
  { ...requires('remote-lab'), timeout: 600_000 },
  async t => {
    await using remote = await RemoteLab.start()
    const { lab } = remote
    const env = sshEnvironment(remote)
    t.equal((await runCli(['init'], env)).code, 0)
    await lab.inside(`mkdir -p ${FOLDER}`)

    const qcow2 = `${FOLDER}/web01-vda.qcow2`
    const web01 = await lab.domain({
      name: 'web01',
      disks: [
        { target: 'vda', size: SIZE, content: [{ kind: 'write', offset: 0, length: SIZE, fill: { seed: 1 } }] },
        { target: 'vdb', size: MIB, format: 'raw', content: [{ kind: 'write', offset: 0, length: 512, fill: 7 }] },
      ],
    })
    await lab.inside(`mv ${web01.disk('vda').path} ${web01.disk('vdb').path} ${FOLDER}/`)
    await redefine(lab, web01, xml => xml.replaceAll(`${lab.folder}/images/`, `${FOLDER}/`))

    const pull = (args: readonly string[] = [], more: NodeJS.ProcessEnv = {}) =>
      runCli(['backup', 'pull', 'web01', '--no-quiesce', '--json', ...args], { ...env, ...more })
    /** Writes to vda over there, and to its shadow here. */
    const write = async (offset: number, fill: Fill) => {
      if ((await web01.state()) === 'running') {
        await web01.write('vda', offset, 64 * KIB, fill)
        return
      }
      writeFileSync(lab.path('bytes'), fillBytes(fill, 64 * KIB))
      await lab.inside(`qemu-io -f qcow2 -c 'write -s ${lab.path('bytes')} ${offset} 64k' ${qcow2}`)
      await web01.disk('vda').changeShadow([{ kind: 'write', offset, length: 64 * KIB, fill }])
    }
    let restores = 0
    /** The newest point, against what was written. */
    const isRight = async (t: Test) => {
      const to = lab.path(`restored-${++restores}`)
      t.equal((await runCli(['restore', 'web01@latest', '--to', to], env)).code, 0)
      for (const { target, shadow } of web01.disks) {
        const image = readdirSync(to).find(name => name.startsWith(`${target}.`))
        const restored = { path: join(to, image!), format: 'qcow2' } as const
        t.equal(await imageDifference(restored, { path: shadow, format: 'raw' }), undefined, target)
      }
    }
    const pullAndCompare = async (t: Test, args: readonly string[] = [], more: NodeJS.ProcessEnv = {}) => {
      const { code, stdout, stderr } = await pull(args, more)
      t.equal(code, 0, stdout + stderr)
      await isRight(t)
      const [result] = (JSON.parse(stdout) as Pulled).results
      const codes = result!.warnings.map(({ code }) => code)
      return { mode: result!.mode, read: result!.disks.map(({ read_bytes: bytes }) => bytes), codes }
    }
    /** Nothing but these checkpoints, of which the top image has the bitmaps. */
    const nothingLeft = async (t: Test, checkpoints: number) => {
      t.equal((await web01.checkpoints()).length, checkpoints)
      await lab.inside(`
      [ "$(qemu-img info -U -f qcow2 ${qcow2} | grep -c 'name: virtvault-')" = ${checkpoints} ] &&
      [ -z "$(find /run/virtvault /var/lib/virtvault -mindepth 1 -name 'run-*')" ] &&
      ! pgrep -f '^qemu-storage-daemon'`)
      t.strictSame(readdirSync(join(remote.home, 'run')), [], 'nor here')
    }
    /** A pull that goes on for half a minute, when its disks are being served. */
    const catchPull = async () => {
      await write(0, { seed: 100 + restores })
      const child = spawn(MAIN, ['backup', 'pull', 'web01', '--mode', 'full', '--bwlimit', '1MiB', '--json'], {
        env,
        stdio: ['ignore', 'pipe', 'pipe'],
      })
      let said = ''
      child.stdout.on('data', (part: Buffer) => (said += part.toString()))
      child.stderr.on('data', (part: Buffer) => (said += part.toString()))
      const ended = once(child, 'close').then(([code]) => ({ code: code as number | null, said }))
      await lab.inside(`
      for i in $(seq 300); do ls /run/virtvault/run-*/nbd.sock 2>/dev/null && exit 0; sleep 0.1; done; exit 1`)
      return { child, ended }
    }
    const startFails = async () => (await lab.tryVirsh('start', 'web01')).stderr
    /** Throws where it does not within ten seconds. */
    const startsSoon = async () => {
      const deadline = performance.now() + 10_000
      for (;;) {
        const { code, stderr } = await lab.tryVirsh('start', 'web01')
        if (code === 0) return
        if (performance.now() > deadline) throw new Error(stderr)
      }
    }

    await t.test('a pull in full, then incremental ones, off and on and off again, and all are right', async t => {
      t.strictSame(await pullAndCompare(t), { mode: 'full', read: [SIZE, 64 * KIB], codes: [] })
      await nothingLeft(t, 1)
      await write(4 * MIB, { seed: 2 })
      t.strictSame(await pullAndCompare(t), { mode: 'incremental', read: [64 * KIB, 64 * KIB], codes: ['W_FULL_ONLY'] })
      await web01.start()
      await write(5 * MIB, { seed: 3 })
      t.strictSame(await pullAndCompare(t), { mode: 'incremental', read: [64 * KIB, 64 * KIB], codes: ['W_FULL_ONLY'] })
      await write(6 * MIB, { seed: 4 })
      await web01.destroy()
      await write(7 * MIB, { seed: 5 })
      t.strictSame(await pullAndCompare(t), {
        mode: 'incremental',
        read: [128 * KIB, 64 * KIB],
        codes: ['W_FULL_ONLY'],
      })
      await nothingLeft(t, 2)
      t.equal(await web01.state(), 'shut off', 'as it was found')
      await lab.inside(`qemu-img convert -f qcow2 -O raw ${qcow2} ${lab.path('read')}`)
      const { shadow } = web01.disk('vda')
      const difference = await imageDifference(
        { path: lab.path('read'), format: 'raw' },
        { path: shadow, format: 'raw' },
      )
      t.equal(difference, undefined, 'and qemu-img reads the same over there')
    })

    await t.test('where sshd forwards no sockets netcat carries them, with --tls too', async t => {
      await remote.restartSshd(['AllowStreamLocalForwarding no'])
      await write(8 * MIB, { seed: 6 })
      const tls = ['--tls', '--override', `remote.certificates=${join(remote.home, 'pki')}`]
      t.match(await pullAndCompare(t, tls), { mode: 'incremental', read: [64 * KIB, 64 * KIB] })
      await remote.restartSshd([])
      await nothingLeft(t, 2)
    })

    await t.test(
      'kill -9 in mid-read, which keeps it from starting: then it starts, and the next pull is right',
      async t => {
        const { child, ended } = await catchPull()
        t.match(await startFails(), /lock/)

        child.kill('SIGKILL')
        await ended

        await startsSoon()
        await web01.destroy()
        t.match(await pullAndCompare(t), { mode: 'incremental', codes: ['W_RECOVERED', 'W_FULL_ONLY'] })
        await nothingLeft(t, 2)
      },
    )

    await t.test(
      'every ssh connection cut in mid-read: a clear error, nothing left, the next pull is right',
      async t => {
        const { ended } = await catchPull()

        await remote.cutSsh()

        const { code, said } = await ended
        t.equal(code, 14, said)
        t.match(said, /the ssh connection was lost|E_NBD/)
        await startsSoon()
        await web01.destroy()
        t.match(await pullAndCompare(t), { mode: 'incremental', read: [64 * KIB, 64 * KIB] })
        await nothingLeft(t, 2)
      },
    )

    await t.test(
      'without qemu-storage-daemon over there, the error names its package, and nothing is left',
      async t => {
        const programs = lab.path('programs')
        await lab.inside(`
      mkdir ${programs}
      ln -s /usr/bin/* ${programs}/
      rm ${programs}/qemu-storage-daemon`)
        await remote.restartSshd([`SetEnv PATH=${programs}`])
        const { code, stdout } = await pull()
        t.equal(code, 1, stdout)
        t.match(stdout, /E_TOOL_MISSING/)
        t.match(
          stdout,
          new RegExp(`qemu-storage-daemon is not installed on ${remote.address}.*qemu-system-common`, 's'),
        )
        const doctor = await runCli(['doctor', '--json'], env)
        t.match(doctor.stdout, /has no qemu-storage-daemon/)
        await remote.restartSshd([])
        await nothingLeft(t, 2)
        t.match((await runCli(['doctor', '--json'], env)).stdout, /domains that are off are read there/)
      },
    )

    await t.test('a user who is not root reads what he may, and is told what he may not', async t => {
      await remote.addUser('vvuser')
      const vvuser = { VIRTVAULT_CONNECT: remote.sshUri('vvuser') }
      const denied = await pull([], vvuser)
      t.equal(denied.code, 1, denied.stdout)
      t.match(denied.stdout, /Permission denied.*let that be root.*--start-paused/s)
      await nothingLeft(t, 2)

      await lab.inside(`chmod 711 /var/lib/virtvault; chown -R vvuser ${FOLDER}`)
      await write(9 * MIB, { seed: 7 })
      t.match(await pullAndCompare(t, [], vvuser), { mode: 'incremental', read: [64 * KIB, 64 * KIB] })
      await lab.inside(`rm -r /var/tmp/virtvault-$(id -u vvuser)`)
      await nothingLeft(t, 2)
    })

    await t.test('a key goes over there by standard input, and its disk comes back decrypted', async t => {
      const image = `${FOLDER}/luks.qcow2`
      const secret = `--object secret,id=s,data='${KEY}'`
      // On a busy machine it cannot measure how long a key takes, and gives up.
      await lab.inside(`for try in $(seq 50); do
      qemu-img create -q -f qcow2 ${secret} \\
        -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 ${image} 1M && exit 0
    done; exit 1`)
      writeFileSync(lab.path('secret.xml'), `<secret ephemeral='no' private='no'><uuid>${SECRET}</uuid></secret>`)
      writeFileSync(lab.path('key'), KEY)
      await lab.virsh('secret-define', lab.path('secret.xml'))
      await lab.virsh('secret-set-value', SECRET, '--file', lab.path('key'), '--plain')
      const encryption = `<encryption format='luks'><secret type='passphrase' uuid='${SECRET}'/></encryption>`
      await lab.domain({
        name: 'luks01',
        disks: [],
        devices: `<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='${image}'>${encryption}</source><target dev='vda' bus='virtio'/></disk>`,
      })
      const options = `driver=qcow2,encrypt.format=luks,encrypt.key-secret=s,file.driver=file,file.filename=${image}`
      const expected = Buffer.alloc(MIB)
      for (const [n, mode] of (['full', 'incremental'] as const).entries()) {
        expected.fill(n + 1, n * 64 * KIB, (n + 1) * 64 * KIB)
        writeFileSync(lab.path('expected'), expected)
        await lab.inside(`qemu-io ${secret} --image-opts -c 'write -P ${n + 1} ${n * 64}k 64k' ${options}`)
        const { stdout } = await runCli(['backup', 'pull', 'luks01', '--json'], env)
        t.match(JSON.parse(stdout), { exit: 0, results: [{ mode, disks: [{ read_bytes: 64 * KIB }] }] })
        if (mode === 'full') continue
        const to = lab.path(`luks-${n}`)
        t.equal((await runCli(['restore', 'luks01@latest', '--to', to], env)).code, 0)
        const restored = { path: join(to, 'vda.qcow2'), format: 'qcow2' } as const
        t.equal(await imageDifference(restored, { path: lab.path('expected'), format: 'raw' }), undefined, mode)
      }
    })
  },
)
