import { spawn } from 'node:child_process'
import { existsSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'

import t from 'tap'

import { requires } from '../harness/requires.js'
import { FakeAgent } from '../lab/fake-agent.js'
import { GIB, KIB, MIB } from '../lab/fill.js'
import { imageDamage, imageDifference } from '../lab/images.js'
import { Lab } from '../lab/lab.js'
import type { Change } from '../lab/lab-disk.js'
import type { LabDomain } from '../lab/lab-domain.js'
import { run } from '../lab/run-program.js'

const CHANGES: readonly Change[] = [
  { kind: 'write', offset: 3 * MIB + 512, length: 300 * KIB, fill: { seed: 2 } },
  { kind: 'write', offset: 40 * MIB, length: 2 * MIB, fill: 0x33 },
  { kind: 'discard', offset: 1 * MIB, length: 1 * MIB },
  { kind: 'zero', offset: 5 * MIB - 512, length: 8 * KIB },
]

/** Begins a pull backup with a new checkpoint, by virsh. */
async function beginBackup(lab: Lab, domain: LabDomain, checkpoint: string): Promise<void> {
  const scratch = join(lab.scratchFolder, `${domain.name}-${checkpoint}`)
  const backup = lab.path('backup.xml')
  writeFileSync(
    backup,
    `<domainbackup mode='pull'><server transport='unix' socket='${scratch}.sock'/><disks>
       <disk name='vda' type='file'><scratch file='${scratch}.qcow2'/></disk></disks></domainbackup>`,
  )
  const point = lab.path('checkpoint.xml')
  writeFileSync(
    point,
    `<domaincheckpoint><name>${checkpoint}</name><disks><disk name='vda' checkpoint='bitmap'/></disks></domaincheckpoint>`,
  )
  await lab.virsh('backup-begin', domain.name, backup, point)
}

async function until(claim: () => boolean | Promise<boolean>): Promise<boolean> {
  const deadline = performance.now() + 20_000
  while (!(await claim())) {
    if (performance.now() > deadline) return false
    await delay(20)
  }
  return true
}

t.test('a disk holds what the lab wrote to it, in every state of its domain', requires('lab'), async t => {
  await using lab = await Lab.start()
  const content: Change[] = [{ kind: 'write', offset: 0, length: 6 * MIB, fill: { seed: 1 } }]
  const domain = await lab.domain({
    name: 'web 01',
    disks: [
      { target: 'vda', size: 8 * GIB, content },
      { target: 'vdb', size: 64 * MIB, format: 'raw', content },
      { target: 'vdc', size: 64 * MIB, imageOptions: 'cluster_size=2M', content },
    ],
  })

  const states: [string, () => Promise<void>][] = [
    ['off', async () => undefined],
    ['running', () => domain.start()],
    ['paused', () => domain.suspend()],
    ['destroyed', () => domain.destroy()],
  ]
  const before = new Map<string, string>()
  for (const { target } of domain.disks) before.set(target, await domain.referenceImage(target, 'before'))
  for (const [index, [state, enter]] of states.entries()) {
    await enter()
    for (const { target } of domain.disks) {
      const changes = CHANGES.filter(({ kind }) => kind !== 'discard' || target !== 'vdc')
      await domain.change(target, [
        ...changes,
        { kind: 'write', offset: 20 * MIB, length: 64 * KIB, fill: { seed: index } },
      ])

      const after = await domain.referenceImage(target, state)
      const [old, now] = [before.get(target)!, after].map(path => ({ path, format: 'raw' }))
      t.type(await imageDifference(old!, now!), 'string', `${target} of the ${state} domain changed`)
      before.set(target, after)
    }
  }
  for (const { target, path, format } of domain.disks) {
    if (format === 'qcow2') t.equal(await imageDamage(path), undefined, `${target} is sound`)
  }
})

t.test('a reference image refuses a disk that holds something else', requires('lab'), async t => {
  await using lab = await Lab.start()
  const domain = await lab.domain({ name: 'web01', disks: [{ target: 'vda', size: 64 * MIB }] })
  await domain.start()

  await domain.qemuIo('vda', 'write -P 1 1M 64k')

  await t.rejects(domain.referenceImage('vda', 'a'), /is not what was written/)
})

t.test('a thousand scattered writes take one virsh or two', requires('lab'), async t => {
  await using lab = await Lab.start()
  const domain = await lab.domain({ name: 'web01', disks: [{ target: 'vda', size: 8 * GIB }] })
  await domain.start()

  const writes = Array.from({ length: 1000 }, (_, index) => ({
    kind: 'write' as const,
    offset: index * 7 * MIB,
    length: 4 * KIB,
    fill: (index % 255) + 1,
  }))
  await domain.change('vda', writes)

  await t.resolves(domain.referenceImage('vda', 'a'))
})

t.test('two labs at once know nothing of one another', requires('lab'), async t => {
  await using one = await Lab.start()
  await using two = await Lab.start()
  const disks = [{ target: 'vda', size: 16 * MIB }]
  const uuid = 'a51c8d2e-54a5-4d4e-9a3b-0d0f3c6d2f01'

  const first = await one.domain({ name: 'web01', uuid, disks })
  const second = await two.domain({ name: 'web01', uuid, disks })
  await first.start()

  t.equal(await first.state(), 'running')
  t.equal(await second.state(), 'shut off')
  await two[Symbol.asyncDispose]()
  t.equal(await first.state(), 'running', 'also after the other has ended')
  t.notOk(existsSync(two.folder))
})

t.test('a domain outlives its daemon', requires('lab'), async t => {
  await using lab = await Lab.start()
  const domain = await lab.domain({ name: 'web01', disks: [{ target: 'vda', size: 16 * MIB }] })
  await domain.start()

  for (const signal of ['SIGKILL', 'SIGTERM'] as const) {
    await lab.restartDaemon({ signal })

    t.equal(await domain.state(), 'running', signal)
    await domain.write('vda', 0, 64 * KIB, { seed: 1 })
    await t.resolves(domain.referenceImage('vda', signal))
  }
})

t.test('a daemon can hang for a while', requires('lab'), async t => {
  await using lab = await Lab.start()

  await lab.signalDaemon('SIGSTOP')
  let hasAnswered = false
  const answer = lab.virsh('version').then(() => (hasAnswered = true))
  // Takes as long as an answer would.
  await run('virsh', ['-c', 'test:///default', 'list'])

  t.equal(hasAnswered, false)
  await lab.signalDaemon('SIGCONT')
  await answer
  t.equal(hasAnswered, true)
})

t.test('leftovers are seen, and seen to be gone', requires('lab'), async t => {
  await using lab = await Lab.start()
  const domain = await lab.domain({ name: 'web01', disks: [{ target: 'vda', size: 16 * MIB }] })
  await domain.start()

  await beginBackup(lab, domain, 'cp1')

  const during = await domain.leftovers()
  t.ok(during.jobs.length > 0, 'the job')
  t.strictSame(during.checkpoints, ['cp1'])
  t.strictSame(during.bitmaps, ['vda:cp1'])
  t.equal(during.exports.length, 1)
  t.strictSame([...during.files].sort(), ['web01-cp1.qcow2', 'web01-cp1.sock'])

  await lab.virsh('domjobabort', domain.name)
  t.ok(await until(async () => (await domain.leftovers()).jobs.length === 0))
  await lab.virsh('checkpoint-delete', domain.name, 'cp1')
  const nothing = { jobs: [], checkpoints: [], bitmaps: [], exports: [], files: [] }
  t.strictSame(await domain.leftovers(), nothing)
  await domain.destroy()
  t.strictSame(await domain.leftovers(), nothing)
})

t.test('kill -9 of QEMU keeps what was written and breaks the bitmaps', requires('lab'), async t => {
  await using lab = await Lab.start()
  const domain = await lab.domain({ name: 'web01', disks: [{ target: 'vda', size: 16 * MIB }] })
  await domain.start()
  await beginBackup(lab, domain, 'cp1')
  await lab.virsh('domjobabort', domain.name)
  await domain.write('vda', 0, MIB, { seed: 1 })

  await domain.kill9()

  await t.resolves(domain.referenceImage('vda', 'a'))
  await domain.start()
  t.strictSame(await domain.checkpoints(), ['cp1'], 'libvirt still lists it')
  t.strictSame((await domain.leftovers()).bitmaps, [], 'QEMU has no bitmap for it')
})

t.test('a fake agent freezes, thaws and misbehaves as told', requires('lab'), async t => {
  await using lab = await Lab.start()
  const domain = await lab.domain({ name: 'web01', agent: 'fake', disks: [{ target: 'vda', size: 16 * MIB }] })
  await using agent = await FakeAgent.listen(domain.agentSocket)
  await domain.start()

  await lab.virsh('domfsfreeze', domain.name)
  t.equal(agent.isFrozen, true)
  await lab.virsh('domfsthaw', domain.name)
  t.equal(agent.isFrozen, false)
  t.strictSame(agent.commands, ['guest-fsfreeze-freeze', 'guest-fsfreeze-thaw'])

  agent.moods.set('guest-fsfreeze-freeze', 'fail')
  t.match((await lab.tryVirsh('domfsfreeze', domain.name)).stderr, /as the test wants it/)

  agent.moods.set('guest-fsfreeze-freeze', 'hang')
  await lab.virsh('guest-agent-timeout', domain.name, '--timeout', '1')
  t.match((await lab.tryVirsh('domfsfreeze', domain.name)).stderr, /not available|timed out/)
  await t.resolves(lab.virsh('domfsthaw', domain.name), 'a late thaw is harmless')

  agent.moods.set('guest-fsfreeze-freeze', 'die')
  t.match((await lab.tryVirsh('domfsfreeze', domain.name)).stderr, /End of file|disappeared/)
  t.match((await lab.tryVirsh('domfsfreeze', domain.name)).stderr, /not connected/)
})

t.test('nothing of a lab outlives kill -9 of its process', requires('lab'), async t => {
  const script = `
    import { Lab } from ${JSON.stringify(new URL('../lab/lab.js', import.meta.url).href)}
    const lab = await Lab.start()
    const domain = await lab.domain({ name: 'web01', disks: [{ target: 'vda', size: 16777216 }] })
    await domain.start()
    console.log(lab.folder)`
  const child = spawn(process.execPath, ['--input-type=module', '-e', script], { stdio: ['ignore', 'pipe', 'inherit'] })
  const folder = await new Promise<string>(done =>
    child.stdout.once('data', (line: Buffer) => done(line.toString().trim())),
  )
  t.ok(existsSync(join(folder, 'run', 'qemu', 'web01.pid')), 'the domain runs')

  child.kill('SIGKILL')

  t.ok(await until(() => !existsSync(folder)), 'the folder is gone, so its supervisor saw the end of all processes')
})

t.test('a Linux guest has a shell, mounted file systems and a real freeze', requires('lab'), async t => {
  await using lab = await Lab.start()
  const guest = await lab.linuxGuest({
    name: 'web01',
    disks: [
      { target: 'vda', size: 32 * MIB },
      { target: 'vdb', size: 64 * MIB, fileSystem: 'ext4' },
    ],
  })
  await guest.start()

  const sum = await guest.exec(
    'dd if=/dev/urandom of=/mnt/vdb/file bs=64k count=32 2>/dev/null && sync && md5sum </mnt/vdb/file',
  )
  t.match(sum, /^[0-9a-f]{32}/)
  t.equal((await guest.tryExec('exit 3')).code, 3)

  await lab.virsh('domfsfreeze', 'web01')
  const frozen = await lab.virsh('qemu-agent-command', 'web01', '{"execute":"guest-fsfreeze-status"}')
  t.match(frozen, /frozen/)
  const reference = await guest.domain.referenceImage('vdb', 'frozen')
  await lab.virsh('domfsthaw', 'web01')

  t.equal(await guest.domain.state(), 'running')
  await guest.exec('rm /mnt/vdb/file && sync')
  const after = await guest.domain.referenceImage('vdb', 'after')
  const [old, now] = [reference, after].map(path => ({ path, format: 'raw' }))
  t.type(await imageDifference(old!, now!), 'string', 'the guest wrote to its disk')
  await guest.domain.shutdown()
  t.equal(await guest.domain.state(), 'shut off')
})
