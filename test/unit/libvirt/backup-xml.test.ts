import { readFileSync } from 'node:fs'

import t from 'tap'

import { buildBackupXml, buildCheckpointXml, parseBackupXml } from '../../../src/libvirt/backup-xml.js'
import { buildRedefineXml, parseCheckpointXml } from '../../../src/libvirt/checkpoint-xml.js'

const FIRST = 'virtvault-0a1b2c3d-0000000000000001'
const SECOND = 'virtvault-0a1b2c3d-0000000000000002'

/** As captured from libvirt 9.0. */
function fixture(name: string): string {
  return readFileSync(new URL(`../../../../fixtures/libvirt-xml/${name}`, import.meta.url), 'utf8')
}

t.test('a mixed job is asked for disk by disk', async t => {
  const xml = buildBackupXml({ socket: '/run/x.sock' }, [
    { target: 'vda', base: FIRST, tracked: true, scratch: { kind: 'file', path: '/s/a' } },
    { target: 'vdb', base: undefined, tracked: true, scratch: { kind: 'file', path: '/s/b' } },
  ])

  t.match(parseBackupXml(xml), {
    mode: 'pull',
    socket: '/run/x.sock',
    disks: [
      { target: 'vda', incremental: true, base: FIRST, bitmap: 'backup-vda', exportName: 'vda', scratch: '/s/a' },
      { target: 'vdb', incremental: false, base: undefined, bitmap: undefined, exportName: 'vdb', scratch: '/s/b' },
    ],
  })
})

t.test('a name from outside stays a name', async t => {
  const odd = `a'b"c<d>&e ä`
  const xml = buildBackupXml({ socket: `/run/${odd}` }, [
    { target: odd, base: odd, tracked: true, scratch: { kind: 'file', path: `/s/${odd}` } },
  ])

  t.match(parseBackupXml(xml), { socket: `/run/${odd}`, disks: [{ target: odd, base: odd, scratch: `/s/${odd}` }] })
})

t.test('what XML cannot carry is refused', async t => {
  for (const bad of ['a\nb', 'a\u0000b', 'a\ud800b', 'a\uffffb']) {
    t.throws(() => buildCheckpointXml(bad, []), { code: 'E_UNSUPPORTED' })
  }
})

t.test('the job that runs is read back', async t => {
  t.strictSame(parseBackupXml(fixture('backup-mixed.xml')), {
    mode: 'pull',
    socket: '/run/virtvault/s.sock',
    disks: [
      {
        target: 'vda',
        incremental: true,
        base: FIRST,
        exportName: 'vda',
        bitmap: 'backup-vda',
        index: 13,
        scratch: '/var/lib/virtvault/scratch/a',
      },
      {
        target: 'vdc',
        incremental: false,
        base: undefined,
        exportName: 'vdc',
        bitmap: undefined,
        index: 14,
        scratch: '/var/lib/virtvault/scratch/c',
      },
    ],
  })
})

t.test('an export without a name has that of its disk', async t => {
  const xml = fixture('backup-mixed.xml').replaceAll(/ exportname='\w+'/g, '')

  t.strictSame(
    parseBackupXml(xml).disks.map(disk => disk.exportName),
    ['vda', 'vdc'],
  )
})

t.test('a checkpoint tells which of its disks are sound', async t => {
  t.match(parseCheckpointXml(fixture('checkpoint-size.xml')), {
    name: SECOND,
    parent: FIRST,
    disks: [
      { target: 'vda', bitmap: SECOND, dirtyBytes: 0 },
      { target: 'vdb', bitmap: SECOND, dirtyBytes: 0 },
    ],
  })
  t.strictSame(
    parseCheckpointXml(fixture('checkpoint-broken.xml')).disks.map(disk => disk.dirtyBytes),
    [undefined, undefined],
  )
})

t.test('a checkpoint that was stored is redefined with the bitmaps it had', async t => {
  const stored = parseCheckpointXml(fixture('checkpoint-with-domain.xml'))

  t.same(parseCheckpointXml(buildRedefineXml(stored, FIRST)), stored)
  t.equal(parseCheckpointXml(buildRedefineXml(stored, undefined)).parent, undefined)
})
