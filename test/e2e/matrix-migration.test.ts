import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'

import t from 'tap'

import { Matrix, readings } from '../harness/matrix.js'
import { LabPuller } from '../harness/pull.js'
import { requires } from '../harness/requires.js'
import { KIB, MIB } from '../lab/fill.js'
import { Lab } from '../lab/lab.js'

t.setTimeout(300_000)
const CLUSTER = 64 * KIB

t.test(
  'a domain that is being migrated is busy; at its new host the next pull is incremental, and right',
  requires('lab'),
  async t => {
    await using matrix = await Matrix.start()
    await using there = await Lab.start()
    await using puller = await LabPuller.open(there, matrix.store)
    const { lab } = matrix
    const domain = await lab.domain({ name: 'moving', disks: [{ target: 'vda', size: 16 * MIB }], memory: 64 * MIB })
    await domain.start()
    await domain.write('vda', 0, MIB, { seed: 1 })
    await matrix.pull(domain)
    await domain.write('vda', 4 * MIB, CLUSTER, { seed: 2 })
    const held = await domain.referenceImage('vda', 'held')

    const way = ['--p2p', '--live', '--unsafe', '--persistent', '--undefinesource']
    const line = ['--migrateuri', `unix://${join(there.scratchFolder, 'm.sock')}`]
    const migration = spawn('virsh', ['-q', '-c', lab.uri, 'migrate', domain.uuid, there.uri, ...way, ...line], {
      stdio: ['ignore', 'ignore', 'pipe'],
    })
    let said = ''
    migration.stderr.on('data', (part: Buffer) => (said += part.toString()))
    const ended = once(migration, 'exit')
    // The QEMU that is to take it over hangs: the migration lasts until it goes on.
    const pidFile = join(there.folder, 'run', 'qemu', 'moving.pid')
    while (!existsSync(pidFile) || readFileSync(pidFile, 'utf8') === '') {
      if (migration.exitCode !== null) throw new Error(`the migration ended: ${said}`)
      await delay(5)
    }
    const pid = Number(readFileSync(pidFile, 'utf8'))
    await there.signal(pid, 'SIGSTOP')

    await t.rejects(matrix.puller.pull(domain), { code: 'E_DOMAIN_BUSY' })
    t.equal(migration.exitCode, null, 'it goes on')

    await there.signal(pid, 'SIGCONT')
    t.strictSame(await ended, [0, null], said)
    const { point, warnings } = await puller.pull(domain)
    t.strictSame([readings(point), warnings], [[`vda incremental ${CLUSTER}`], []])
    t.equal(await matrix.difference(point, 'vda', held), undefined)
    await t.rejects(matrix.puller.pull(domain), { code: 'E_NOT_FOUND' })
  },
)
