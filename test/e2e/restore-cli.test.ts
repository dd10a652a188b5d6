import { spawn } from 'node:child_process'
import { existsSync, readdirSync, statSync } from 'node:fs'
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import t from 'tap'

import { cliEnvironment } from '../demo/virtvault-cli.js'
import { requires } from '../harness/requires.js'
import { MIB } from '../lab/fill.js'
import { imageDifference, imageInfo } from '../lab/images.js'
import { Lab } from '../lab/lab.js'
import { run } from '../lab/run-program.js'

const MAIN = fileURLToPath(new URL('../../src/cli/main.cjs', import.meta.url))

interface Ended {
  readonly code: number | null
  readonly stdout: string
  readonly stderr: string
}

// Real domains, on a machine that others use as well.
t.setTimeout(600_000)

t.test('restore as users run it', { ...requires('lab'), timeout: 600_000 }, async t => {
  const lab = await Lab.start()
  t.teardown(() => lab[Symbol.asyncDispose]())
  const store = lab.path('store')
  const env: NodeJS.ProcessEnv = {
    ...process.env,
    ...cliEnvironment(lab),
    VIRTVAULT_TARGET: store,
    VIRTVAULT_CONNECT: lab.uri,
    VIRTVAULT_NVRAM_DIR: join(lab.folder, 'lib', 'qemu', 'nvram'),
    VIRTVAULT_SWTPM_DIR: join(lab.folder, 'lib', 'swtpm'),
  }
  const virtvault = (...args: string[]) =>
    new Promise<Ended>((done, fail) => {
      const child = spawn(MAIN, args, { env, stdio: ['ignore', 'pipe', 'pipe'] })
      let stdout = ''
      let stderr = ''
      child.stdout.on('data', (part: Buffer) => (stdout += part.toString('latin1')))
      child.stderr.on('data', (part: Buffer) => (stderr += part.toString()))
      child.once('error', fail)
      child.once('close', code => done({ code, stdout, stderr }))
    })

  const content = [{ kind: 'write', offset: 0, length: 4 * MIB, fill: { seed: 1 } }] as const
  const web = await lab.domain({
    name: 'web01',
    disks: [
      { target: 'vda', size: 32 * MIB, content },
      { target: 'vdb', size: 8 * MIB, content: [{ kind: 'write', offset: MIB, length: MIB, fill: 7 }] },
    ],
  })
  const db = await lab.domain({ name: 'db01', disks: [{ target: 'vda', size: 16 * MIB, content }] })
  await web.start()
  await db.start()
  t.equal((await virtvault('init', store)).code, 0)
  t.equal((await virtvault('backup', 'pull', '--all')).code, 0)
  const vda = { path: await web.referenceImage('vda', 'first'), format: 'raw' }
  const vdb = { path: await web.referenceImage('vdb', 'first'), format: 'raw' }

  await t.test('flags that do not go together are errors of usage', async t => {
    for (const words of [
      ['web01@latest'],
      ['--to', 'x'],
      ['--all', 'web01@latest', '--to', 'x'],
      ['web01@latest', '--to', 'x', '--stdout'],
      ['web01@latest', '--to', 'x', '--name', 'y'],
      ['web01@latest', '--to', 'x', '--format', 'raw', '--cluster-size', '64k'],
      ['web01@latest', '--stdout'],
      ['--all', '--stdout'],
      ['web01@latest', '--to-device', '/dev/x'],
      ['web01@latest', '--to', 'x', '--sparse', '--preallocate', 'full'],
    ]) {
      t.match(await virtvault('restore', ...words), { code: 2, stderr: /E_USAGE/ }, words.join(' '))
    }
    t.notOk(existsSync('x'))
  })

  await t.test('images get the shape, owner and mode that were asked for', async t => {
    const to = lab.path('shaped')
    const shape = [
      '--cluster-size',
      '128KiB',
      '--lazy-refcounts',
      '--preallocate',
      'metadata',
      '--owner',
      '12:34',
      '--mode',
      '0640',
    ]
    t.equal((await virtvault('restore', 'web01@latest', '--to', to, ...shape)).code, 0)

    t.match(await imageInfo(join(to, 'vda.qcow2')), { format: 'qcow2', clusterSize: 128 * 1024 })
    t.match(statSync(join(to, 'vda.qcow2')), { uid: 12, gid: 34 })
    t.equal(statSync(join(to, 'vda.qcow2')).mode & 0o777, 0o640)
    t.equal(await imageDifference({ path: join(to, 'vda.qcow2'), format: 'qcow2' }, vda), undefined)
    t.match(await virtvault('restore', 'web01@latest', '--to', to), { code: 15, stderr: /E_EXISTS/ })
    t.equal((await virtvault('restore', 'web01@latest', '--to', to, '--force', '--format', 'qcow2')).code, 0)
    t.match(await virtvault('restore', 'web01@latest', '--to', to, '--owner', 'no-such-user'), { code: 4 })
  })

  await t.test('one disk goes to the standard output, byte for byte', async t => {
    const { code, stdout } = await virtvault('restore', 'web01@latest:vdb', '--stdout')

    t.equal(code, 0)
    t.equal(stdout.length, 8 * MIB)
    t.ok(Buffer.from(stdout.slice(MIB, 2 * MIB), 'latin1').equals(Buffer.alloc(MIB, 7)))
    t.ok(Buffer.from(stdout.slice(2 * MIB), 'latin1').equals(Buffer.alloc(6 * MIB)))
  })

  await t.test('a disk goes into an NBD export, old bytes and all', requires('qemu-nbd', 'qemu-io'), async t => {
    const image = lab.path('export.raw')
    const socket = lab.path('export.sock')
    await run('qemu-img', ['create', '-q', '-f', 'raw', image, '8M'])
    await run('qemu-io', ['-f', 'raw', '-c', 'write -P 9 0 8M', image])
    await run('qemu-nbd', ['--fork', '-f', 'raw', '-e', '8', `--socket=${socket}`, image])

    t.match(await virtvault('restore', 'web01@latest', '--disk', 'vdb', '--to-nbd', `nbd+unix:///?socket=${socket}`), {
      code: 0,
    })
    t.equal(await imageDifference({ path: image, format: 'raw' }, vdb), undefined)
  })

  await t.test('a clash with the living original is refused with the way out, before anything is written', async t => {
    const ended = await virtvault('restore', 'web01@latest', '--to', lab.path('clash'), '--define', '--json')

    t.equal(ended.code, 15)
    t.match(JSON.parse(ended.stdout), { error: { code: 'E_EXISTS', hints: [/--new-uuid/, /--in-place/, /undefine/] } })
    t.notOk(existsSync(lab.path('clash')))
    t.match(await virtvault('restore', 'web01@latest', '--to', lab.path('clash'), '--define', '-n'), { code: 15 })
  })

  await t.test('libvirt on another machine is refused', async t => {
    const elsewhere = ['-c', 'qemu+unix://other/system?socket=' + join(lab.folder, 'run', 'libvirt-sock')]
    t.match(await virtvault('restore', 'web01@latest', '--to', lab.path('far'), '--define', ...elsewhere), {
      code: 15,
      stderr: /another machine/,
    })
  })

  await t.test('a copy runs beside the original, from a pool', async t => {
    const pool = lab.path('pool')
    await mkdir(pool)
    await lab.virsh('pool-create-as', 'fast', 'dir', '--target', pool)
    const ended = await virtvault('restore', 'web01@latest', '--to-pool', 'fast', '--start', '--name', 'copy', '--json')

    t.equal(ended.code, 0, ended.stdout)
    t.match(JSON.parse(ended.stdout), { exit: 0, defined: { name: 'copy', state: 'started' } })
    t.equal(await lab.virsh('domstate', 'copy'), 'running')
    t.not(await lab.virsh('domuuid', 'copy'), web.uuid)
    t.strictSame(readdirSync(pool).sort(), ['web01-vda.qcow2', 'web01-vdb.qcow2'], 'nothing else lies in the pool')
    await lab.virsh('destroy', 'copy')
    await lab.virsh('undefine', 'copy')
    t.equal(await imageDifference({ path: join(pool, 'web01-vda.qcow2'), format: 'qcow2' }, vda), undefined)
  })

  await t.test('UEFI variables come back with their domain, those of a copy in a file of its own', async t => {
    const variables = Buffer.alloc(540_672, 'efi')
    const original = lab.path('efi01_VARS.fd')
    await writeFile(original, variables)
    await lab.domain({ name: 'efi01', disks: [{ target: 'vda', size: MIB }] })
    const loader = "<loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>"
    const xml = (await lab.virsh('dumpxml', 'efi01')).replace('</type>', `</type>${loader}<nvram>${original}</nvram>`)
    await writeFile(lab.path('efi01.new.xml'), xml)
    await lab.virsh('define', lab.path('efi01.new.xml'))
    t.match(await virtvault('backup', 'pull', 'efi01'), { code: /0|3/ })

    const copied = await virtvault('restore', 'efi01@latest', '--to', lab.path('efi'), '--define', '--name', 'efi02')
    t.equal(copied.code, 0, copied.stderr)
    const copy = /<nvram[^>]*>([^<]+)</.exec(await lab.virsh('dumpxml', 'efi02'))?.[1] ?? ''
    t.equal(copy, join(lab.folder, 'lib', 'qemu', 'nvram', 'efi02_VARS.fd'))
    t.ok((await readFile(copy)).equals(variables))

    await lab.virsh('undefine', '--keep-nvram', 'efi01')
    const force = ['--force', '--define', '--json']
    const back = await virtvault('restore', 'efi01@latest', '--to', lab.path('efi'), ...force)
    t.match(JSON.parse(back.stdout), { exit: 0, defined: { name: 'efi01', state: 'defined' } })
    t.ok((await readFile(join(lab.folder, 'lib', 'qemu', 'nvram', 'efi01_VARS.fd'))).equals(variables))
    for (const name of ['efi01', 'efi02']) await lab.virsh('undefine', '--nvram', name)
    t.equal((await virtvault('forget', 'efi01@latest', '--yes')).code, 0)
  })

  await t.test('on a bare host all domains come back from the store alone', async t => {
    await using bare = await Lab.start()
    const to = bare.path('images')
    const ended = await virtvault('restore', '--all', '--to', to, '--start', '--json', '-c', bare.uri)

    t.equal(ended.code, 0, ended.stdout)
    t.match(JSON.parse(ended.stdout), {
      schema: 'virtvault/restore_all/1',
      results: [
        { domain: 'db01', defined: { state: 'started' } },
        { domain: 'web01', defined: { uuid: web.uuid, state: 'started' } },
      ],
    })
    t.equal(await bare.virsh('domstate', 'web01'), 'running')
    t.equal(await bare.virsh('domuuid', 'db01'), db.uuid)
    t.equal(await imageDifference({ path: join(to, 'web01', 'vda.qcow2'), format: 'qcow2' }, vda), undefined)
    const again = await virtvault('restore', '--all', '--to', to, '--define', '--json', '-c', bare.uri)
    t.equal(again.code, 15, 'both are there')
    await bare.virsh('destroy', 'db01')
    await bare.virsh('undefine', 'db01')
    const half = await virtvault('restore', '--all', '--to', to, '--define', '--force', '--json', '-c', bare.uri)
    t.match(JSON.parse(half.stdout), {
      exit: 3,
      results: [
        { domain: 'db01', status: 'success' },
        { domain: 'web01', status: 'failed', error: { code: 'E_EXISTS' } },
      ],
    })
  })
})
