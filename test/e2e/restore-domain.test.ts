import { randomUUID } from 'node:crypto'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { mkdir, readFile, unlink } from 'node:fs/promises'
import { join } from 'node:path'

import t from 'tap'

import { systemClock } from '../../src/base/clock.js'
import { LocalImages } from '../../src/image/local-images.js'
import { SILENT_PROGRESS } from '../../src/jobs/progress.js'
import { DomainRestore, type DomainRestoreRequest } from '../../src/jobs/restore-domain.js'
import { RestoreJob } from '../../src/jobs/restore-job.js'
import { planRestore } from '../../src/jobs/restore-plan.js'
import { rewriteDomainXml } from '../../src/libvirt/restore-xml.js'
import type { RecoveryPoint } from '../../src/model/recovery-point.js'
import { native } from '../../src/native/binding.js'
import type { NativeVirtConnection } from '../../src/native/virt.js'
import { ChunkShelf } from '../fakes/chunk-shelf.js'
import { MIB } from '../lab/fill.js'
import { Lab } from '../lab/lab.js'
import { requires } from '../harness/requires.js'

const never = new AbortController().signal
const TPM_STATE = Buffer.from('sealed keys')

t.test('a domain comes back as a copy beside itself, then as itself', requires('lab'), async t => {
  await using lab = await Lab.start()
  const content = [{ kind: 'write' as const, offset: 0, length: 6 * MIB, fill: { seed: 1 } }]
  const domain = await lab.domain({ name: 'web 01', disks: [{ target: 'vda', size: 16 * MIB, content }] })
  const connection = await native().virtConnect({ uri: lab.uri })
  t.teardown(() => connection.close())
  const shelf = new ChunkShelf(64 * 1024)
  const point = await backUp(lab, shelf, 'web 01', await readFile(await domain.referenceImage('vda', 'before')))

  await t.rejects(bringBack(lab, connection, { shelf, point, folder: 'same' }, { uuid: 'keep' }), { code: 'E_EXISTS' })
  await t.rejects(bringBack(lab, connection, { shelf, point, folder: 'same' }, { uuid: 'new' }), { code: 'E_EXISTS' })
  t.notOk(
    existsSync(join(lab.folder, 'same')) && readdirSync(join(lab.folder, 'same')).length > 0,
    'nothing was restored',
  )

  const copied = { uuid: 'new', name: 'copy', network: { kind: 'none' }, macs: 'new' } as const
  const copy = await bringBack(lab, connection, { shelf, point, folder: 'copy' }, copied)
  await domain.start()
  t.equal((await lab.virsh('domstate', 'copy')).trim(), 'running')
  t.equal((await lab.virsh('domstate', 'web 01')).trim(), 'running', 'both run at once')
  t.match(await lab.virsh('dumpxml', 'copy'), new RegExp(join(lab.folder, 'copy', 'vda.qcow2')))
  t.same(readFileSync(join(lab.folder, 'swtpm', copy.uuid, 'tpm2', 'tpm2-00.permall')), TPM_STATE)

  await domain.destroy()
  await lab.virsh('undefine', 'web 01')
  await bringBack(lab, connection, { shelf, point, folder: 'again' }, { uuid: 'keep' })
  t.equal((await lab.virsh('domuuid', 'web 01')).trim(), point.domain.uuid)
  t.equal((await lab.virsh('domstate', 'web 01')).trim(), 'running')
  await lab.virsh('destroy', 'web 01')
  await lab.virsh('destroy', 'copy')
})

t.test('where libvirt refuses the domain, no state is left in its places', requires('lab'), async t => {
  await using lab = await Lab.start()
  await lab.domain({ name: 'web01', disks: [{ target: 'vda', size: MIB }] })
  const connection = await native().virtConnect({ uri: lab.uri })
  t.teardown(() => connection.close())
  const shelf = new ChunkShelf(64 * 1024)
  const point = await backUp(lab, shelf, 'web01', Buffer.alloc(MIB), xml =>
    xml.replace("<type arch='", "<type arch='no"),
  )

  await t.rejects(bringBack(lab, connection, { shelf, point, folder: 'copy' }, { uuid: 'new', name: 'copy' }), {
    code: /^E_/,
  })

  const left = readdirSync(join(lab.folder, 'swtpm'), { recursive: true, encoding: 'utf8' })
  t.same(
    left.filter(name => name.endsWith('permall')),
    [],
  )
})

async function backUp(
  lab: Lab,
  shelf: ChunkShelf,
  name: string,
  disk: Buffer,
  change: (xml: string) => string = xml => xml,
): Promise<RecoveryPoint> {
  const xml = change(await lab.virsh('dumpxml', '--inactive', '--security-info', name))
  return {
    id: '0123456789abcdef0123456789abcdef',
    storeId: '0'.repeat(32),
    sequence: 1,
    runId: 'run',
    domain: { uuid: (await lab.virsh('domuuid', name)).trim(), name },
    time: 0,
    mode: 'full',
    consistency: { kind: 'offline' },
    disks: [
      {
        target: 'vda',
        size: disk.length,
        root: shelf.addDisk(disk),
        mode: 'full',
        source: { path: '/x', sourceType: 'file', format: 'qcow2' },
        statistics: { dirtyBytes: 0, readBytes: 0, newBytes: 0, storedBytes: 0, newChunks: 0, newNodes: 0 },
      },
    ],
    skipped: [],
    blobs: [
      shelf.addBlob('domain-inactive.xml', Buffer.from(xml)),
      shelf.addBlob('tpm/tpm2/tpm2-00.permall', TPM_STATE),
      shelf.addBlob('tpm/../../evil', Buffer.from('x')),
    ],
    warnings: [],
    durationMs: 0,
    tags: [],
    toolVersion: '0',
  }
}

async function bringBack(
  lab: Lab,
  host: NativeVirtConnection,
  from: { readonly shelf: ChunkShelf; readonly point: RecoveryPoint; readonly folder: string },
  how: Pick<DomainRestoreRequest, 'uuid'> & Partial<DomainRestoreRequest>,
): Promise<{ uuid: string }> {
  const { shelf: store, point } = from
  const path = join(lab.folder, from.folder)
  await mkdir(path, { recursive: true })
  await mkdir(join(lab.folder, 'swtpm'), { recursive: true })
  const images = new LocalImages({ output: process.stdout, openExport: () => Promise.reject(new Error('none')) })
  const restore = new DomainRestore({
    store,
    images,
    host,
    rewrite: rewriteDomainXml,
    newUuid: randomUUID,
    makeDirectory: async folder => {
      await mkdir(folder, { recursive: true, mode: 0o711 })
    },
    removeFile: unlink,
    fileExists: async path => existsSync(path),
    places: { nvram: join(lab.folder, 'nvram'), swtpm: join(lab.folder, 'swtpm') },
  })
  const plan = planRestore({
    point,
    destination: { kind: 'directory', path, format: 'qcow2', mode: 0o644 },
    onDamage: 'stop',
  })
  const prepared = await restore.prepare({ plan, macs: 'keep', network: { kind: 'keep' }, ownNamespaces: [], ...how })
  await new RestoreJob({ store, images, progress: SILENT_PROGRESS, clock: systemClock }).run(plan, never)
  await restore.finish(prepared, 'start')
  return prepared
}
