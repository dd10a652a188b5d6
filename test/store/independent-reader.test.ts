import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

import t from 'tap'

import { Store } from '../../src/store/store.js'
import { requires } from '../harness/requires.js'
import { CHUNK, pull, readDisk, sideOf } from './harness.js'

const run = promisify(execFile)
const READER = fileURLToPath(new URL('../../../test/independent/read_store.py', import.meta.url))

t.test('a reader written from docs/format.md alone restores the same bytes', requires('python3', 'zstd'), async t => {
  const directory = join(t.testdir(), 'store')
  const geometry = { size: 300 * CHUNK - 777, chunkSize: CHUNK }
  const first = [
    [0, 1],
    [1, 0],
    [129, 4],
    [299, 5],
  ] as const
  const ours: string[] = []
  await Store.init(directory)
  await using store = await Store.open(directory)
  const { point } = await pull(store, geometry, first)
  await pull(
    store,
    geometry,
    [
      [2, 7],
      [129, -1],
    ],
    point,
  )
  for (const { sequence, disks, ...rest } of await store.points.list()) {
    const bytes = await readDisk(store, sideOf({ ...rest, sequence, disks }))
    ours.push(`${sequence} ${disks[0]!.target} ${createHash('sha256').update(bytes).digest('hex')}`)
  }

  const { stdout } = await run('python3', [READER, directory])

  t.strictSame(stdout.trim().split('\n'), ours)
  t.equal(new Set(ours).size, 2)
})
