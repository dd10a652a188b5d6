import { open, readdir, readFile, stat, writeFile } from 'node:fs/promises'

import t from 'tap'

import { systemClock } from '../../src/base/clock.js'
import { SILENT_PROGRESS } from '../../src/jobs/progress.js'
import { VerifyJob } from '../../src/jobs/verify-job.js'
import type { RecoveryPoint } from '../../src/model/recovery-point.js'
import { Store } from '../../src/store/store.js'
import { diskBytes, LabPuller } from '../harness/pull.js'
import { requires } from '../harness/requires.js'
import { MIB } from '../lab/fill.js'
import { imageDifference } from '../lab/images.js'
import { Lab } from '../lab/lab.js'

t.setTimeout(300_000)
const never = new AbortController().signal

t.test('what verify finds damaged, the next pull reads again from the live disk', requires('lab'), async t => {
  await using lab = await Lab.start()
  await Store.init(lab.path('store'))
  await using store = await Store.open(lab.path('store'))
  await using puller = await LabPuller.open(lab, store)
  const domain = await lab.domain({ name: 'web01', disks: [{ target: 'vda', size: 64 * MIB }] })
  await domain.start()
  await domain.write('vda', 0, 8 * MIB, { seed: 1 })
  const before = await domain.referenceImage('vda', 'before')
  const first = await puller.pull(domain)
  await flipByte(lab.path('store/packs'))
  const damaged = await verify(store)
  await domain.write('vda', 20 * MIB, MIB, { seed: 2 })
  const after = await domain.referenceImage('vda', 'after')

  const second = await puller.pull(domain)

  const [lost] = damaged.hurt[0]?.disks ?? []
  t.match(lost, { disk: 'vda', ranges: [{ length: 65536 }] })
  t.equal(second.point.mode, 'incremental', 'the rest is inherited')
  t.match(second.warnings, [{ code: 'W_DAMAGE_HEALED', message: /vda: 1 chunk/ }])
  t.equal(second.point.disks[0]!.statistics.readBytes, MIB + 65536)
  const sound = await verify(store)
  t.strictSame([sound.hurt, sound.lostIds], [[], 0])
  t.equal(await difference(lab, store, second.point, after), undefined)
  t.equal(await difference(lab, store, first.point, before), undefined, 'the older point is healed too')
})

function verify(store: Store) {
  const ports = { points: store.points, verifier: store.verifier(), progress: SILENT_PROGRESS, clock: systemClock }
  return new VerifyJob(ports).run({ level: 'data', isMeant: () => true }, never)
}

/** In the payload of a chunk in the middle of the largest pack. */
async function flipByte(packs: string): Promise<void> {
  const names = (await readdir(packs, { recursive: true })).filter(name => name.endsWith('.pack'))
  const sizes = await Promise.all(names.map(async name => (await stat(`${packs}/${name}`)).size))
  const path = `${packs}/${names[sizes.indexOf(Math.max(...sizes))]!}`
  const bytes = await readFile(path)
  bytes[Math.floor(bytes.length / 2)]! ^= 1
  await writeFile(path, bytes)
}

async function difference(lab: Lab, store: Store, point: RecoveryPoint, reference: string) {
  const [disk] = point.disks
  const path = lab.path(`${point.id}.raw`)
  await using file = await open(path, 'w')
  await file.truncate(disk!.size)
  for await (const [offset, bytes] of diskBytes(store, disk!)) await file.write(bytes, 0, bytes.length, offset)
  return await imageDifference({ path, format: 'raw' }, { path: reference, format: 'raw' })
}
