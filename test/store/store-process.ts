/**
 * A process of its own that uses a store as told, one message at a time; the
 * other end of store-processes.ts.
 */
import { systemClock } from '../../src/base/clock.js'
import { errorCodeOf } from '../../src/base/errors.js'
import { INDEX_VALUE_BYTES } from '../../src/format/index-value.js'
import { ID_BYTES } from '../../src/format/record.js'
import { GcJob } from '../../src/jobs/gc-job.js'
import { SILENT_PROGRESS } from '../../src/jobs/progress.js'
import { Store } from '../../src/store/store.js'
import { CHUNK, contentsOf, diskBytes, never, putDisk, readDisk, sideOf } from './harness.js'

export type Order =
  | { readonly kind: 'open'; readonly directory: string; readonly indexDirectory?: string }
  /** Stores these chunks as a new point of a domain of its own. */
  | { readonly kind: 'pull'; readonly domain: string; readonly size: number; readonly seeds: [number, number][] }
  /** Whether every point of the store reads back as its comment says. */
  | { readonly kind: 'check' }
  /** Looks a batch of ids up, `times` times; gives the milliseconds of each. */
  | { readonly kind: 'look'; readonly ids: string; readonly times: number }
  /** Enters places that nobody checks. */
  | { readonly kind: 'put'; readonly ids: string }
  /** Deletes a point, and what it alone needed; says whether a gc came to its end. */
  | { readonly kind: 'collect'; readonly victim: string | undefined }
  /** The points, without their bytes. */
  | { readonly kind: 'list' }
  | { readonly kind: 'rebuild' }
  | { readonly kind: 'close' }

export interface Report {
  readonly failure?: string
  readonly notices: readonly string[]
  readonly result?: unknown
}

let store: Store | undefined
const notices: string[] = []

async function obey(order: Order): Promise<unknown> {
  if (order.kind === 'open') {
    store = await Store.open(order.directory, {
      indexDirectory: order.indexDirectory,
      onNotice: ({ message }) => notices.push(message),
    })
    return undefined
  }
  if (store === undefined) throw new Error('no store is open')
  switch (order.kind) {
    case 'pull':
      return await pull(store, order)
    case 'check':
      return await check(store)
    case 'look': {
      const ids = Buffer.from(order.ids, 'base64')
      const times: number[] = []
      let found = 0
      for (let time = 0; time < order.times; time++) {
        const start = systemClock.monotonic()
        const values = await store.index.use(index => index.getMany(ids))
        times.push(systemClock.monotonic() - start)
        found = 0
        for (let at = 0; at < ids.length / ID_BYTES; at++) {
          const value = values.subarray(at * INDEX_VALUE_BYTES, (at + 1) * INDEX_VALUE_BYTES)
          if (value.some(byte => byte !== 0)) found++
        }
      }
      return { times, found }
    }
    case 'put': {
      const ids = Buffer.from(order.ids, 'base64')
      const values = new Uint8Array((ids.length / ID_BYTES) * INDEX_VALUE_BYTES).fill(1)
      await store.index.use(index => index.putBatch({ ids, values, packs: [] }))
      return undefined
    }
    case 'collect':
      return await collect(store, order.victim)
    case 'list':
      return (await store.points.list()).map(({ id }) => id)
    case 'rebuild':
      return await store.index.rebuild()
    case 'close':
      await store[Symbol.asyncDispose]()
      return undefined
  }
}

async function pull(open: Store, order: Order & { kind: 'pull' }): Promise<unknown> {
  const geometry = { size: order.size, chunkSize: CHUNK }
  await using run = await open.runs.begin('pull')
  await using draft = await open.draft(run)
  const { root, newChunks } = await putDisk(draft, geometry, order.seeds)
  const contents = contentsOf(geometry, root)
  const point = await draft.commit({
    ...contents,
    domain: { uuid: order.domain, name: 'web01' },
    comment: JSON.stringify(order.seeds),
  })
  await run.finish()
  return { id: point.id, newChunks }
}

async function collect(open: Store, victim: string | undefined): Promise<boolean> {
  const point = victim === undefined ? undefined : await open.points.get(victim)
  if (point !== undefined) await open.points.remove(point)
  const job = new GcJob({
    collector: open.collector(),
    progress: SILENT_PROGRESS,
    clock: systemClock,
    confirmMuch: () => Promise.resolve(),
  })
  const swept = await job.run({ drainMs: 20_000 }, never).catch((error: unknown) => {
    // Another gc, or a pull that takes its time: nothing was deleted.
    if (!['E_LOCKED', 'E_TIMEOUT'].includes(errorCodeOf(error))) throw error
    return undefined
  })
  return swept !== undefined
}

async function check(open: Store): Promise<unknown> {
  // Its lease keeps a gc from what is read here.
  await using run = await open.runs.begin('check')
  await using _ = { [Symbol.asyncDispose]: () => run.finish() }
  const points = await open.points.list()
  const wrong: string[] = []
  for (const point of points) {
    const side = sideOf(point)
    const expected = diskBytes(side.geometry, new Map(JSON.parse(point.comment ?? '[]') as [number, number][]))
    if (!(await readDisk(open, side)).equals(expected)) wrong.push(point.id)
  }
  return { points: points.map(({ id }) => id), wrong }
}

process.on('message', (order: Order) => {
  void obey(order).then(
    result => process.send?.({ notices: notices.splice(0), result } satisfies Report),
    (error: unknown) =>
      process.send?.({
        notices: notices.splice(0),
        failure: error instanceof Error ? (error.stack ?? error.message) : String(error),
      } satisfies Report),
  )
})
