import { randomBytes } from 'node:crypto'
import { readdirSync, statSync } from 'node:fs'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import fc from 'fast-check'
import t from 'tap'

import type { Qcow2Options } from '../../src/image/qcow2.js'
import { checkSound, compressedClusters, create, KIB, play, playAll, run } from '../harness/image-script.js'

const never = new AbortController().signal
// QEMU looks at a hundred images, on a machine that others use as well.
t.setTimeout(180_000)

/** Clusters that hold packed bytes; the small ones share the most, and have many tables and refcount blocks. */
const compressedShapes: fc.Arbitrary<Partial<Qcow2Options>> = fc.oneof(
  fc.record({
    clusterSize: fc.constantFrom(512, 4 * KIB, 64 * KIB, 2048 * KIB),
    compression: fc.constantFrom('zlib' as const, 'zstd' as const),
  }),
  fc.record({
    clusterSize: fc.constantFrom(16 * KIB, 64 * KIB),
    compression: fc.constantFrom('zlib' as const, 'zstd' as const),
    extendedL2: fc.constant(true),
    lazyRefcounts: fc.boolean(),
  }),
  fc.record({
    clusterSize: fc.constantFrom(512, 64 * KIB),
    compat: fc.constant('0.10'),
    compression: fc.constant('zlib' as const),
  }),
)

const dataFileShapes: fc.Arbitrary<Partial<Qcow2Options>> = fc.oneof(
  fc.record({
    clusterSize: fc.constantFrom(512, 64 * KIB, 2048 * KIB),
    preallocation: fc.constantFrom('off' as const, 'metadata' as const, 'falloc' as const, 'full' as const),
  }),
  fc.record({ clusterSize: fc.constant(64 * KIB), extendedL2: fc.constant(true), lazyRefcounts: fc.boolean() }),
)

t.test('any ascending writes give a compressed image that QEMU finds sound and equal to the raw disk', async () => {
  await playAll(compressedShapes, 60)
})

t.test('any ascending writes give an image with a data file, which alone is the raw disk', async () => {
  await playAll(dataFileShapes, 30, true)
})

t.test('a compressed image takes no more room than the one qemu-img compresses', async t => {
  const folder = await mkdtemp(join(tmpdir(), 'virtvault-qcow2-'))
  t.teardown(() => rm(folder, { recursive: true }))
  const size = 16 << 20
  const text = Buffer.alloc(size)
  for (let at = 0; at < size; at += 64)
    text.write(`line ${(at * 2654435761) >>> 7} of a log that is much like the others\n`, at)
  await writeFile(join(folder, 'disk.raw'), text)
  for (const compression of ['zlib', 'zstd'] as const) {
    const path = join(folder, `${compression}.qcow2`)
    {
      await using image = await create({ path, size, compression })
      for (let at = 0; at < size; at += 4 << 20) {
        await image.write([{ offset: at, length: 4 << 20 }], text.subarray(at, at + (4 << 20)), never)
      }
      await image.commit(never)
    }
    const options = ['-c', '-o', `compression_type=${compression}`]
    const theirs = join(folder, `${compression}-qemu.qcow2`)
    await run('qemu-img', ['convert', ...options, '-f', 'raw', '-O', 'qcow2', join(folder, 'disk.raw'), theirs])

    await run('qemu-img', ['compare', '-f', 'qcow2', '-F', 'qcow2', path, theirs])
    t.equal(await compressedClusters(path), 256, 'all of its clusters are compressed')
    t.ok(statSync(path).size <= statSync(theirs).size * 1.02, `${statSync(path).size} <= ${statSync(theirs).size}`)
  }
})

t.test('QEMU writes over compressed clusters and into a data file, and the image stays sound', async t => {
  const folder = await mkdtemp(join(tmpdir(), 'virtvault-qcow2-'))
  t.teardown(() => rm(folder, { recursive: true }))
  const size = 4 << 20
  const script = { size, pieces: [{ offset: 0, length: size }], perCall: 1 }
  for (const shape of [
    { compression: 'zlib', clusterSize: 512 },
    { compression: 'zstd' },
    { compression: 'zlib', extendedL2: true },
    { dataFile: join(folder, 'disk.data.raw') },
  ] as const) {
    const path = join(folder, 'disk.qcow2')
    await play(script, { path, size, ...shape, force: true })

    await run('qemu-io', ['-f', 'qcow2', '-c', 'write -P 5 1000000 1000000', '-c', 'write -z 2M 100k', path])

    await checkSound(path)
    await run('qemu-io', ['-f', 'qcow2', '-c', 'read -P 5 1000000 1000000', '-c', 'read -P 1 100k 64k', path])
  }
})

t.test('a compressed sparse disk of 3 TiB costs its data, few bytes of memory, and is sound', async t => {
  const folder = await mkdtemp(join(tmpdir(), 'virtvault-qcow2-'))
  t.teardown(() => rm(folder, { recursive: true }))
  const path = join(folder, 'huge.qcow2')
  const size = 3 * 2 ** 40 + 512
  const value = Buffer.alloc(64 * KIB, 7)
  const before = process.memoryUsage().arrayBuffers
  {
    await using image = await create({ path, size, compression: 'zstd' })
    for (let i = 0; i < 96; i++) await image.write([{ offset: i * 2 ** 35, length: value.length }], value, never)
    await image.write([{ offset: size - 512, length: 512 }], randomBytes(512), never)
    t.ok(process.memoryUsage().arrayBuffers - before < 48 << 20, 'memory stays small')
    await image.commit(never)
  }

  t.ok(statSync(path).size < 97 * 64 * KIB + (2 << 20), 'one table for each of the pieces')
  await checkSound(path)
  await run('qemu-io', ['-r', '-f', 'qcow2', '-c', `read -P 7 ${95 * 2 ** 35} 64k`, '-c', 'read -P 0 64k 1M', path])
})

t.test('refcount blocks of a compressed image are written on the way', async t => {
  const folder = await mkdtemp(join(tmpdir(), 'virtvault-qcow2-'))
  t.teardown(() => rm(folder, { recursive: true }))
  const path = join(folder, 'a.qcow2')
  const size = 24 << 20
  // Of clusters that shrink and others, in runs: what is packed is left behind, and taken up again.
  const bytes = Buffer.concat(
    Array.from({ length: 48 }, (_, i) => (i % 5 < 2 ? Buffer.alloc(512 * KIB, i + 1) : randomBytes(512 * KIB))),
  )
  await writeFile(`${path}.raw`, bytes)
  {
    await using image = await create({ path, size, compression: 'zstd', clusterSize: 4 * KIB })
    // Calls under way at once, in order.
    await Promise.all(
      Array.from({ length: 24 }, (_, i) =>
        image.write([{ offset: i << 20, length: 1 << 20 }], bytes.subarray(i << 20, (i + 1) << 20), never),
      ),
    )
    await image.commit(never)
  }

  await checkSound(path)
  await run('qemu-img', ['compare', '-f', 'qcow2', '-F', 'raw', path, `${path}.raw`])
})

t.test('with full preallocation every byte has its room, with falloc too, with metadata none', async t => {
  const folder = await mkdtemp(join(tmpdir(), 'virtvault-qcow2-'))
  t.teardown(() => rm(folder, { recursive: true }))
  const size = 8 << 20
  const script = { size, pieces: [{ offset: 1 << 20, length: 4096 }], perCall: 1 }
  for (const preallocation of ['metadata', 'falloc', 'full'] as const) {
    for (const dataFile of [undefined, join(folder, 'a.data.raw')]) {
      const path = join(folder, 'a.qcow2')
      await play(script, { path, size, preallocation, dataFile, force: true })

      const used = statSync(dataFile ?? path).blocks * 512
      t.equal(used >= size, preallocation !== 'metadata', `${preallocation}: ${used} bytes`)
    }
  }
})

t.test('a data file and its image get their names together, or neither does', async t => {
  const folder = t.testdir()
  const path = join(folder, 'a.qcow2')
  const dataFile = join(folder, 'a.data.raw')
  for (const late of [path, dataFile]) {
    {
      await using image = await create({ path, size: 1024, dataFile })
      await writeFile(late, 'mine')
      await t.rejects(image.commit(never), { code: 'E_EXISTS' })
    }
    t.same(readdirSync(folder), [late.slice(folder.length + 1)], 'only what was in the way')
    await rm(late)
  }
  await using image = await create({ path, size: 1024, dataFile })
  await image.markDamaged()
  await image.commit(never)
  t.same(readdirSync(folder).sort(), ['a.damaged.qcow2', 'a.data.damaged.raw'])
  await checkSound(join(folder, 'a.damaged.qcow2'))
})

t.test('a disk of no bytes takes no room where room is reserved', async t => {
  const folder = t.testdir()
  const [path, dataFile] = [join(folder, 'none.qcow2'), join(folder, 'none.raw')]
  await play({ size: 0, pieces: [], perCall: 1 }, { path, size: 0, dataFile, preallocation: 'falloc' })
  await checkSound(path)
  t.equal((await readFile(dataFile)).length, 0)
})
