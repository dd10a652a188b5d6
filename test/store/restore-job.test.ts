import { execFile, spawn } from 'node:child_process'
import { readdirSync, readFileSync, statSync } from 'node:fs'
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Writable } from 'node:stream'
import { promisify } from 'node:util'

import fc from 'fast-check'
import t from 'tap'

import { systemClock } from '../../src/base/clock.js'
import type { BackupError } from '../../src/base/errors.js'
import type { ImageFactory } from '../../src/image/image-factory.js'
import { LocalImages } from '../../src/image/local-images.js'
import { type ProgressEvent, SILENT_PROGRESS } from '../../src/jobs/progress.js'
import { RestoreJob, type RestoreResult } from '../../src/jobs/restore-job.js'
import { planRestore, type Qcow2Wishes, type RestoreRequest } from '../../src/jobs/restore-plan.js'
import type { DiskSource, PointDisk, RecoveryPoint } from '../../src/model/recovery-point.js'
import { ChunkShelf, chunkOf } from '../fakes/chunk-shelf.js'

const run = promisify(execFile)
const never = new AbortController().signal
const KIB = 1024

t.test('every disk comes back byte for byte, whatever its size, holes and chunk size', async t => {
  const folder = await mkdtemp(join(tmpdir(), 'virtvault-restore-'))
  t.teardown(() => rm(folder, { recursive: true }))
  let number = 0

  await fc.assert(
    fc.asyncProperty(
      fc.record({
        sectors: fc.integer({ min: 1, max: 12_000 }),
        chunkKib: fc.constantFrom(64, 128, 1024, 4096),
        clusterSize: fc.constantFrom(512, 4 * KIB, 64 * KIB, 2048 * KIB),
        format: fc.constantFrom('qcow2' as const, 'raw' as const),
        filled: fc.array(fc.tuple(fc.nat(12_000), fc.integer({ min: 1, max: 3000 })), { maxLength: 8 }),
      }),
      async ({ sectors, chunkKib, clusterSize, format, filled }) => {
        const shelf = new ChunkShelf(chunkKib * KIB)
        const disk = diskOf(sectors * 512, filled)
        const point = pointOf(shelf, { vda: disk }, { format: 'qcow2', clusterSize })
        const path = join(folder, String(number++))
        await mkdir(path)

        await restore(shelf, { point, destination: { kind: 'directory', path, format }, onDamage: 'stop' })

        await sameAs(join(path, `vda.${format}`), format, disk)
        await rm(path, { recursive: true })
      },
    ),
    { numRuns: 40 },
  )
})

t.test('several disks and the files beside them come back, the domain is only a file', async t => {
  const path = t.testdir()
  const shelf = new ChunkShelf(64 * KIB)
  const vda = diskOf(3 << 20, [[0, 6144]])
  const vdb = diskOf(1 << 20, [])
  const blobs = [
    shelf.addBlob('domain-inactive.xml', Buffer.from('<domain/>')),
    shelf.addBlob('domain-live.xml', Buffer.from('<domain id="1"/>')),
    shelf.addBlob('nvram', Buffer.alloc(1000, 3)),
  ]
  const point = { ...pointOf(shelf, { vda, vdb }), blobs }

  const result = await restore(shelf, { point, destination: toDirectory(path), onDamage: 'stop' })

  t.same(readdirSync(path).sort(), ['vda.qcow2', 'vdb.qcow2', 'web.live.xml', 'web.nvram', 'web.xml'])
  await sameAs(join(path, 'vda.qcow2'), 'qcow2', vda)
  await sameAs(join(path, 'vdb.qcow2'), 'qcow2', vdb)
  t.equal(readFileSync(join(path, 'web.xml'), 'utf8'), '<domain/>')
  t.match(result, {
    status: 'complete',
    dataBytes: 3 << 20,
    disks: [{ target: 'vda' }, { target: 'vdb', dataBytes: 0 }],
  })
})

t.test('a plan tells the bytes and touches nothing', async t => {
  const path = t.testdir()
  const shelf = new ChunkShelf(64 * KIB)
  const point = pointOf(shelf, {
    vda: diskOf(5 << 20, [
      [0, 100],
      [5000, 1],
    ]),
  })
  const plan = planRestore({ point, destination: toDirectory(path), onDamage: 'stop' })

  const measured = await jobOn(shelf).measure(plan, never)

  t.same(measured, [{ target: 'vda', size: 5 << 20, dataBytes: 2 * 64 * KIB }])
  t.equal(shelf.reads, 0)
  t.same(readdirSync(path), [])
})

t.test(
  'an image is shaped as the original, unless it was asked otherwise, and what that rules out is told',
  async t => {
    const shelf = new ChunkShelf(64 * KIB)
    const vda = diskOf(1 << 20, [])
    const shapeOf = (source: Partial<DiskSource>, qcow2: Qcow2Wishes) => {
      const destination = { kind: 'directory', path: '/to', format: 'qcow2', qcow2 } as const
      const [disk] = planRestore({ point: pointOf(shelf, { vda }, source), destination, onDamage: 'stop' }).disks
      return { ...disk?.spec, notes: disk?.notes }
    }
    const rich = { clusterSize: 65536, compat: '1.1', lazyRefcounts: true, extendedL2: true, compressionType: 'zstd' }

    t.match(shapeOf(rich, {}), { clusterSize: 65536, lazyRefcounts: true, extendedL2: true, compression: undefined })
    t.match(shapeOf(rich, { compression: 'original' }), { compression: 'zstd', notes: [] })
    t.match(shapeOf({ compat: '0.10' }, { compression: 'original' }), { compression: 'zlib', compat: '0.10' })
    t.match(shapeOf({ compat: '0.10' }, { compression: 'zstd' }), { compression: 'zstd', compat: undefined })
    t.match(shapeOf(rich, { clusterSize: 4096 }), { extendedL2: undefined, notes: [/no extended L2 entries:/] })
    t.match(shapeOf(rich, { compat: '0.10' }), {
      lazyRefcounts: undefined,
      notes: [/no lazy refcounts and no extended L2 entries/],
    })
    t.match(shapeOf({ format: 'raw', clusterSize: 512 }, {}), { clusterSize: undefined })
    t.match(shapeOf(rich, { dataFile: true }), { dataFile: '/to/vda.data.raw', notes: [/both stay/] })
  },
)

t.test('names from a recovery point never leave the directory', async t => {
  const path = t.testdir()
  const shelf = new ChunkShelf(64 * KIB)
  const disks = {
    '../vda': diskOf(512, []),
    'a/b': diskOf(512, []),
    '.hidden': diskOf(512, []),
    VDA: diskOf(512, []),
    vda: diskOf(512, []),
  }
  const point = { ...pointOf(shelf, disks), domain: { uuid: 'u', name: '../../etc/passwd' } }
  const blobs = [shelf.addBlob('domain-inactive.xml', Buffer.from('x')), shelf.addBlob('../nvram', Buffer.from('y'))]

  const result = await restore(shelf, { point: { ...point, blobs }, destination: toDirectory(path), onDamage: 'stop' })

  t.equal(readdirSync(path).length, 7)
  for (const { image } of result.disks)
    t.ok(image.startsWith(`${path}/`) && !image.slice(path.length + 1).includes('/'))
})

t.test('a lost chunk stops the restore, names point, disk and bytes, and leaves nothing', async t => {
  const path = t.testdir()
  const shelf = new ChunkShelf(64 * KIB)
  const vda = diskOf(20 << 20, [[0, 40_960]])
  const point = { ...pointOf(shelf, { vda, vdb: diskOf(1 << 20, [[0, 9]]) }), blobs: [shelf.addBlob('nvram', vda)] }
  for (const index of [3, 4, 9]) shelf.loseChunk(chunkOf(vda, { size: vda.length, chunkSize: 64 * KIB }, index))

  const failure = await failureOf(restore(shelf, { point, destination: toDirectory(path), onDamage: 'stop' }))

  t.match(failure, { code: 'E_DAMAGED', message: /^web@0123456: disk vda / })
  t.match(failure.why, /\[196608, 327680\), \[589824, 655360\)/)
  t.same(readdirSync(path), [])
})

t.test('with damage to be kept, the image is marked, zero where lost, and a map lists the ranges', async t => {
  const path = t.testdir()
  const shelf = new ChunkShelf(64 * KIB)
  const vda = diskOf((20 << 20) + 512, [[0, 50_000]])
  const point = pointOf(shelf, { vda, vdb: diskOf(1 << 20, [[0, 9]]) })
  const geometry = { size: vda.length, chunkSize: 64 * KIB }
  for (const index of [3, 4, 320]) {
    shelf.loseChunk(chunkOf(vda, geometry, index))
    vda.fill(0, index * 64 * KIB, Math.min(vda.length, (index + 1) * 64 * KIB))
  }

  const result = await restore(shelf, { point, destination: toDirectory(path), onDamage: 'keep' })

  t.same(readdirSync(path).sort(), ['vda.damaged.map.json', 'vda.damaged.qcow2', 'vdb.qcow2'])
  await sameAs(join(path, 'vda.damaged.qcow2'), 'qcow2', vda)
  const lost = [
    { offset: 196608, length: 131072 },
    { offset: 20 << 20, length: 512 },
  ]
  t.match(result, {
    status: 'damaged',
    disks: [
      { target: 'vda', lost },
      { target: 'vdb', lost: [] },
    ],
  })
  t.same(JSON.parse(readFileSync(join(path, 'vda.damaged.map.json'), 'utf8')), { disk: 'vda', size: vda.length, lost })
})

t.test('a lost tree node costs what it covers, and no more', async t => {
  const path = t.testdir()
  const shelf = new ChunkShelf(64 * KIB)
  const vda = diskOf(40 << 20, [[0, 100_000]])
  const point = pointOf(shelf, { vda })
  shelf.loseNode(point.disks[0]!.root, 128, 256)

  const failure = await failureOf(restore(shelf, { point, destination: toDirectory(path), onDamage: 'stop' }))
  t.equal(failure.code, 'E_DAMAGED')
  t.same(readdirSync(path), [])

  const result = await restore(shelf, { point, destination: toDirectory(path), onDamage: 'keep' })
  vda.fill(0, 128 * 64 * KIB, 256 * 64 * KIB)
  await sameAs(join(path, 'vda.damaged.qcow2'), 'qcow2', vda)
  t.same(result.disks[0]?.lost, [{ offset: 128 * 64 * KIB, length: 128 * 64 * KIB }])
})

t.test('several lost tree nodes, also a high one, cost what they cover', async t => {
  const path = t.testdir()
  const shelf = new ChunkShelf(512)
  const vda = diskOf(128 * 128 * 3 * 512, [[0, 128 * 128 * 3]])
  const point = pointOf(shelf, { vda })
  shelf.loseNode(point.disks[0]!.root, 128 * 128, 2 * 128 * 128)

  const result = await restore(shelf, { point, destination: toDirectory(path), onDamage: 'keep' })

  t.same(result.disks[0]?.lost, [{ offset: 128 * 128 * 512, length: 128 * 128 * 512 }])
})

t.test('one disk goes to standard output whole, zeros included', async t => {
  const shelf = new ChunkShelf(64 * KIB)
  const vda = diskOf((3 << 20) + 512, [
    [128, 10],
    [4000, 1],
  ])
  const point = pointOf(shelf, { vda, vdb: vda })
  const parts: Buffer[] = []
  const output = new Writable({
    highWaterMark: 1,
    write: (part: Buffer, _encoding, done) => {
      // The bytes are lent: a slow reader must still get what was there.
      setImmediate(() => {
        parts.push(Buffer.from(part))
        done()
      })
    },
  })
  const request = { point, destination: { kind: 'stream' }, onDamage: 'stop' } as const
  t.throws(() => planRestore(request), { code: 'E_USAGE' })

  await jobOn(shelf, SILENT_PROGRESS, localImages(output)).run(planRestore({ ...request, disks: ['vda'] }), never)

  t.ok(Buffer.concat(parts).equals(vda))
})

t.test('a disk that is not in the point is refused with the reason', async t => {
  const shelf = new ChunkShelf(64 * KIB)
  const point = { ...pointOf(shelf, { vda: diskOf(512, []) }), skipped: [{ target: 'vdb', reason: 'read-only' }] }
  const plan = (disks: string[]) => () =>
    planRestore({ point, disks, destination: toDirectory('/nowhere'), onDamage: 'stop' })

  t.throws(plan(['vdb']), { code: 'E_NO_DISK', why: /read-only/ })
  t.throws(plan(['vdz']), { code: 'E_NO_DISK' })
})

t.test('a file in the way stops the restore before anything is read', async t => {
  const path = t.testdir({ 'vdb.qcow2': 'mine' })
  const shelf = new ChunkShelf(64 * KIB)
  const point = pointOf(shelf, { vda: diskOf(1 << 20, [[0, 100]]), vdb: diskOf(1 << 20, [[0, 100]]) })
  const request = { point, destination: toDirectory(path), onDamage: 'stop' } as const

  await t.rejects(restore(shelf, request), { code: 'E_EXISTS' })

  t.equal(shelf.reads, 0)
  t.same(readdirSync(path), ['vdb.qcow2'])
  await restore(shelf, { ...request, force: true })
  t.same(readdirSync(path), ['vda.qcow2', 'vdb.qcow2'])
})

t.test('an interruption leaves nothing', async t => {
  const path = t.testdir()
  const shelf = new ChunkShelf(64 * KIB)
  const point = pointOf(shelf, { vda: diskOf(64 << 20, [[0, 131_072]]), vdb: diskOf(1 << 20, [[0, 100]]) })
  const stop = new AbortController()
  const plan = planRestore({ point, destination: toDirectory(path), onDamage: 'stop' })
  const events: ProgressEvent[] = []
  const job = jobOn(shelf, {
    report: event => {
      events.push(event)
      if (event.kind === 'disk' && event.target === 'vda') stop.abort(new Error('SIGINT'))
    },
  })

  await t.rejects(job.run(plan, stop.signal))

  t.same(readdirSync(path), [])
  t.match(events.at(-1), { kind: 'finished', status: 'failed', error: { code: 'E_INTERRUPTED' } })
})

t.test('a full disk is E_NO_SPACE and leaves nothing', { skip: process.getuid?.() !== 0 && 'needs root' }, async t => {
  const path = await mkdtemp(join(tmpdir(), 'virtvault-full-'))
  await run('mount', ['-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', path])
  t.teardown(async () => {
    await run('umount', ['--lazy', path])
    await rm(path, { recursive: true })
  })
  const shelf = new ChunkShelf(64 * KIB)
  const point = pointOf(shelf, { vda: diskOf(16 << 20, [[0, 32_768]]) })

  for (const format of ['qcow2', 'raw'] as const) {
    for (const preallocation of ['off', 'full'] as const) {
      const destination = { kind: 'directory', path, format, preallocation } as const
      await t.rejects(restore(shelf, { point, destination, onDamage: 'stop' }), { code: 'E_NO_SPACE' })
      t.same(readdirSync(path), [])
    }
  }
})

t.test('a process killed in the middle leaves no file under the final name', async t => {
  const path = t.testdir()
  const script = join(path, 'killed.mjs')
  const here = new URL('../../src/', import.meta.url)
  await writeFile(
    script,
    `import { Qcow2Writer } from '${new URL('image/qcow2.js', here).href}'
     const signal = new AbortController().signal
     const image = await Qcow2Writer.create({ path: '${path}/vda.qcow2', size: 1 << 30 }, signal)
     const bytes = Buffer.alloc(1 << 20, 1)
     for (let i = 0; i < 64; i++) await image.write([{ offset: i << 20, length: 1 << 20 }], bytes, signal)
     process.stdout.write('written')
     setInterval(() => {}, 1000)`,
  )
  const child = spawn(process.execPath, [script], { stdio: ['ignore', 'pipe', 'inherit'] })
  await new Promise(resolve => child.stdout.once('data', resolve))

  child.kill('SIGKILL')
  await new Promise(resolve => child.once('exit', resolve))

  const left = readdirSync(path).filter(name => name !== 'killed.mjs')
  t.equal(left.length, 1)
  t.match(left[0], /^\.vda\.qcow2\.virtvault-[0-9a-f]{16}$/)
  t.equal(statSync(join(path, left[0]!)).mode & 0o777, 0o600)
  await t.rejects(run('qemu-img', ['info', '-f', 'qcow2', join(path, left[0]!)]), 'what is left is no image')
})

function toDirectory(path: string): RestoreRequest['destination'] {
  return { kind: 'directory', path, format: 'qcow2' }
}

function jobOn(shelf: ChunkShelf, progress = SILENT_PROGRESS, images: ImageFactory = localImages()): RestoreJob {
  return new RestoreJob({ store: shelf, images, progress, clock: systemClock })
}

function localImages(output: Writable = process.stdout): LocalImages {
  return new LocalImages({ output, openExport: () => Promise.reject(new Error('no exports here')) })
}

async function restore(shelf: ChunkShelf, request: RestoreRequest): Promise<RestoreResult> {
  return await jobOn(shelf).run(planRestore(request), never)
}

async function failureOf(work: Promise<unknown>): Promise<BackupError> {
  return await work.then(
    () => t.fail('did not fail') as never,
    (error: unknown) => error as BackupError,
  )
}

/** Sectors [first, first + count) filled with numbers, the rest zero. */
function diskOf(size: number, filled: readonly (readonly [number, number])[]): Buffer {
  const disk = Buffer.alloc(size)
  for (const [first, count] of filled) {
    const end = Math.min(size, (first + count) * 512)
    for (let at = first * 512; at + 4 <= end; at += 4) disk.writeUInt32LE((at * 2654435761 + 1) >>> 0, at)
  }
  return disk
}

function pointOf(
  shelf: ChunkShelf,
  disks: Readonly<Record<string, Buffer>>,
  source: Partial<DiskSource> = {},
): RecoveryPoint {
  const statistics = { dirtyBytes: 0, readBytes: 0, newBytes: 0, storedBytes: 0, newChunks: 0, newNodes: 0 }
  return {
    id: '0123456789abcdef0123456789abcdef',
    storeId: '0'.repeat(32),
    sequence: 1,
    runId: 'run',
    domain: { uuid: 'f0f0f0f0-0000-4000-8000-000000000000', name: 'web' },
    time: 0,
    mode: 'full',
    consistency: { kind: 'offline' },
    disks: Object.entries(disks).map(
      ([target, bytes]): PointDisk => ({
        target,
        size: bytes.length,
        root: shelf.addDisk(bytes),
        mode: 'full',
        source: { path: '/x', sourceType: 'file', format: 'qcow2', ...source },
        statistics,
      }),
    ),
    skipped: [],
    blobs: [],
    warnings: [],
    durationMs: 0,
    tags: [],
    toolVersion: '0',
  }
}

async function sameAs(path: string, format: 'qcow2' | 'raw', disk: Buffer): Promise<void> {
  if (format === 'raw') {
    t.ok(disk.equals(await readFile(path)), path)
    return
  }
  await run('qemu-img', ['check', '-q', '-f', 'qcow2', path])
  const truth = `${path}.truth`
  await writeFile(truth, disk)
  await run('qemu-img', ['compare', '-q', '-f', 'qcow2', '-F', 'raw', path, truth])
  await rm(truth)
}
