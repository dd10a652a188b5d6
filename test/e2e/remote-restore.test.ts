import { existsSync, readFileSync, writeFileSync } from 'node:fs'

import t from 'tap'

import { requires } from '../harness/requires.js'
import { RemoteScene, THERE } from '../harness/remote-scene.js'
import { KIB, MIB } from '../lab/fill.js'

const SIZE = 64 * MIB
const DATA = 8 * MIB
const CODE = '/usr/share/OVMF/OVMF_CODE_4M.fd'
const VARS = '/usr/share/OVMF/OVMF_VARS_4M.fd'
const needsFirmware = existsSync(CODE) ? {} : { skip: 'needs OVMF (Debian: ovmf)' }

t.setTimeout(300_000)

t.test(
  'a restore to a hypervisor on another machine, through ssh',
  { ...requires('remote-lab'), timeout: 300_000 },
  async t => {
    const scene = await RemoteScene.start()
    t.teardown(() => scene[Symbol.asyncDispose]())
    const { lab, remote } = scene
    const content = [
      { kind: 'write', offset: 0, length: DATA - 64 * KIB, fill: { seed: 1 } },
      { kind: 'write', offset: SIZE - 64 * KIB, length: 64 * KIB, fill: { seed: 2 } },
    ] as const
    const web01 = await lab.domain({
      name: 'web01',
      disks: [
        { target: 'vda', size: SIZE, content },
        { target: 'vdb', size: MIB, format: 'raw' },
      ],
    })
    await web01.start()
    await scene.must('backup', 'pull', 'web01', '--no-quiesce')
    const vda = await web01.referenceImage('vda', 'vda')
    const vdb = await web01.referenceImage('vdb', 'vdb')
    const holesIn = (image: string) => `[ "$(du -k ${image} | cut -f1)" -lt ${DATA / KIB + 1024} ]`

    await t.test('images are made over there, with holes, and the domain is defined and runs', async t => {
      const to = ['--to', `${THERE}/a`, '--start', '--name', 'copy', '--new-uuid', '--network', 'none']
      const { code, stderr } = await scene.run('restore', 'web01@latest', ...to)

      t.equal(code, 0, stderr)
      t.notOk(existsSync(THERE), 'nothing is written here')
      t.equal((await lab.virsh('domstate', 'copy')).trim(), 'running')
      t.match(await lab.virsh('domblklist', 'copy'), new RegExp(`vda\\s+${THERE}/a/vda.qcow2`))
      await lab.virsh('destroy', 'copy')
      await scene.isSame(t, `${THERE}/a/vda.qcow2`, 'qcow2', vda)
      await scene.isSame(t, `${THERE}/a/vdb.qcow2`, 'qcow2', vdb)
      const xml = lab.path('there.xml')
      await lab.inside(`
      [ "$(stat -c %a:%u:%g ${THERE}/a/vda.qcow2)" = 600:0:0 ] || exit 1
      [ "$(stat -c %a ${THERE}/a)" = 711 ] || exit 2
      ${holesIn(`${THERE}/a/vda.qcow2`)} || exit 3
      cp ${THERE}/a/web01.xml ${xml}`)
      t.match(readFileSync(xml, 'utf8'), /<name>web01<\/name>/)
      await scene.nothingLeft(t, 'a')
    })

    await t.test('what is there is not overwritten without --force, and is with it', async t => {
      await lab.inside(`mkdir ${THERE}/b; echo precious >${THERE}/b/vdb.raw`)
      const to = [
        '--to',
        `${THERE}/b`,
        '--define',
        '--name',
        'b',
        '--format',
        'raw',
        '--mode',
        '0640',
        '--owner',
        'libvirt-qemu:kvm',
      ]

      const refused = await scene.run('restore', 'web01@latest', ...to)
      t.match(refused, { code: 15, stderr: /vdb\.raw on 10\..* exists.*E_EXISTS/ })
      await lab.inside(`[ "$(cat ${THERE}/b/vdb.raw)" = precious ] && [ "$(ls -A ${THERE}/b)" = vdb.raw ]`)
      t.not((await lab.tryVirsh('domstate', 'b')).code, 0)

      const forced = await scene.run('restore', 'web01@latest', ...to, '--force')
      t.equal(forced.code, 0, forced.stderr)
      await scene.isSame(t, `${THERE}/b/vda.raw`, 'raw', vda)
      await scene.isSame(t, `${THERE}/b/vdb.raw`, 'raw', vdb)
      await lab.inside(
        `[ "$(stat -c %a:%U:%G ${THERE}/b/vda.raw)" = 640:libvirt-qemu:kvm ] && ${holesIn(`${THERE}/b/vda.raw`)}`,
      )
      t.equal((await lab.virsh('domstate', 'b')).trim(), 'shut off')
      await scene.nothingLeft(t, 'a', 'b')
    })

    await t.test('a pool over there, where sshd forwards no sockets', async t => {
      await lab.inside(`mkdir ${THERE}/pool`)
      await lab.virsh('pool-create-as', 'far', 'dir', '--target', `${THERE}/pool`)
      await remote.restartSshd(['AllowStreamLocalForwarding no'])

      const to = ['--to-pool', 'far', '--define', '--name', 'pooled']
      const { code, stderr } = await scene.run('restore', 'web01@latest', ...to)

      await remote.restartSshd(['AllowStreamLocalForwarding yes'])
      t.equal(code, 0, stderr)
      await scene.isSame(t, `${THERE}/pool/web01-vda.qcow2`, 'qcow2', vda)
      await scene.nothingLeft(t, 'a', 'b', 'pool')
    })

    await t.test('a user who is not root restores to a directory of his', async t => {
      await remote.addUser('vvuser')
      await lab.inside(`mkdir ${THERE}/own && chown vvuser ${THERE}/own`)

      const to = ['--to', `${THERE}/own`, '--define', '--name', 'own', '-c', remote.sshUri('vvuser')]
      const { code, stderr } = await scene.run('restore', 'web01@latest', ...to)

      t.equal(code, 0, stderr)
      await scene.isSame(t, `${THERE}/own/vda.qcow2`, 'qcow2', vda)
      await lab.inside(`
        rmdir /var/tmp/virtvault-$(id -u vvuser)/run /var/tmp/virtvault-$(id -u vvuser)
        [ "$(stat -c %U:%a ${THERE}/own/vda.qcow2)" = vvuser:600 ]`)
    })

    await t.test('UEFI variables go where the libvirt over there has them', needsFirmware, async t => {
      await lab.inside(`mkdir ${THERE}/uefi`)
      const vars = `${THERE}/uefi/vars.fd`
      const firmware = `<loader readonly='yes' type='pflash'>${CODE}</loader><nvram template='${VARS}'>${vars}</nvram>`
      await lab.domain({ name: 'uefi01', machine: 'q35', disks: [{ target: 'vda', size: MIB }] })
      const xml = await lab.virsh('dumpxml', '--inactive', 'uefi01')
      writeFileSync(lab.path('uefi.xml'), xml.replace('</os>', `${firmware}</os>`))
      await lab.virsh('define', lab.path('uefi.xml'))
      // Its firmware must not write while the copy is compared.
      await lab.virsh('start', 'uefi01', '--paused')
      await scene.must('backup', 'pull', 'uefi01', '--no-quiesce')

      await scene.must('restore', 'uefi01@latest', '--to', `${THERE}/uefi`, '--define', '--name', 'uefi02')

      const placed = '/var/lib/libvirt/qemu/nvram/uefi02_VARS.fd'
      t.match(await lab.virsh('dumpxml', 'uefi02'), new RegExp(placed))
      await lab.inside(`cmp ${vars} ${placed} && [ "$(stat -c %a ${placed})" = 600 ]`)
      await lab.virsh('destroy', 'uefi01')
    })

    await t.test('without ssh, or with what cannot be made there, it is refused before anything is begun', async t => {
      const define = ['--define', '--name', 'z']
      const tcp = await scene.run('restore', 'web01@latest', '--to', THERE, ...define, '-c', remote.tcpUri())
      t.match(tcp, { code: 15, stderr: /libvirt alone gives no way[^]*qemu\+ssh/ })
      const small = await scene.run('restore', 'web01@latest', '--to', THERE, ...define, '--compression', 'zstd')
      t.match(small, { code: 1, stderr: /a compressed image cannot be restored to another machine/ })
      const relative = await scene.run('restore', 'web01@latest', '--to', 'images', ...define)
      t.match(relative, { code: 2, stderr: /images is relative/ })
      const boot = await scene.run('verify', 'web01', '--level', 'boot')
      t.match(boot, { code: 15, stderr: /E_REFUSED[^]*-c qemu:\/\/\/system/ })
      t.match(await scene.run('verify', 'web01', '--level', 'restore'), { code: 0 })
      await scene.nothingLeft(t, 'a', 'b', 'own', 'pool', 'uefi')
    })
  },
)
