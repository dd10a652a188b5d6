import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { setTimeout as delay } from 'node:timers/promises'

import t from 'tap'

import { cliEnvironment } from '../demo/virtvault-cli.js'
import { codes, Matrix } from '../harness/matrix.js'
import { requires } from '../harness/requires.js'
import { runCli } from '../harness/run-cli.js'
import { MIB } from '../lab/fill.js'
import { Lab } from '../lab/lab.js'
import { run } from '../lab/run-program.js'

t.setTimeout(300_000)
const SIZE = 8 * MIB

const networkDisk = (target: string, source: string, format = 'raw') =>
  `<disk type='network' device='disk'><driver name='qemu' type='${format}'/>` +
  `<source ${source}</source><target dev='${target}' bus='virtio'/></disk>`

/** Disks of a domain that is off which only QEMU itself could read, and what is said of each. */
const UNREADABLE: readonly (readonly [string, string, RegExp, string?])[] = [
  ['vdb', `protocol='rbd' name='pool/image'><host name='mon' port='6789'/>`, /\(rbd\).*only while its domain runs/],
  ['vdc', `protocol='gluster' name='vol/image'><host name='g' port='24007'/>`, /\(gluster\)/],
  ['vdd', `protocol='https' name='image.raw'><host name='web' port='443'/>`, /\(https\)/],
  ['vde', `protocol='nbd' name='it'><host name='h' port='10809'/>`, /not raw/, 'qcow2'],
  [
    'vdf',
    `protocol='iscsi' name='iqn.2026-11.example:s/1'><host name='h' port='3260'/>` +
      `<auth username='u'><secret type='iscsi' usage='chap'/></auth>`,
    /with a password/,
  ],
]

t.test('network disks that only QEMU can read are skipped while their domain is off', requires('lab'), async t => {
  await using matrix = await Matrix.start()
  const domain = await matrix.lab.domain({
    name: 'remote',
    disks: [{ target: 'vda', size: SIZE, content: [{ kind: 'write', offset: 0, length: MIB, fill: { seed: 1 } }] }],
    devices: UNREADABLE.map(([target, source, , format]) => networkDisk(target, source, format)).join(''),
  })

  const pulled = await matrix.pull(domain)

  t.equal(pulled.difference, undefined, 'what can be read is stored')
  t.strictSame(
    pulled.point.disks.map(({ target }) => target),
    ['vda'],
  )
  t.match(
    pulled.point.skipped,
    UNREADABLE.map(([target, , reason]) => ({ target, reason })),
  )
  t.strictSame(
    codes(pulled),
    UNREADABLE.map(() => 'W_DISK_SKIPPED'),
  )
})

t.test('a qcow2 image on a server is pulled incrementally while its domain runs', requires('lab'), async t => {
  await using matrix = await Matrix.start()
  const { lab } = matrix
  const [image, socket] = [lab.path('image.qcow2'), lab.path('server.sock')]
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', image, String(SIZE)])
  await run('truncate', ['--size', String(2 * SIZE), image])
  const server = spawn('qemu-nbd', ['-f', 'raw', '--persistent', '--shared=9', `--socket=${socket}`, image])
  try {
    while (!existsSync(socket)) await delay(10)
    const source = `protocol='nbd'><host transport='unix' socket='${socket}'/>`
    const domain = await lab.domain({ name: 'served', disks: [], devices: networkDisk('vda', source, 'qcow2') })
    await domain.start()
    const device = '/machine/peripheral/virtio-disk0/virtio-backend'
    const modes: string[] = []
    const held = Buffer.alloc(SIZE)
    for (const n of [1, 2]) {
      const command = `qemu-io -d ${device} "write -P ${n} ${n}M 64k"`
      t.equal(await lab.virsh('qemu-monitor-command', 'served', '--hmp', command), '')
      held.fill(n, n * MIB, n * MIB + 65_536)
      const { point } = await matrix.puller.pull(domain)
      const written = await readFile(await matrix.writeOut(point, 'vda'))
      t.ok(written.equals(held), `pull ${n}`)
      modes.push(point.disks[0]!.mode)
    }
    t.strictSame(modes, ['full', 'incremental'])
    await domain.destroy()
  } finally {
    server.kill()
    await once(server, 'exit')
  }
})

t.test('other drivers are refused with a reason before anything is connected', requires('lab'), async t => {
  await using lab = await Lab.start()
  const env = { ...process.env, ...cliEnvironment(lab), VIRTVAULT_TARGET: lab.path('store') }
  t.equal((await runCli(['init'], env)).code, 0)
  // libvirt has this one built in: it would answer, with domains that have no disks to read.
  for (const uri of [
    'test:///default',
    'xen:///system',
    'lxc:///system',
    'esx://root@vc/',
    'qemu+ext:///system?command=x',
  ]) {
    const { code, stdout } = await runCli(['backup', 'pull', 'test', '-c', uri, '--json'], env)
    t.equal(code, 1, stdout)
    t.match(JSON.parse(stdout), { error: { code: 'E_UNSUPPORTED', why: String, hints: { 0: String } } }, uri)
  }
})
