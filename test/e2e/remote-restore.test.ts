import { spawn } from 'node:child_process'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import t, { type Test } from 'tap'

import { cliEnvironment } from '../demo/virtvault-cli.js'
import { requires } from '../harness/requires.js'
import { MAIN, runCli } from '../harness/run-cli.js'
import { KIB, MIB } from '../lab/fill.js'
import { imageDamage, imageDifference } from '../lab/images.js'
import { RemoteLab } from '../lab/remote-lab.js'

const SIZE = 64 * MIB
const DATA = 8 * MIB
/** Only the other machine has it. */
const THERE = '/var/lib/virtvault/images'
const CODE = '/usr/share/OVMF/OVMF_CODE_4M.fd'
const VARS = '/usr/share/OVMF/OVMF_VARS_4M.fd'
const needsFirmware = existsSync(CODE) ? {} : { skip: 'needs OVMF (Debian: ovmf)' }

t.setTimeout(300_000)

t.test(
  'a restore to a hypervisor on another machine, through ssh',
  { ...requires('remote-lab'), timeout: 300_000 },
  async t => {
    const remote = await RemoteLab.start()
    t.teardown(() => remote[Symbol.asyncDispose]())
    const { lab } = remote
    const store = lab.path('store')
    const runtime = join(remote.home, 'run')
    const env = {
      ...process.env,
      ...cliEnvironment(lab),
      VIRTVAULT_SCRATCH_DIR: '',
      VIRTVAULT_RUNTIME_DIR: runtime,
      VIRTVAULT_TARGET: store,
      VIRTVAULT_CONNECT: remote.sshUri(),
    }
    const virtvault = (...args: readonly string[]) => runCli(args, env)
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
    t.equal((await virtvault('init', store)).code, 0)
    const pulled = await virtvault('backup', 'pull', 'web01', '--no-quiesce')
    t.equal(pulled.code, 0, pulled.stderr)
    const held = { vda: await web01.referenceImage('vda', 'vda'), vdb: await web01.referenceImage('vdb', 'vdb') }
    await lab.inside(`mkdir ${THERE}`)

    /** Brings a file of the other machine here, holes and all. */
    const fetched = async (path: string) => {
      const here = lab.path(`fetched-${Math.random()}`)
      await lab.inside(`cp --sparse=always ${path} ${here}`)
      return here
    }
    const isSame = async (t: Test, target: 'vda' | 'vdb', path: string, format: string) => {
      const here = await fetched(path)
      t.equal(await imageDifference({ path: here, format }, { path: held[target], format: 'raw' }), undefined)
      if (format === 'qcow2') t.equal(await imageDamage(here), undefined)
    }
    /** But for what is named. */
    const nothingLeft = async (t: Test, ...names: readonly string[]) => {
      const list = lab.path(`list-${Math.random()}`)
      await lab.inside(`
      for i in $(seq 600); do [ -z "$(pgrep qemu-nbd; ls /run/virtvault)" ] && break; sleep 0.1; done
      { ls -A ${THERE}; pgrep -a qemu-nbd; find /run/virtvault -mindepth 1; } >${list}`)
      t.strictSame(readFileSync(list, 'utf8').split('\n').filter(Boolean).sort(), [...names].sort(), 'there')
    }

    await t.test('images are made over there, with holes, and the domain is defined and runs', async t => {
      const args = ['--to', `${THERE}/a`, '--start', '--name', 'copy', '--new-uuid', '--network', 'none', '--json']
      const { code, stdout, stderr } = await virtvault('restore', 'web01@latest', ...args)

      t.equal(code, 0, stderr + stdout)
      t.notOk(existsSync(THERE), 'nothing is written here')
      t.equal((await lab.virsh('domstate', 'copy')).trim(), 'running')
      t.match(await lab.virsh('domblklist', 'copy'), new RegExp(`vda\\s+${THERE}/a/vda.qcow2`))
      await lab.virsh('destroy', 'copy')
      await isSame(t, 'vda', `${THERE}/a/vda.qcow2`, 'qcow2')
      await isSame(t, 'vdb', `${THERE}/a/vdb.qcow2`, 'qcow2')
      await lab.inside(`
      [ "$(stat -c %a:%u:%g ${THERE}/a/vda.qcow2)" = 600:0:0 ] || exit 1
      [ "$(stat -c %a ${THERE}/a)" = 711 ] || exit 2
      [ "$(du -k ${THERE}/a/vda.qcow2 | cut -f1)" -lt ${DATA / KIB + 1024} ] || exit 3
      cmp ${THERE}/a/web01.xml ${THERE}/a/web01.xml || exit 4`)
      await nothingLeft(t, 'a')
    })

    await t.test('what is there is not overwritten without --force, and is with it', async t => {
      await lab.inside(`mkdir ${THERE}/b; echo precious >${THERE}/b/vdb.raw`)
      const args = [
        'restore',
        'web01@latest',
        '--to',
        `${THERE}/b`,
        '--define',
        '--name',
        'b',
        '--format',
        'raw',
        '--mode',
        '0640',
      ]

      const refused = await virtvault(...args)
      t.match(refused, { code: 15, stderr: /vdb\.raw on 10\..* exists.*E_EXISTS/ })
      await lab.inside(`[ "$(cat ${THERE}/b/vdb.raw)" = precious ] && [ "$(ls -A ${THERE}/b)" = vdb.raw ]`)
      t.not((await lab.tryVirsh('domstate', 'b')).code, 0)

      const forced = await virtvault(...args, '--force')
      t.equal(forced.code, 0, forced.stderr)
      await isSame(t, 'vda', `${THERE}/b/vda.raw`, 'raw')
      await isSame(t, 'vdb', `${THERE}/b/vdb.raw`, 'raw')
      await lab.inside(
        `[ "$(stat -c %a ${THERE}/b/vda.raw)" = 640 ] && [ "$(du -k ${THERE}/b/vda.raw | cut -f1)" -lt ${DATA / KIB + 1024} ]`,
      )
      t.equal((await lab.virsh('domstate', 'b')).trim(), 'shut off')
      t.match(await virtvault(...args, '--force'), { code: 15, stderr: /has a domain with the name b already/ })
      await nothingLeft(t, 'a', 'b')
    })

    await t.test(
      'no room over there is said before anything is written; room that runs out leaves nothing',
      async t => {
        for (const [size, when] of [
          [DATA / 2, /no room for the images/],
          [DATA + 256 * KIB, /no room for/],
        ] as const) {
          await lab.inside(`mkdir -p ${THERE}/small; mount -t tmpfs -o size=${size} none ${THERE}/small`)
          const full = await virtvault(
            'restore',
            'web01@latest',
            '--to',
            `${THERE}/small`,
            '--define',
            '--name',
            'small',
          )
          t.match(full, { code: 13, stderr: when })
          t.match(full.stderr, /E_NO_SPACE/)
          await lab.inside(`[ -z "$(ls -A ${THERE}/small)" ] && umount ${THERE}/small && rmdir ${THERE}/small`)
        }
        await nothingLeft(t, 'a', 'b')
      },
    )

    /** Starts a slow restore, and resolves when it writes. */
    const caught = async (name: string) => {
      const args = ['restore', 'web01@latest', '--to', `${THERE}/${name}`, '--define', '--name', name]
      const child = spawn(MAIN, [...args, '--bwlimit', '1MiB', '--progress', 'json', '--json'], {
        env,
        stdio: ['ignore', 'pipe', 'pipe'],
      })
      let said = ''
      const ended = new Promise<{ code: number | string; said: string }>(done =>
        child.once('close', (code, signal) => done({ code: code ?? signal ?? 'nothing', said })),
      )
      await new Promise<void>((done, fail) => {
        void ended.then(end => fail(new Error(`ended too early with ${end.code}:\n${end.said}`)))
        for (const stream of [child.stdout, child.stderr]) {
          stream.on('data', (part: Buffer) => {
            said += part.toString()
            if (/"target": ?"vda"/.test(said)) done()
          })
        }
      })
      return { child, ended }
    }

    await t.test('the ssh connections cut in the middle are a clear error, and nothing is left', async t => {
      const { ended } = await caught('cut')

      await remote.cutSsh()

      const { code, said } = await ended
      t.equal(code, 14, said)
      t.match(said, /E_UNREACHABLE/)
      t.match(said, /the ssh connection was lost/)
      t.match(said, /nothing of this restore is left on/)
      await nothingLeft(t, 'a', 'b')
      t.not((await lab.tryVirsh('domstate', 'cut')).code, 0)
    })

    await t.test('Ctrl-C and kill -9 leave nothing either', async t => {
      const interrupted = await caught('interrupted')
      interrupted.child.kill('SIGINT')
      t.match(await interrupted.ended, { code: 130 })
      await nothingLeft(t, 'a', 'b')
      const killed = await caught('killed')
      killed.child.kill('SIGKILL')
      t.match(await killed.ended, { code: 'SIGKILL' })
      await nothingLeft(t, 'a', 'b', 'killed')
      await lab.inside(`rmdir ${THERE}/killed`)
    })

    await t.test('a pool over there, where sshd forwards no sockets', async t => {
      await lab.inside(`mkdir ${THERE}/pool`)
      await lab.virsh('pool-create-as', 'far', 'dir', '--target', `${THERE}/pool`)
      await remote.restartSshd(['AllowStreamLocalForwarding no'])

      const { code, stderr } = await virtvault(
        'restore',
        'web01@latest',
        '--to-pool',
        'far',
        '--define',
        '--name',
        'pooled',
      )

      await remote.restartSshd(['AllowStreamLocalForwarding yes'])
      t.equal(code, 0, stderr)
      await isSame(t, 'vda', `${THERE}/pool/web01-vda.qcow2`, 'qcow2')
      await nothingLeft(t, 'a', 'b', 'pool')
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
      t.equal((await virtvault('backup', 'pull', 'uefi01', '--no-quiesce')).code, 0)

      const to = ['--to', `${THERE}/uefi`, '--define', '--name', 'uefi02']
      const { code, stderr } = await virtvault('restore', 'uefi01@latest', ...to)

      t.equal(code, 0, stderr)
      const placed = '/var/lib/libvirt/qemu/nvram/uefi02_VARS.fd'
      t.match(await lab.virsh('dumpxml', 'uefi02'), new RegExp(placed))
      await lab.inside(`cmp ${vars} ${placed} && [ "$(stat -c %a ${placed})" = 600 ]`)
      await lab.virsh('destroy', 'uefi01')
    })

    await t.test('without ssh, or with what cannot be made there, it is refused before anything is begun', async t => {
      const tcp = await virtvault('restore', 'web01@latest', '--to', THERE, '--define', '-c', remote.tcpUri())
      t.match(tcp, { code: 15, stderr: /libvirt alone gives no way[^]*qemu\+ssh/ })
      const small = await virtvault(
        'restore',
        'web01@latest',
        '--to',
        THERE,
        '--define',
        '--name',
        'z',
        '--compression',
        'zstd',
      )
      t.match(small, { code: 1, stderr: /a compressed image cannot be restored to another machine/ })
      const relative = await virtvault('restore', 'web01@latest', '--to', 'images', '--define', '--name', 'z')
      t.match(relative, { code: 2, stderr: /images is relative/ })
      await nothingLeft(t, 'a', 'b', 'pool', 'uefi')
    })
  },
)
