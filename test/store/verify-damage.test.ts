import t from 'tap'

import type { Clock } from '../../src/base/clock.js'
import { errorCodeOf } from '../../src/base/errors.js'
import { SILENT_PROGRESS } from '../../src/jobs/progress.js'
import { VerifyJob } from '../../src/jobs/verify-job.js'
import { Store } from '../../src/store/store.js'
import { MemoryProvider } from '../fakes/memory-provider.js'
import { SimulatedFs } from '../fakes/simulated-fs.js'
import { CHUNK, type Disk, diskBytes, never, pull, readDisk, sideOf } from './harness.js'

/*
 * Every byte of a small store flipped, one at a time, and every length that its
 * files can be cut to. A sample by default; all with `npm run test:damage`.
 */

const ROOT = '/store'
const IS_FULL = process.env['DAMAGE'] === 'full'
const SAMPLES_PER_FILE = 40
const geometry = { size: 140 * CHUNK, chunkSize: CHUNK }
const DISK: Disk = new Map([
  [0, 1],
  [1, 2],
  [130, 3],
])
const stillClock: Clock = { now: () => 0, monotonic: () => 0, sleep: () => Promise.resolve() }
t.setTimeout(IS_FULL ? 3_600_000 : 300_000)

async function smallStore(): Promise<ReadonlyMap<string, Buffer>> {
  const fs = new SimulatedFs()
  await Store.init(ROOT, { fs })
  await using store = await Store.open(ROOT, { fs, index: new MemoryProvider() })
  const { point } = await pull(store, geometry, DISK)
  await store.points.annotate(point, { tags: ['a'] })
  return fs.files()
}

const original = await smallStore()

/** A store with the same files, one of them changed. */
async function storeWith(path: string, change: (bytes: Buffer) => Buffer): Promise<SimulatedFs> {
  const fs = new SimulatedFs()
  for (const [name, bytes] of original) {
    const folders = name.split('/').slice(1, -1)
    for (let depth = 1; depth <= folders.length; depth++)
      await fs.makeDirectory(`/${folders.slice(0, depth).join('/')}`)
    const file = await fs.createFile(name)
    await file.append(name === path ? change(Buffer.from(bytes)) : bytes)
  }
  for (const folder of ['packs', 'points', 'jobs', 'locks']) await fs.makeDirectory(`${ROOT}/${folder}`)
  return fs
}

interface Outcome {
  /** What reading the disk back came to. */
  readonly restore: 'right' | 'WRONG' | 'refused'
  readonly verify: 'sound' | 'damage' | 'refused'
}

async function outcome(fs: SimulatedFs): Promise<Outcome> {
  let store: Store
  try {
    store = await Store.open(ROOT, { fs, index: new MemoryProvider() })
  } catch (error) {
    if (!['E_DAMAGED', 'E_STORE_FORMAT', 'E_KEY'].includes(errorCodeOf(error))) throw error
    return { restore: 'refused', verify: 'refused' }
  }
  await using _store = store
  const job = new VerifyJob({
    points: store.points,
    verifier: store.verifier(),
    progress: SILENT_PROGRESS,
    clock: stillClock,
  })
  const found = await job.run({ level: 'data', isMeant: () => true }, never)
  const isSound =
    found.hurt.length + found.unreadable.length + found.damagedPacks.length + found.lostIds === 0 && found.points === 1
  let restore: Outcome['restore'] = 'refused'
  try {
    const [point] = await store.points.list()
    if (point !== undefined) {
      restore = (await readDisk(store, sideOf(point))).equals(diskBytes(geometry, DISK)) ? 'right' : 'WRONG'
    }
  } catch (error) {
    if (!['E_DAMAGED', 'E_STORE_FORMAT'].includes(errorCodeOf(error))) throw error
  }
  return { restore, verify: isSound ? 'sound' : 'damage' }
}

/** Offsets to try in a file. */
function offsetsOf(length: number): number[] {
  const step = IS_FULL ? 1 : Math.max(1, Math.floor(length / SAMPLES_PER_FILE))
  const offsets = Array.from({ length: Math.ceil(length / step) }, (_, n) => n * step)
  return [...new Set([...offsets, length - 1])].filter(offset => offset >= 0)
}

/** Notes are no part of what is restored: what is wrong with them is told by list. */
const files = [...original].filter(([name, bytes]) => bytes.length > 0 && !name.endsWith('.notes'))

for (const [path, bytes] of files) {
  const kind = path.slice(path.lastIndexOf('.') + 1)
  for (const [what, change] of [
    ['a flipped byte', (offset: number) => (whole: Buffer) => (whole.writeUInt8(whole[offset]! ^ 0x41, offset), whole)],
    ['a cut', (offset: number) => (whole: Buffer) => whole.subarray(0, offset)],
  ] as const) {
    t.test(
      `${what} anywhere in a ${kind} of ${bytes.length} bytes never restores wrong bytes, and verify sees it`,
      async t => {
        const wrong: string[] = []
        for (const offset of offsetsOf(bytes.length)) {
          const { restore, verify } = await outcome(await storeWith(path, change(offset)))
          if (restore === 'WRONG') wrong.push(`${offset}: other bytes`)
          // What verify calls sound can be restored; what cannot be restored, it finds.
          if (restore !== 'right' && verify === 'sound') wrong.push(`${offset}: verify is silent`)
          if (kind === 'pack' && verify === 'sound') wrong.push(`${offset}: verify overlooks a changed pack`)
        }
        t.strictSame(wrong.slice(0, 20), [])
      },
    )
  }
}
