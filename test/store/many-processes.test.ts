import { randomInt, randomUUID } from 'node:crypto'
import { join } from 'node:path'

import t, { type Test } from 'tap'

import { Store } from '../../src/store/store.js'
import { CHUNK } from './harness.js'
import { KilledError, StoreProcess, holderOf } from './store-processes.js'

t.setTimeout(240_000)

const PROCESSES = 8
const SIZE = 200 * CHUNK
/** Of holders, with -9. */
const KILLS = Number(process.env['KILLS'] ?? 10)

async function newStore(t: Test, name = 'store'): Promise<string> {
  const directory = join(t.testdir(), name)
  await Store.init(directory)
  return directory
}

type Seeds = [number, number][]

/** Chunks of which many others have some too. */
function randomSeeds(count: number): Seeds {
  const indices = new Set(Array.from({ length: count }, () => randomInt(SIZE / CHUNK)))
  return [...indices].sort((a, b) => a - b).map(index => [index, 1 + randomInt(2000)])
}

function openAll(directory: string, count: number): Promise<StoreProcess[]> {
  return Promise.all(Array.from({ length: count }, () => StoreProcess.open(directory)))
}

async function endAll(processes: readonly StoreProcess[]): Promise<void> {
  await Promise.all(processes.map(process => process[Symbol.asyncDispose]()))
}

t.test('eight processes that open a new store at once all write to it, and one of them has the index', async t => {
  const directory = await newStore(t)
  const processes = await openAll(directory, PROCESSES)
  t.teardown(() => endAll(processes))

  const pulls = await Promise.all(
    processes.map(process =>
      process.order<{ id: string }>({ kind: 'pull', domain: randomUUID(), size: SIZE, seeds: randomSeeds(100) }),
    ),
  )

  const holder = holderOf(directory)
  t.equal(processes.filter(({ pid }) => pid === holder).length, 1)
  t.strictSame(
    processes.flatMap(({ notices }) => notices),
    [],
  )
  const { points, wrong } = await processes[3]!.order<Check>({ kind: 'check' })
  t.strictSame(points.sort(), pulls.map(({ id }) => id).sort())
  t.strictSame(wrong, [])
})

t.test('what one process stored is not stored again by another', async t => {
  const directory = await newStore(t)
  const [first, second] = await openAll(directory, 2)
  t.teardown(() => endAll([first!, second!]))
  const seeds = randomSeeds(60)

  await first!.order({ kind: 'pull', domain: randomUUID(), size: SIZE, seeds })
  const again = await second!.order<Pulled>({ kind: 'pull', domain: randomUUID(), size: SIZE, seeds })
  const back = await first!.order<Pulled>({ kind: 'pull', domain: randomUUID(), size: SIZE, seeds })

  t.strictSame([again.newChunks, back.newChunks], [0, 0])
})

t.test('pulls, reads and gcs outlive holders that are killed, and every point that is left reads back', async t => {
  const directory = await newStore(t)
  const processes = await openAll(directory, PROCESSES)
  t.teardown(() => endAll(processes))
  const committed: string[] = []
  // A gc refuses a store with packs and no point.
  const seeds = randomSeeds(40)
  const first = await processes[0]!.order<Pulled>({ kind: 'pull', domain: randomUUID(), size: SIZE, seeds })
  const removed = new Set<string>()
  const wrong: string[] = []
  let [kills, sweeps] = [0, 0]

  const work = async (at: number): Promise<void> => {
    while (kills < KILLS) {
      const process = processes[at]!
      try {
        if (at < 5) {
          const order = { kind: 'pull', domain: randomUUID(), size: SIZE, seeds: randomSeeds(40) } as const
          committed.push((await process.order<Pulled>(order)).id)
          if (committed.length % 2 === 0) killHolder()
        } else if (at === 5) {
          const victim = committed.slice(0, -3).find(id => !removed.has(id))
          if (victim !== undefined) removed.add(victim)
          if (await process.order<boolean>({ kind: 'collect', victim })) sweeps++
        } else {
          wrong.push(...(await process.order<Check>({ kind: 'check' })).wrong)
        }
      } catch (error) {
        if (!(error instanceof KilledError)) throw error
        processes[at] = await StoreProcess.open(directory)
      }
    }
  }
  const killHolder = () => {
    const holder = holderOf(directory)
    const victim = processes.find(({ pid, isAlive }) => pid === holder && isAlive)
    if (victim === undefined) return
    kills++
    setTimeout(() => victim.kill(), randomInt(30))
  }
  await Promise.all(processes.map((_, at) => work(at)))

  const fresh = await StoreProcess.open(directory)
  t.teardown(() => endAll([fresh]))
  const check = await fresh.order<Check>({ kind: 'check' })
  t.ok(committed.length >= KILLS, `${committed.length} points`)
  t.strictSame([...wrong, ...check.wrong], [])
  t.strictSame(
    [first.id, ...committed].filter(id => !check.points.includes(id) && !removed.has(id)),
    [],
  )
  t.comment(`${committed.length} points, ${removed.size} removed, ${sweeps} gcs came to their end`)
})

interface Check {
  readonly points: string[]
  readonly wrong: string[]
}

interface Pulled {
  readonly id: string
  readonly newChunks: number
}
