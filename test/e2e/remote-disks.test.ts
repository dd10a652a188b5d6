import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'

import t, { type Test } from 'tap'

import { sshEnvironment } from '../harness/remote-scene.js'
import { requires } from '../harness/requires.js'
import { runCli } from '../harness/run-cli.js'
import { KIB, MIB } from '../lab/fill.js'
import { imageDifference } from '../lab/images.js'
import { RemoteLab } from '../lab/remote-lab.js'
import { run } from '../lab/run-program.js'

t.setTimeout(300_000)
const SIZE = 8 * MIB
const TARGET = 'iqn.2026-11.example:store'
/** As CHAP wants it: of 12 characters at least. */
const PASSWORD = 'opensesame1234'
const GUARDED = 'iqn.2026-11.example:guarded'
/** Where only the other machine gets to: its loopback. */
const NBD_PORT = 10900

t.test(
  'disks on servers, of domains on another machine that run or are off',
  { ...requires('remote-lab'), timeout: 300_000 },
  async t => {
    await using remote = await RemoteLab.start()
    const { lab } = remote
    const env = sshEnvironment(remote)
    t.equal((await runCli(['init'], env)).code, 0)
    const define = (name: string, source: string) =>
      lab.domain({
        name,
        disks: [],
        devices: `<disk type='network' device='disk'><driver name='qemu' type='raw'/><source ${source}</source><target dev='vda' bus='virtio'/></disk>`,
      })
    /** Through QEMU, which shows that the domain does run on it. */
    const write = async (name: string, command: string) => {
      const alias = /<alias name='(virtio-disk[^']+)'/.exec(await lab.virsh('dumpxml', name))![1]!
      for (const what of [command, 'flush']) {
        const hmp = `qemu-io -d /machine/peripheral/${alias}/virtio-backend "${what}"`
        t.equal(await lab.virsh('qemu-monitor-command', name, '--hmp', hmp), '')
      }
    }
    let restores = 0
    const pullIsRight = async (t: Test, name: string, file: string) => {
      const { code, stdout } = await runCli(['backup', 'pull', name, '--no-quiesce', '--json'], env)
      t.equal(code, 0, stdout)
      const to = lab.path(`restored-${++restores}`)
      t.equal((await runCli(['restore', `${name}@latest`, '--to', to], env)).code, 0)
      const restored = { path: join(to, 'vda.qcow2'), format: 'qcow2' } as const
      t.equal(await imageDifference(restored, { path: file, format: 'raw' }), undefined)
      t.match(JSON.parse(stdout), { results: [{ mode: 'full', skipped_disks: { length: 0 } }] })
    }

    await t.test('iSCSI, from a target in user space', requires('iscsi'), async t => {
      const [lun, guardedLun] = [lab.path('lun.raw'), lab.path('guarded.raw')]
      await run('truncate', ['--size', String(SIZE), lun, guardedLun])
      const number = 1 + (process.pid % 30_000)
      await lab.inside(`
        tgtd -f --control-port ${number} --iscsi portal=127.0.0.1:3260 >${lab.folder}/log/tgtd.log 2>&1 &
        admin="tgtadm --control-port ${number} --lld iscsi"
        for i in $(seq 100); do $admin --mode target --op new --tid 1 -T ${TARGET} && break; sleep 0.1; done
        $admin --mode logicalunit --op new --tid 1 --lun 1 -b ${lun} && $admin --mode target --op bind --tid 1 -I ALL
        $admin --mode target --op new --tid 2 -T ${GUARDED} && $admin --mode target --op bind --tid 2 -I ALL
        $admin --mode logicalunit --op new --tid 2 --lun 1 -b ${guardedLun}
        $admin --mode account --op new --user us --password ${PASSWORD} && $admin --mode account --op bind --tid 2 --user us`)
      const domain = await define('iscsi01', `protocol='iscsi' name='${TARGET}/1'><host name='127.0.0.1' port='3260'/>`)
      await domain.start()
      await write('iscsi01', 'write -P 0x11 1M 64k')
      await pullIsRight(t, 'iscsi01', lun)
      await write('iscsi01', 'write -P 0x22 2M 64k')
      const { code, stdout } = await runCli(
        ['backup', 'pull', 'iscsi01', '--scratch-device', 'vda=/dev/loop0', '--json'],
        env,
      )
      t.equal(code, 1, stdout)
      t.match(stdout, /E_UNSUPPORTED/, 'a device over there cannot be looked at')
      t.notMatch(await lab.virsh('domjobinfo', 'iscsi01'), /Backup/)
      await domain.destroy()
      await pullIsRight(t, 'iscsi01', lun)

      const uuid = '6a1d4a7e-1c5b-4c0e-9d2f-000000000003'
      const usage = `<usage type='iscsi'><target>chap</target></usage>`
      const secret = `<secret ephemeral='no' private='yes'><uuid>${uuid}</uuid>${usage}</secret>`
      await writeFile(lab.path('secret.xml'), secret)
      await writeFile(lab.path('secret'), PASSWORD)
      await lab.virsh('secret-define', lab.path('secret.xml'))
      await lab.virsh('secret-set-value', uuid, '--file', lab.path('secret'), '--plain')
      const login = `<auth username='us'><secret type='iscsi' uuid='${uuid}'/></auth>`
      const host = `<host name='127.0.0.1' port='3260'/>`
      const guarded = await define('chap01', `protocol='iscsi' name='${GUARDED}/1'>${host}${login}`)
      await guarded.start()
      await write('chap01', 'write -P 0x55 4M 64k')
      await pullIsRight(t, 'chap01', guardedLun)
    })

    await t.test('NBD behind TLS, with the certificates that qemu.conf over there names', async t => {
      const [served, pki] = [lab.path('served.raw'), lab.path('nbd-client-pki')]
      await run('truncate', ['--size', String(SIZE), served])
      await remote.authority.server(lab.path('nbd-server-pki'), ['IP:127.0.0.1'])
      await remote.authority.client(pki)
      await lab.inside(`
        qemu-nbd --fork --persistent --shared=9 -f raw -x it -b 127.0.0.1 -p ${NBD_PORT} --tls-creds tls0 \\
          --object tls-creds-x509,id=tls0,endpoint=server,verify-peer=yes,dir=${lab.path('nbd-server-pki')} ${served}
        printf 'nbd_tls = 1\\nnbd_tls_x509_cert_dir = "${pki}"\\n' >>/etc/libvirt/qemu.conf`)
      await lab.restartDaemon({ signal: 'SIGTERM' })
      const domain = await define('tls01', `protocol='nbd' name='it'><host name='127.0.0.1' port='${NBD_PORT}'/>`)
      await domain.start()
      await write('tls01', 'write -P 0x33 3M 64k')
      await pullIsRight(t, 'tls01', served)
      await write('tls01', `write -P 0x44 ${77 * KIB} 4k`)
      await domain.destroy()
      await pullIsRight(t, 'tls01', served)

      await lab.inside(`rm -r ${pki}`)
      const { code, stdout } = await runCli(['backup', 'pull', 'tls01', '--json'], env)
      t.not(code, 0)
      t.match(stdout, /without certificates in/, 'never in the open')
    })
  },
)
