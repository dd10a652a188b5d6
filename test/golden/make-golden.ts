/**
 * Makes the golden stores of the present format: `node dist/test/golden/make-golden.js DIRECTORY`.
 *
 * Everything comes from seeds and a clock of its own, so that the same program
 * with the same zstd makes the same bytes again. What is in fixtures/ is never
 * made anew: a changed format gets a store beside it.
 */
import { createCipheriv, createHash } from 'node:crypto'
import { mkdirSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'

import type { Clock } from '../../src/base/clock.js'
import type { RandomSource } from '../../src/base/random.js'
import { contentIdOf } from '../../src/jobs/content-id.js'
import { type DiskGeometry, chunkLength } from '../../src/model/disk-tree.js'
import type { PointContents, PointDisk, RecoveryPoint } from '../../src/model/recovery-point.js'
import { KeyRing } from '../../src/store/key-ring.js'
import type { PointDraft, TreeSide } from '../../src/store/store-types.js'
import { Store } from '../../src/store/store.js'
import { MemoryProvider } from '../fakes/memory-provider.js'
import { SimulatedFs } from '../fakes/simulated-fs.js'
import { GOLDEN_PASSPHRASES, goldenBase, memoryDisk, sha256 } from './golden.js'

const ROOT = '/golden'
const CHUNK = 64 * 1024
const START = Date.UTC(2026, 10, 20, 2, 0, 0)
const DATABASE = '6f0c2a1e-8d53-4a97-b1c4-0d6f3e5a7b92'
const EMPTY = '0b9d7c55-1c3e-4f02-9a68-c2d1e0f3a4b5'
/** Two levels of nodes; the last chunk is short. */
const SYSTEM_DISK: DiskGeometry = { size: 300 * CHUNK + 4608, chunkSize: CHUNK }
const CHEAP = { cost: 2 ** 14, blockSize: 8, parallelism: 1 }
const never = new AbortController().signal

/** What a chunk holds: bytes that compress, that do not, zeroes, nothing, or what the image below does. */
type Content = number | 'noise' | 'zero' | 'hole' | 'below'
type Changes = readonly (readonly [index: number, content: Content])[]

/** Bytes from a counter. */
function seededRandom(seed: string): RandomSource {
  let count = 0
  return length => {
    const blocks: Buffer[] = []
    for (let done = 0; done < length; done += 32) {
      blocks.push(createHash('sha256').update(`${seed} ${count++}`).digest())
    }
    return Uint8Array.from(Buffer.concat(blocks).subarray(0, length))
  }
}

/** A minute passes each time it is looked at. */
function fixedClock(): Clock {
  let time = START
  return { now: () => (time += 60_000), monotonic: () => 0, sleep: () => Promise.resolve() }
}

function bytesOf(content: Content, index: number, length: number): Buffer {
  if (typeof content === 'number') {
    const line = `chunk ${index}, version ${content}: what a disk may hold, over and over again\n`
    return Buffer.alloc(length, line)
  }
  if (content !== 'noise') return Buffer.alloc(length)
  const key = createHash('sha256').update(`noise ${index}`).digest()
  return createCipheriv('aes-256-ctr', key, Buffer.alloc(16)).update(Buffer.alloc(length))
}

/** The disk that changes make of one that was all zero, or of `before`. */
function diskAfter(geometry: DiskGeometry, changes: Changes, before?: Buffer): Buffer {
  const disk = Buffer.from(before ?? Buffer.alloc(geometry.size))
  for (const [index, content] of changes) {
    bytesOf(content, index, chunkLength(geometry, index)).copy(disk, index * geometry.chunkSize)
  }
  return disk
}

async function writeDisk(
  draft: PointDraft,
  geometry: DiskGeometry,
  { changes, parent }: { changes: Changes; parent?: TreeSide },
): Promise<PointDisk['root']> {
  const tree = draft.tree(geometry, parent)
  for (const [index, content] of changes) {
    if (content === 'hole') {
      await tree.putRun(index, 1, 'hole')
      continue
    }
    const bytes = bytesOf(content, index, chunkLength(geometry, index))
    await tree.putChunks(Float64Array.of(index), await draft.storeChunks(bytes, Uint32Array.of(0, bytes.length), never))
  }
  return (await tree.finish()).root
}

function diskOf(target: string, size: number, root: PointDisk['root']): PointDisk {
  return {
    target,
    size,
    root,
    mode: 'full',
    source: { path: `/images/${target}.qcow2`, sourceType: 'file', format: 'qcow2', clusterSize: 65536 },
    statistics: { dirtyBytes: size, readBytes: size, newBytes: 0, storedBytes: 0, newChunks: 0, newNodes: 0 },
  }
}

function contentsOf(name: string, uuid: string, rest: Pick<PointContents, 'time' | 'disks' | 'blobs'>): PointContents {
  return {
    ...rest,
    domain: { uuid, name },
    mode: 'full',
    consistency: { kind: 'filesystem', frozenMs: 41 },
    skipped: [{ target: 'sda', reason: 'a CD-ROM' }],
    warnings: [{ code: 'W_CLOCK', message: 'the clock went back by 3 s' }],
    durationMs: 1234,
    tags: ['golden'],
    comment: 'made by make-golden',
    toolVersion: '0.1.0',
  }
}

async function point(store: Store, make: (draft: PointDraft) => Promise<PointContents>): Promise<RecoveryPoint> {
  await using run = await store.runs.begin('golden')
  await using draft = await store.draft(run)
  const made = await draft.commit(await make(draft))
  await run.finish()
  return made
}

const FULL: Changes = [
  [0, 1],
  [1, 'zero'],
  [2, 'noise'],
  [4, 1],
  [127, 1],
  [128, 1],
  [260, 1],
  [300, 1],
]
const INCREMENT: Changes = [
  [0, 2],
  [4, 'zero'],
  [127, 'hole'],
  [299, 2],
  [300, 2],
]
const BLOBS = {
  'domain-inactive.xml': Buffer.from("<domain type='kvm'>\n  <name>datenbank-ä</name>\n</domain>\n"),
  // Too large for one record.
  nvram: Buffer.concat([Buffer.alloc(8 * 1024 * 1024), Buffer.alloc(100_000, 'nvram variable ')]),
  tpm: Buffer.alloc(4096),
}

/**
 * Two points of a domain with a system disk, one of a domain whose disks are
 * all zero or hole. Gives the sums of what was put in, as sumsOf() has them.
 */
async function fill(store: Store, clock: Clock): Promise<string[]> {
  const first = await point(store, async draft => {
    const root = await writeDisk(draft, SYSTEM_DISK, { changes: FULL })
    return contentsOf('datenbank-ä', DATABASE, {
      time: clock.now(),
      disks: [diskOf('vda', SYSTEM_DISK.size, root)],
      blobs: [
        await draft.storeBlob('domain-inactive.xml', BLOBS['domain-inactive.xml']),
        await draft.storeBlob('nvram', BLOBS.nvram, '/var/lib/libvirt/qemu/nvram/db_VARS.fd'),
        await draft.storeBlob('tpm', BLOBS.tpm),
      ],
    })
  })
  const before = first.disks[0]?.root
  if (before === undefined) throw new Error('the first point has no disk')
  const second = await point(store, async draft => {
    const parent = { root: before, geometry: SYSTEM_DISK }
    const root = await writeDisk(draft, SYSTEM_DISK, { parent, changes: INCREMENT })
    const contents = contentsOf('datenbank-ä', DATABASE, {
      time: clock.now(),
      disks: [diskOf('vda', SYSTEM_DISK.size, root)],
      blobs: first.blobs,
    })
    const checkpoint = { name: 'virtvault-0a1b2c3d-golden', xml: '<domaincheckpoint/>', disks: ['vda'] }
    return { ...contents, mode: 'incremental', parent: first.id, checkpoint }
  })
  const empty = await point(store, () =>
    Promise.resolve(
      contentsOf('leer', EMPTY, {
        time: clock.now(),
        disks: [diskOf('vda', 10 * CHUNK, { kind: 'hole' }), diskOf('vdb', 1000, { kind: 'zero' })],
        blobs: [],
      }),
    ),
  )
  await store.points.annotate(first, {
    tags: ['golden', 'kept'],
    hold: { reason: 'an example' },
    verified: { level: 'data', time: START, ok: true },
  })
  const full = diskAfter(SYSTEM_DISK, FULL)
  const sums = [
    `${sha256(full)}  ${first.id}/vda`,
    `${sha256(diskAfter(SYSTEM_DISK, INCREMENT, full))}  ${second.id}/vda`,
    `${sha256(Buffer.alloc(10 * CHUNK))}  ${empty.id}/vda`,
    `${sha256(Buffer.alloc(1000))}  ${empty.id}/vdb`,
  ]
  for (const { id } of [first, second]) {
    for (const [name, bytes] of Object.entries(BLOBS)) sums.push(`${sha256(bytes)}  ${id}/${name}`)
  }
  return sums.sort()
}

/** A full and an incremental point of disks on goldenBase(). */
async function fillBelow(store: Store, clock: Clock): Promise<string[]> {
  const base = goldenBase()
  const below = {
    contentId: await contentIdOf(memoryDisk(base), () => undefined, never),
    images: [
      {
        path: '/images/template.qcow2',
        format: 'qcow2',
        virtualSize: base.length,
        fileBytes: 458752,
        modified: START,
        identity: '64768:131',
      },
      {
        path: '/dev/vg/seed',
        format: 'raw',
        virtualSize: base.length,
        fileBytes: undefined,
        modified: undefined,
        identity: undefined,
      },
    ],
  }
  const edit = async (draft: PointDraft, changes: Changes, parent?: TreeSide) => {
    const tree = draft.tree(SYSTEM_DISK, parent)
    let next = 0
    for (const [index, content] of changes) {
      if (parent === undefined && index > next) await tree.putRun(next, index - next, 'below')
      if (content === 'below' || content === 'hole') {
        await tree.putRun(index, 1, content)
      } else {
        const bytes = bytesOf(content, index, chunkLength(SYSTEM_DISK, index))
        await tree.putChunks(
          Float64Array.of(index),
          await draft.storeChunks(bytes, Uint32Array.of(0, bytes.length), never),
        )
      }
      next = index + 1
    }
    if (parent === undefined) await tree.putRun(next, 301 - next, 'below')
    return (await tree.finish()).root
  }
  const make = async (mode: 'full' | 'incremental', changes: Changes, before?: RecoveryPoint) =>
    await point(store, async draft => {
      const root = before?.disks[0]?.root
      const parent = root === undefined ? undefined : { root, geometry: SYSTEM_DISK }
      const contents = contentsOf('klon', DATABASE, {
        time: clock.now(),
        disks: [
          { ...diskOf('vda', SYSTEM_DISK.size, await edit(draft, changes, parent)), below },
          { ...diskOf('vdb', base.length, { kind: 'below' }), below },
        ],
        blobs: [],
      })
      return { ...contents, mode, parent: before?.id }
    })
  const first = await make('full', BELOW_FULL)
  const second = await make('incremental', BELOW_INCREMENT, first)
  const start = Buffer.alloc(SYSTEM_DISK.size)
  base.copy(start)
  const full = diskAfter(SYSTEM_DISK, BELOW_FULL, start)
  const later = diskAfter(
    SYSTEM_DISK,
    BELOW_INCREMENT.filter(([, content]) => content !== 'below'),
    full,
  )
  for (const [index, content] of BELOW_INCREMENT) {
    if (content === 'below') start.copy(later, index * CHUNK, index * CHUNK, (index + 1) * CHUNK)
  }
  return [
    `${sha256(full)}  ${first.id}/vda`,
    `${sha256(later)}  ${second.id}/vda`,
    `${sha256(base)}  ${first.id}/vdb`,
    `${sha256(base)}  ${second.id}/vdb`,
  ].sort()
}

/** Zeros over data, data over data and over zeros; the last node of the disk is all as below. */
const BELOW_FULL: Changes = [
  [1, 'zero'],
  [2, 'noise'],
  [130, 1],
  [250, 1],
]
/** As below again, and where the image below has ended. */
const BELOW_INCREMENT: Changes = [
  [2, 'below'],
  [5, 'hole'],
  [127, 2],
  [299, 2],
]

async function makeStore(
  kind: 'plain' | 'encrypted' | 'below',
): Promise<{ readonly files: Map<string, Buffer>; readonly sums: string[] }> {
  const fs = new SimulatedFs()
  const parts = { fs, clock: fixedClock(), random: seededRandom(`golden ${kind}`) }
  const [passphrase, second] = GOLDEN_PASSPHRASES
  const encryption = kind !== 'encrypted' ? undefined : { passphrase, label: 'init', cost: CHEAP }
  await Store.init(ROOT, { ...parts, chunkSize: CHUNK, level: 3, encryption })
  if (encryption !== undefined) {
    await using ring = await KeyRing.of(ROOT, { ...parts, cost: CHEAP })
    await ring.unlock(passphrase)
    await ring.add(second, 'zweiter Schlüssel')
  }
  await using store = await Store.open(ROOT, {
    ...parts,
    index: new MemoryProvider(),
    passphrase: { isExpected: kind === 'encrypted', ask: () => Promise.resolve(passphrase) },
  })
  const sums = kind === 'below' ? await fillBelow(store, parts.clock) : await fill(store, parts.clock)
  return { sums, files: fs.files() }
}

const [, , target] = process.argv
if (target === undefined) throw new Error('usage: make-golden DIRECTORY')
for (const kind of ['plain', 'encrypted', 'below'] as const) {
  const { files, sums } = await makeStore(kind)
  for (const [path, bytes] of files) {
    if (path.endsWith('.lock')) continue
    const file = join(target, `store-v1-${kind}`, path.slice(ROOT.length))
    mkdirSync(dirname(file), { recursive: true })
    writeFileSync(file, bytes)
  }
  writeFileSync(join(target, `store-v1-${kind}.sha256`), sums.map(line => `${line}\n`).join(''))
}
