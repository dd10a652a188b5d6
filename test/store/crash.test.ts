import t from 'tap'

import { BackupError, errorCodeOf } from '../../src/base/errors.js'
import type { RecoveryPoint } from '../../src/model/recovery-point.js'
import { Store } from '../../src/store/store.js'
import { MemoryProvider } from '../fakes/memory-provider.js'
import { type Loss, PowerCut, SimulatedFs } from '../fakes/simulated-fs.js'
import { CHUNK, type Disk, diskBytes, pull, readDisk, sideOf } from './harness.js'

const ROOT = '/store'
const geometry = { size: 140 * CHUNK, chunkSize: CHUNK }
const FIRST: Disk = new Map([
  [0, 1],
  [1, 2],
  [130, 3],
])
const SECOND: Disk = new Map([...FIRST, [1, 4], [139, 5]])
const THIRD: Disk = new Map([...SECOND, [0, 0], [2, 2]])

/** What a test knows of points, whatever happened: id to content, and which are acknowledged or deleted. */
interface Ledger {
  readonly contents: Map<string, Disk>
  readonly acknowledged: Set<string>
  readonly mayBeGone: Set<string>
}

/** Three pulls, notes, a deletion. */
async function history(fs: SimulatedFs, ledger: Ledger): Promise<void> {
  await Store.init(ROOT, { fs })
  await using store = await Store.open(ROOT, { fs, index: new MemoryProvider() })
  const commit = async (changes: Disk, content: Disk, parent?: RecoveryPoint) => {
    const { point } = await pull(store, geometry, changes, parent)
    ledger.contents.set(point.id, content)
    ledger.acknowledged.add(point.id)
    return point
  }
  const first = await commit(FIRST, FIRST)
  const second = await commit(
    new Map([
      [1, 4],
      [139, 5],
    ]),
    SECOND,
    first,
  )
  await store.points.annotate(first, { tags: ['kept'] })
  ledger.mayBeGone.add(first.id)
  await store.points.remove(first)
  await commit(
    new Map([
      [0, 0],
      [2, 2],
    ]),
    THIRD,
    second,
  )
}

/** Everything listed is whole, everything acknowledged is listed, and the next pull works. */
async function examine(fs: SimulatedFs, ledger: Ledger, provider: MemoryProvider): Promise<string | undefined> {
  let store: Store
  try {
    store = await Store.open(ROOT, { fs, index: provider })
  } catch (error) {
    if (errorCodeOf(error) !== 'E_NO_STORE') throw error
    if (ledger.acknowledged.size > 0) return 'the store is gone'
    await Store.init(ROOT, { fs })
    store = await Store.open(ROOT, { fs, index: provider })
  }
  await using _store = store
  for (const run of await store.runs.dead()) await run.remove()
  const points = await store.points.list()
  for (const id of ledger.acknowledged) {
    if (!ledger.mayBeGone.has(id) && !points.some(point => point.id === id)) return `point ${id} is lost`
  }
  const possible = [FIRST, SECOND, THIRD].map(disk => diskBytes(geometry, disk))
  for (const point of points) {
    const bytes = await readDisk(store, sideOf(point))
    const known = ledger.contents.get(point.id)
    const right =
      known === undefined ? possible.some(one => one.equals(bytes)) : bytes.equals(diskBytes(geometry, known))
    if (!right) return `point ${point.id} has another content`
  }
  const next = await pull(store, geometry, THIRD)
  if (!(await readDisk(store, sideOf(next.point))).equals(diskBytes(geometry, THIRD))) return 'the next pull is wrong'
  return undefined
}

function newLedger(): Ledger {
  return { contents: new Map(), acknowledged: new Set(), mayBeGone: new Set() }
}

/** A small generator, so that a failure can be run again. */
function numbers(seed: number): (choices: number) => number {
  let state = seed * 2654435761 + 1
  return choices => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0
    return Math.floor((state / 2 ** 32) * choices)
  }
}

t.setTimeout(180_000)
const dry = new SimulatedFs()
await history(dry, newLedger())

t.test(
  `a power cut at any of ${dry.syncs} syncs loses no acknowledged point, and every listed one is whole`,
  async t => {
    for (let cut = 0; cut <= dry.syncs; cut++) {
      const losses: Loss[] = ['everything', 'nothing', ...[1, 2].map(seed => numbers(cut * 31 + seed))]
      for (const [way, loss] of losses.entries()) {
        const fs = new SimulatedFs()
        const ledger = newLedger()
        fs.onOperation = ({ syncs, kind }) => {
          if (syncs === cut && (kind === 'sync' || kind === 'syncdir')) fs.powerOff()
          return undefined
        }
        await t.test(`cut ${cut}, loss ${way}`, async t => {
          await history(fs, ledger).catch((error: unknown) => {
            if (!isPowerCut(error)) throw error
          })
          fs.powerOff()

          t.equal(await examine(fs.afterPowerCut(loss), ledger, new MemoryProvider()), undefined)
        })
      }
    }
  },
)

t.test('a power cut with an index that knows more than the disk has is as harmless', async t => {
  for (let cut = 0; cut <= dry.syncs; cut += 2) {
    const fs = new SimulatedFs()
    const ledger = newLedger()
    const provider = new MemoryProvider()
    fs.onOperation = ({ syncs, kind }) => {
      if (syncs === cut && (kind === 'sync' || kind === 'syncdir')) fs.powerOff()
      return undefined
    }
    await historyWith(fs, ledger, provider).catch((error: unknown) => {
      if (!isPowerCut(error)) throw error
    })
    fs.powerOff()

    t.equal(await examine(fs.afterPowerCut('everything'), ledger, provider), undefined, `cut ${cut}`)
  }
})

t.test(`a full disk at any of ${dry.operations} changes fails the pull and hurts no point`, async t => {
  for (let at = 0; at < dry.operations; at++) {
    {
      const sticky = at % 2 === 0
      const fs = new SimulatedFs()
      const ledger = newLedger()
      fs.onOperation = ({ count, kind }) => {
        const takesSpace = kind !== 'remove'
        const hit = sticky ? count >= at : count === at
        return hit && takesSpace ? new BackupError('E_NO_SPACE', 'no space left') : undefined
      }
      let failure: unknown
      await history(fs, ledger).catch((error: unknown) => (failure = error))
      fs.onOperation = undefined

      const litter = [...fs.files().keys()].filter(name => /\.tmp-|\.lease$/.test(name))
      t.strictSame(litter, [], `${at}: nothing is left lying about`)
      if (failure !== undefined) t.equal(errorCodeOf(failure), 'E_NO_SPACE', `${at}: the failure is named`)
      t.equal(await examine(fs, ledger, new MemoryProvider()), undefined, `${at}, sticky ${sticky}`)
    }
  }
})

async function historyWith(fs: SimulatedFs, ledger: Ledger, provider: MemoryProvider): Promise<void> {
  await Store.init(ROOT, { fs })
  await using store = await Store.open(ROOT, { fs, index: provider })
  const { point } = await pull(store, geometry, FIRST)
  ledger.contents.set(point.id, FIRST)
  ledger.acknowledged.add(point.id)
  const second = await pull(store, geometry, SECOND)
  ledger.contents.set(second.point.id, SECOND)
  ledger.acknowledged.add(second.point.id)
}

function isPowerCut(error: unknown): boolean {
  return (
    error instanceof PowerCut ||
    (error instanceof Error && error.cause instanceof PowerCut) ||
    (error instanceof Error && error.name === 'SuppressedError')
  )
}
