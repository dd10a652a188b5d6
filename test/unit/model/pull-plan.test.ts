import t from 'tap'

import { planPull, type PullWish, type SurveyedDisk } from '../../../src/model/pull-plan.js'
import type { BackingImage, DiskSource, RecoveryPoint } from '../../../src/model/recovery-point.js'
import { recoveryPoint } from '../../harness/points.js'

const DOMAIN = { uuid: '7e0b2a52-0000-4000-8000-000000000001', name: 'web01' }
const AUTO: PullWish = { mode: 'auto', only: [], except: [] }

function source(overrides: Partial<DiskSource> = {}): DiskSource {
  return { path: '/images/a.qcow2', sourceType: 'file', format: 'qcow2', identity: '1:1', ...overrides }
}

function disk(target: string, overrides: Partial<SurveyedDisk> = {}): SurveyedDisk {
  return { target, source: source(), ability: 'incremental', reason: undefined, ...overrides }
}

function point(targets: readonly string[], before: DiskSource = source()): RecoveryPoint {
  const statistics = { dirtyBytes: 0, readBytes: 0, newBytes: 0, storedBytes: 0, newChunks: 0, newNodes: 0 }
  return recoveryPoint({
    domain: DOMAIN,
    disks: targets.map(target => ({
      target,
      size: 1 << 20,
      root: { kind: 'hole' },
      mode: 'full',
      source: before,
      statistics,
    })),
    checkpoint: { name: 'virtvault-1-2', xml: '', disks: targets },
  })
}

const sound = (...targets: string[]) => ({ known: true, soundDisks: new Set(targets) })

t.test('a sound checkpoint makes every disk incremental, without a warning', async t => {
  const plan = planPull(DOMAIN, [disk('vda'), disk('vdb')], AUTO, point(['vda', 'vdb']), sound('vda', 'vdb'))

  t.strictSame(
    plan.disks.map(({ base }) => base),
    ['virtvault-1-2', 'virtvault-1-2'],
  )
  t.strictSame(plan.warnings, [])
})

t.test('a lost checkpoint makes the pull full, and says so', async t => {
  const plan = planPull(DOMAIN, [disk('vda')], AUTO, point(['vda']), { known: false, soundDisks: new Set() })

  t.equal(plan.disks[0]?.base, undefined)
  t.match(plan.warnings, [{ code: 'W_CHAIN', message: /gone from libvirt/ }])
})

t.test('only the disk with a broken bitmap is read in full', async t => {
  const plan = planPull(DOMAIN, [disk('vda'), disk('vdb')], AUTO, point(['vda', 'vdb']), sound('vdb'))

  t.strictSame(
    plan.disks.map(({ base }) => base),
    [undefined, 'virtvault-1-2'],
  )
  t.match(plan.warnings, [{ code: 'W_CHAIN', message: /^vda/ }])
})

t.test('a new disk is read in full and joins the checkpoint', async t => {
  const plan = planPull(DOMAIN, [disk('vda'), disk('vdz')], AUTO, point(['vda']), sound('vda'))

  t.match(plan.disks, [{ base: 'virtvault-1-2' }, { base: undefined, tracked: true }])
  t.match(plan.warnings, [{ code: 'W_NEW_DISK' }])
})

t.test('a raw disk is read in full and stays out of the checkpoint', async t => {
  const raw = disk('vda', { ability: 'full-only', reason: 'raw keeps no bitmap' })

  const plan = planPull(DOMAIN, [raw], AUTO, undefined, sound())

  t.match(plan.disks, [{ base: undefined, tracked: false }])
})

function below(...files: string[]) {
  return { backingFiles: files }
}

/** The usual image on others, which are known. */
function chain(...files: string[]): DiskSource {
  return source({ ...below(...files), backingIdentities: files.map(file => `9:${file}`) })
}

const CHANGES: readonly (readonly [string, DiskSource, DiskSource, boolean])[] = [
  ['the same file', source(), source(), false],
  ['another inode at the same path', source(), source({ identity: '1:2' }), true],
  ['another format', source(), source({ format: 'raw' }), true],
  ['another path', source(), source({ path: '/images/b.qcow2', identity: '1:2' }), true],
  ['a snapshot on top', source(), source({ path: '/images/s', backingFiles: ['/images/a.qcow2'] }), false],
  ['a snapshot committed', source({ path: '/images/s', backingFiles: ['/images/a.qcow2'] }), source(), false],
  ['a data file of another name', source({ dataFile: '/d' }), source({ dataFile: '/e' }), true],
  ['the same chain', chain('/b', '/c'), chain('/b', '/c'), false],
  ['another image below', chain('/b', '/c'), chain('/b', '/d'), true],
  ['an image below that is gone', chain('/b', '/c'), chain('/b'), true],
  ['an image below where none was', chain(), chain('/b'), true],
  ['an image below under another name', chain('/b'), source({ ...below('/x'), backingIdentities: ['9:/b'] }), false],
  ['an image below that was replaced', chain('/b'), source({ ...below('/b'), backingIdentities: ['9:9'] }), true],
  ['names below that nobody can compare', source(below('json:{}')), source(below('nbd://host/x')), false],
  ['a chain that could not be looked at', chain('/b'), source(), false],
  ['a snapshot on a chain', chain('/b'), source({ path: '/s', ...below('/images/a.qcow2', '/b') }), false],
  ['a snapshot on another chain', chain('/b'), source({ path: '/s', ...below('/images/a.qcow2', '/c') }), true],
  ['a commit into a chain', source({ path: '/s', ...below('/images/a.qcow2', '/b') }), chain('/b'), false],
  ['a commit into another chain', source({ path: '/s', ...below('/images/a.qcow2', '/b') }), chain('/c'), true],
]
for (const [what, before, now, changed] of CHANGES) {
  t.test(`${what} ${changed ? 'forces' : 'forces no'} full read`, async t => {
    const plan = planPull(DOMAIN, [disk('vda', { source: now })], AUTO, point(['vda'], before), sound('vda'))

    t.equal(plan.disks[0]?.base === undefined, changed)
    t.equal(
      plan.warnings.some(({ code }) => code === 'W_DISK_CHANGED'),
      changed,
    )
  })
}

t.test('mode full reads everything and is no degradation', async t => {
  const plan = planPull(DOMAIN, [disk('vda')], { ...AUTO, mode: 'full' }, point(['vda']), sound('vda'))

  t.match(plan.disks, [{ base: 'virtvault-1-2', isAudit: true }], 'the bitmap is checked by it')
  t.strictSame(plan.warnings, [])
})

t.test('mode full without a sound checkpoint reads everything and checks nothing', async t => {
  const plan = planPull(DOMAIN, [disk('vda')], { ...AUTO, mode: 'full' }, point(['vda']), sound())

  t.match(plan.disks, [{ base: undefined, isAudit: false }])
  t.strictSame(plan.warnings, [])
})

t.test('mode incremental refuses a lost base', async t => {
  t.throws(() => planPull(DOMAIN, [disk('vda')], { ...AUTO, mode: 'incremental' }, point(['vda']), sound()), {
    code: 'E_CHAIN_BROKEN',
  })
})

t.test('a domain whose disks are all skipped is an error that names each reason', async t => {
  const cdrom = disk('sda', { ability: 'skip', reason: 'cdrom' })

  t.throws(() => planPull(DOMAIN, [cdrom], AUTO, undefined, sound()), { code: 'E_NO_DISK', why: /sda: cdrom/ })
})

t.test('a disk that does not exist is an error that names those that do', async t => {
  t.throws(() => planPull(DOMAIN, [disk('vda')], { ...AUTO, only: ['vdx'] }, undefined, sound()), {
    code: 'E_NOT_FOUND',
    why: /vda/,
  })
})

t.test('excluded disks are recorded, skipped ones of note are warned of', async t => {
  const shared = disk('vdc', { ability: 'skip', reason: 'shared with other domains' })

  const plan = planPull(DOMAIN, [disk('vda'), disk('vdb'), shared], { ...AUTO, except: ['vdb'] }, undefined, sound())

  t.strictSame(
    plan.skipped.map(({ target }) => target),
    ['vdb', 'vdc'],
  )
  t.match(plan.warnings, [{ code: 'W_DISK_SKIPPED', message: /^vdc/ }])
})

const image = (path: string, overrides: Partial<BackingImage> = {}): BackingImage => ({
  path,
  format: 'qcow2',
  virtualSize: 1 << 20,
  fileBytes: 1000,
  modified: 5,
  identity: '1:2',
  ...overrides,
})

const backed = (...images: readonly BackingImage[]) => disk('vda', { backing: { kind: 'images', images } })

t.test('a depth says which images are left out, and never the disk’s own', async t => {
  const left = (depth: number, images: readonly string[] = ['/a', '/b']) => {
    const chained = backed(...images.map(path => image(path)))
    const [planned] = planPull(DOMAIN, [chained], { ...AUTO, depth }, undefined, sound()).disks
    return planned?.below?.map(({ path }) => path)
  }

  t.strictSame(
    [0, 1, 2, 3, 4, -1, -2, -3, -9].map(depth => left(depth)),
    [undefined, ['/a', '/b'], ['/b'], undefined, undefined, ['/b'], ['/a', '/b'], ['/a', '/b'], ['/a', '/b']],
  )
  for (const depth of [0, 1, -1, -2]) t.equal(left(depth, []), undefined)
})

t.test('a depth that would leave out images which nobody can compare is refused', async t => {
  const chained = { ...disk('vda'), source: { ...disk('vda').source, backingFiles: ['/a', '/b'] } }
  const unknown = { ...chained, backing: { kind: 'unknown' as const, why: 'they are on another machine' } }
  const plan = (one: SurveyedDisk, depth: number) => planPull(DOMAIN, [one], { ...AUTO, depth }, undefined, sound())

  for (const depth of [0, 3, 4]) t.equal(plan(unknown, depth).disks.length, 1)
  for (const depth of [1, 2, -1, -2, -3]) t.throws(() => plan(chained, depth), { code: 'E_UNSUPPORTED' })
  t.throws(() => plan(unknown, -1), { code: 'E_UNSUPPORTED', why: /another machine/ })
})

t.test('only on the images that the last point left out, unchanged, is it built', async t => {
  const before = point(['vda'])
  const after = (was: readonly BackingImage[], now: readonly BackingImage[], depth = -1) => {
    const latest = { ...before, disks: before.disks.map(one => ({ ...one, ...belowOf(was) })) }
    const plan = planPull(DOMAIN, [backed(...now)], { ...AUTO, depth }, latest, sound('vda'))
    return [plan.disks[0]?.base !== undefined, ...plan.warnings.map(({ code }) => code)]
  }
  const belowOf = (images: readonly BackingImage[]) =>
    images.length === 0 ? {} : { below: { images, contentId: new Uint8Array(32) } }
  const base = image('/base')

  t.strictSame(after([base], [base]), [true])
  t.strictSame(after([base], [image('/snapshot'), base]), [true], 'a snapshot above it')
  t.strictSame(after([base], [image('/snapshot'), base], 1), [false, 'W_DISK_CHANGED'], 'left out as well')
  t.strictSame(after([], [base]), [false, 'W_DISK_CHANGED'], 'left out for the first time')
  t.strictSame(after([base], [base], 0), [false, 'W_DISK_CHANGED'], 'no longer left out')
  for (const other of [{ modified: 6 }, { fileBytes: 1 }, { identity: '1:3' }, { virtualSize: 1 }, { format: 'raw' }]) {
    t.strictSame(after([base], [image('/base', other)]), [false, 'W_DISK_CHANGED'], Object.keys(other).join())
  }
  const device = image('/dev/vg/base', { identity: undefined, modified: undefined, fileBytes: undefined })
  t.strictSame(after([device], [device]), [false, 'W_DISK_CHANGED'], 'no file tells of its changes')
})
