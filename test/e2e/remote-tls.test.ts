import { mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import t, { type Test } from 'tap'

import { cliEnvironment } from '../demo/virtvault-cli.js'
import { requires } from '../harness/requires.js'
import { runCli } from '../harness/run-cli.js'
import { Authority } from '../lab/certificates.js'
import { KIB, MIB } from '../lab/fill.js'
import { imageDifference } from '../lab/images.js'
import { RemoteLab } from '../lab/remote-lab.js'

t.setTimeout(300_000)

t.test('a libvirt on another machine, over TCP and TLS', { ...requires('remote-lab'), timeout: 300_000 }, async t => {
  await using remote = await RemoteLab.start()
  const { lab } = remote
  const names = [`IP:${remote.address}`]
  const env = {
    ...process.env,
    ...cliEnvironment(lab),
    VIRTVAULT_SCRATCH_DIR: '',
    VIRTVAULT_TARGET: lab.path('store'),
    VIRTVAULT_CONNECT: remote.tcpUri(),
  }
  const certificates = ['--override', `remote.certificates=${join(remote.home, 'pki')}`]
  const pull = (...args: readonly string[]) =>
    runCli(['backup', 'pull', 'web01', '--no-quiesce', '--scratch-limit', '1GiB', '--json', ...args], env)
  const content = [{ kind: 'write', offset: 0, length: 2 * MIB, fill: { seed: 1 } }] as const
  const web01 = await lab.domain({ name: 'web01', disks: [{ target: 'vda', size: 16 * MIB, content }] })
  await web01.start()
  t.equal((await runCli(['init'], env)).code, 0)

  let count = 0
  const isRight = async (t: Test) => {
    const to = lab.path(`restored-${++count}`)
    t.equal((await runCli(['restore', 'web01@latest', '--to', to], env)).code, 0)
    const held = await web01.referenceImage('vda', `held-${count}`)
    const restored = { path: join(to, 'vda.qcow2'), format: 'qcow2' } as const
    t.equal(await imageDifference(restored, { path: held, format: 'raw' }), undefined)
  }
  const nothingLeft = async (t: Test, checkpoints: number) => {
    const left = await web01.leftovers()
    t.strictSame([left.jobs, left.exports, left.files, left.checkpoints.length], [[], [], [], checkpoints])
    t.equal(await web01.state(), 'running')
    await lab.inside(`[ -z "$(ls /var/lib/libvirt/images)" ]`)
  }

  await t.test('with certificates on both sides pulls are full, then incremental, and right', async t => {
    t.match(JSON.parse((await pull(...certificates)).stdout), {
      exit: 0,
      results: [{ mode: 'full', warnings: { length: 0 } }],
    })
    await isRight(t)
    await web01.write('vda', 4 * MIB, 64 * KIB, { seed: 2 })
    const next = await pull(...certificates)
    t.match(JSON.parse(next.stdout), { exit: 0, results: [{ mode: 'incremental', disks: [{ read_bytes: 64 * KIB }] }] })
    await isRight(t)
    await nothingLeft(t, 2)
  })

  await t.test('libvirt itself over TLS too', async t => {
    await remote.authority.server(join(lab.folder, 'libvirtd-pki'), names)
    await lab.inside(`sed -i 's/^listen_tls = 0/listen_tls = 1/; $ a auth_tls = "none"' /etc/libvirt/libvirtd.conf`)
    await lab.restartDaemon({ signal: 'SIGTERM' })
    const { stdout } = await pull(...certificates, '-c', remote.tlsUri())
    t.match(JSON.parse(stdout), { exit: 0, results: [{ mode: 'incremental' }] })
  })

  await t.test('a user name and passphrase come from variables, and never from a flag', async t => {
    const sasl = join(lab.folder, 'sasl')
    mkdirSync(sasl)
    writeFileSync(join(sasl, 'libvirt.conf'), `mech_list: SCRAM-SHA-256\nsasldb_path: ${sasl}/db\n`)
    await lab.inside(`
      printf 'correct horse' | saslpasswd2 -p -c -f ${sasl}/db -a libvirt backup
      sed -i 's/^auth_tls = .*/auth_tls = "sasl"/' /etc/libvirt/libvirtd.conf`)
    await lab.restartDaemon({ signal: 'SIGTERM' })
    const list = (more: NodeJS.ProcessEnv) =>
      runCli(['doctor', '--json', '--override', 'remote.insecure=true'], {
        ...env,
        VIRTVAULT_CONNECT: remote.tlsUri(),
        ...more,
      })
    const user = { VIRTVAULT_LIBVIRT_USERNAME: 'backup' }

    const right = { ...user, VIRTVAULT_LIBVIRT_PASSPHRASE: 'correct horse' }
    t.match((await list(right)).stdout, /"libvirt 9|libvirt \d+\.\d+\.\d+, QEMU/)
    t.match((await list({ ...user, VIRTVAULT_LIBVIRT_PASSPHRASE: 'wrong' })).stdout, /E_LIBVIRT_DENIED/)
    t.match((await list({})).stdout, /E_LIBVIRT_DENIED.*VIRTVAULT_LIBVIRT_PASSPHRASE/s)
    const pulled = await runCli(
      ['backup', 'pull', 'web01', '--no-quiesce', '--scratch-limit', '1GiB', '--json', ...certificates],
      { ...env, VIRTVAULT_CONNECT: remote.tlsUri(), ...right },
    )
    t.match(JSON.parse(pulled.stdout), { exit: 0 }, 'the guardian logs in too')
  })

  await t.test('without a certificate of ours nothing is begun, and clear text is not fallen back to', async t => {
    const { code, stdout } = await pull('--override', `remote.certificates=${lab.path('none')}`)
    t.equal(code, 2)
    t.match(stdout, /E_CONFIG/)
    const clear = await pull('--override', 'remote.nbd=tcp')
    t.equal(clear.code, 15)
    t.match(clear.stdout, /E_REFUSED.*clear text|clear text.*E_REFUSED/s)
    await nothingLeft(t, 2)
  })

  const wrong: readonly (readonly [title: string, make: () => Promise<unknown>, code: number, said: RegExp])[] = [
    [
      'of another name',
      () => remote.authority.server(remote.backupPki, ['DNS:other.example']),
      14,
      /must name 10\.213/,
    ],
    [
      'of another authority',
      async () => (await Authority.make(lab.path('other-ca'))).server(remote.backupPki, names),
      14,
      /certificate verification/,
    ],
    ['that has expired', () => remote.authority.server(remote.backupPki, names, -1), 5, /has expired/],
    [
      'that is not there',
      () => Promise.resolve(rmSync(remote.backupPki, { recursive: true })),
      5,
      /backup_tls_x509_cert_dir/,
    ],
  ]
  for (const [title, make, code, said] of wrong) {
    await t.test(`a server certificate ${title} ends the pull with a clear error, and leaves nothing`, async t => {
      await make()
      const ended = await pull(...certificates)
      t.equal(ended.code, code)
      t.match(ended.stdout, said)
      await nothingLeft(t, 2)
    })
  }

  await t.test('in clear text only where somebody says so, and on the next port where one is taken', async t => {
    await lab.inside(
      'nc -lkd 10809 >/dev/null 2>&1 & for i in $(seq 100); do nc -z 127.0.0.1 10809 && exit 0; sleep 0.1; done; exit 1',
    )
    const taken = await pull('--insecure', '--override', 'remote.ports=10809')
    t.equal(taken.code, 14)
    t.match(taken.stdout, /no port is free/)
    await nothingLeft(t, 2)
    const ended = await pull('--insecure', '--override', 'remote.ports=10809-10810')
    t.match(JSON.parse(ended.stdout), { exit: 0, results: [{ mode: 'incremental' }] })
    await isRight(t)
  })

  await t.test('a domain that is off is refused with the way out, and that way works', async t => {
    await web01.destroy()
    const off = await pull('--insecure')
    t.equal(off.code, 6)
    t.match(off.stdout, /--start-paused/)
    t.match(JSON.parse((await pull('--insecure', '--start-paused')).stdout), { exit: 0 })
    t.equal(await web01.state(), 'shut off')
    await isRight(t)
  })
})
