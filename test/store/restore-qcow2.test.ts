import { readdirSync, statSync } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'

import fc from 'fast-check'
import t from 'tap'

import { type Qcow2Options, Qcow2Writer } from '../../src/image/qcow2.js'
import { checkSound, create, KIB, play, playAll, run, shapeOf } from '../harness/image-script.js'

const never = new AbortController().signal

const shapes: fc.Arbitrary<Partial<Qcow2Options>> = fc.oneof(
  fc.record({ clusterSize: fc.integer({ min: 9, max: 21 }).map(bits => 2 ** bits) }),
  fc.record({ clusterSize: fc.constantFrom(512, 64 * KIB), compat: fc.constant('0.10') }),
  fc.record({ clusterSize: fc.constantFrom(16 * KIB, 64 * KIB), extendedL2: fc.constant(true) }),
  fc.record({ clusterSize: fc.constantFrom(4 * KIB, 64 * KIB), lazyRefcounts: fc.constant(true) }),
  fc.record({ clusterSize: fc.constantFrom(512, 64 * KIB), explicitZeros: fc.constant(true) }),
  fc.record({
    clusterSize: fc.constantFrom(512, 64 * KIB, 2048 * KIB),
    preallocation: fc.constant('metadata' as const),
  }),
  fc.record({
    clusterSize: fc.constantFrom(64 * KIB),
    extendedL2: fc.boolean(),
    preallocation: fc.constantFrom('metadata' as const, 'falloc' as const, 'full' as const),
  }),
)

t.test('any ascending writes give an image that QEMU finds sound and equal to the raw disk', async () => {
  await playAll(shapes, 80)
})

t.test('an image has the shape that qemu-img would have given it', async t => {
  const folder = await mkdtemp(join(tmpdir(), 'virtvault-qcow2-'))
  t.teardown(() => rm(folder, { recursive: true }))
  for (const [name, shape, flags] of [
    ['plain', {}, 'compat=1.1'],
    ['old', { compat: '0.10' }, 'compat=0.10'],
    ['lazy', { lazyRefcounts: true }, 'compat=1.1,lazy_refcounts=on'],
    ['small', { clusterSize: 512 }, 'cluster_size=512'],
    ['large', { clusterSize: 2048 * KIB }, 'cluster_size=2M'],
    ['extended', { extendedL2: true }, 'extended_l2=on'],
    ['zstd', { compression: 'zstd' }, 'compression_type=zstd'],
    ['zlib', { compression: 'zlib', compat: '0.10' }, 'compat=0.10'],
  ] as const) {
    const ours = join(folder, `${name}.qcow2`)
    const theirs = join(folder, `${name}-qemu.qcow2`)
    await play({ size: 4096 * KIB, pieces: [], perCall: 1 }, { ...shape, path: ours, size: 4096 * KIB })

    await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-o', flags, theirs, '4M'])

    t.same(await shapeOf(ours), await shapeOf(theirs), name)
  }
  const paths = { path: join(folder, 'data.qcow2'), dataFile: join(folder, 'data.raw') }
  await play({ size: 4096 * KIB, pieces: [], perCall: 1 }, { ...paths, size: 4096 * KIB })
  const ours = await shapeOf(paths.path)
  for (const path of Object.values(paths)) await rm(path)
  const flags = `data_file=${paths.dataFile},data_file_raw=on`
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-o', flags, paths.path, '4M'])
  t.same(ours, await shapeOf(paths.path), 'with a data file')
})

t.test('a full image takes no more room than the one qemu-img converts', async t => {
  const folder = await mkdtemp(join(tmpdir(), 'virtvault-qcow2-'))
  t.teardown(() => rm(folder, { recursive: true }))
  const size = 48 << 20
  const path = join(folder, 'ours.qcow2')
  await play({ size, pieces: [{ offset: 0, length: size }], perCall: 1 }, { path, size })

  await run('qemu-img', ['convert', '-f', 'qcow2', '-O', 'qcow2', path, join(folder, 'theirs.qcow2')])

  const ours = statSync(path)
  const theirs = statSync(join(folder, 'theirs.qcow2'))
  t.ok(ours.size <= theirs.size, `${ours.size} <= ${theirs.size}`)
  t.ok(ours.blocks <= theirs.blocks, `${ours.blocks} <= ${theirs.blocks}`)
})

t.test('a sparse disk of 16 TiB costs no more than its data', async t => {
  const folder = await mkdtemp(join(tmpdir(), 'virtvault-qcow2-'))
  t.teardown(() => rm(folder, { recursive: true }))
  const size = 16 * 2 ** 40
  const path = join(folder, 'huge.qcow2')
  const chunk = Buffer.alloc(64 * KIB, 7)
  const before = process.memoryUsage().arrayBuffers

  {
    await using image = await Qcow2Writer.create({ path, size }, never)
    for (let i = 0; i < 256; i++) await image.write([{ offset: i * 2 ** 36, length: chunk.length }], chunk, never)
    t.ok(process.memoryUsage().arrayBuffers - before < 32 << 20, 'memory stays small')
    await image.commit(never)
  }

  t.ok(statSync(path).size < 256 * 2 * 64 * KIB + (4 << 20))
  await checkSound(path)
})

t.test('a disk that is mostly written at 16 TiB keeps no finished table in memory', async t => {
  const folder = await mkdtemp(join(tmpdir(), 'virtvault-qcow2-'))
  t.teardown(() => rm(folder, { recursive: true }))
  const path = join(folder, 'tables.qcow2')
  const one = Buffer.alloc(512, 1)
  await using image = await Qcow2Writer.create({ path, size: 16 * 2 ** 40 }, never)
  const before = process.memoryUsage().arrayBuffers

  for (let i = 0; i < 2048; i++) await image.write([{ offset: i * 2 ** 29, length: 512 }], one, never)

  const grown = process.memoryUsage().arrayBuffers - before
  t.ok(grown < 64 << 20, `128 MiB of tables passed through ${Math.round(grown / 2 ** 20)} MiB`)
})

t.test('an image that is not committed leaves nothing, not even under another name', async t => {
  const folder = t.testdir()
  {
    await using image = await Qcow2Writer.create({ path: join(folder, 'a.qcow2'), size: 1 << 20 }, never)
    await image.write([{ offset: 0, length: 5 }], Buffer.from('hello'), never)
    t.equal(readdirSync(folder).filter(name => !name.startsWith('.a.qcow2.virtvault-')).length, 0)
  }
  t.same(readdirSync(folder), [])
})

t.test('a file that is in the way stays as it is, also when it appears during the restore', async t => {
  const folder = t.testdir({ 'taken.qcow2': 'mine' })
  await t.rejects(Qcow2Writer.create({ path: join(folder, 'taken.qcow2'), size: 512 }, never), { code: 'E_EXISTS' })

  const path = join(folder, 'late.qcow2')
  {
    await using image = await Qcow2Writer.create({ path, size: 512 }, never)
    await writeFile(path, 'mine')
    await t.rejects(image.commit(never), { code: 'E_EXISTS' })
  }

  t.equal(statSync(path).size, 4)
  t.same(readdirSync(folder).sort(), ['late.qcow2', 'taken.qcow2'])
})

t.test('force replaces a file, but not a link or a directory', async t => {
  const folder = t.testdir({ 'old.qcow2': 'old', link: t.fixture('symlink', 'old.qcow2'), dir: {} })
  await play({ size: 512, pieces: [], perCall: 1 }, { path: join(folder, 'old.qcow2'), size: 512, force: true })
  await checkSound(join(folder, 'old.qcow2'))

  for (const name of ['link', 'dir']) {
    await t.rejects(Qcow2Writer.create({ path: join(folder, name), size: 512, force: true }, never), {
      code: 'E_REFUSED',
    })
  }
})

t.test('the finished file has the mode asked for, the temporary is for us alone', async t => {
  const folder = t.testdir()
  const path = join(folder, 'a.qcow2')
  {
    await using image = await Qcow2Writer.create({ path, size: 512, mode: 0o640 }, never)
    const [temporary] = readdirSync(folder)
    t.equal(statSync(join(folder, temporary!)).mode & 0o777, 0o600)
    await image.commit(never)
  }
  t.equal(statSync(path).mode & 0o777, 0o640)
})

t.test('shapes that QEMU could not open are refused', async t => {
  const path = join(t.testdir(), 'a.qcow2')
  for (const shape of [
    { clusterSize: 256 },
    { clusterSize: 65537 },
    { clusterSize: 4096 * KIB },
    { compat: '0.9' },
    { compat: '0.10', lazyRefcounts: true },
    { compat: '0.10', explicitZeros: true },
    { clusterSize: 8 * KIB, extendedL2: true },
    { clusterSize: 512, size: 2 ** 40 },
    { compat: '0.10', extendedL2: true },
    { compat: '0.10', compression: 'zstd' },
    { compat: '0.10', dataFile: '/x' },
    { compression: 'zlib', dataFile: '/x' },
    { compression: 'zstd', preallocation: 'metadata' },
    { clusterSize: 512, dataFile: `/${'x'.repeat(400)}` },
  ] as const) {
    await t.rejects(create({ path, size: 512, ...shape }), { code: 'E_UNSUPPORTED' })
  }
  t.same(readdirSync(dirname(path)), [], 'nothing was made')
})
