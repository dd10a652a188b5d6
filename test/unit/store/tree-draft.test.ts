import fc from 'fast-check'
import t from 'tap'

import { collect } from '../../../src/base/async.js'
import { type DiskGeometry, chunkCount } from '../../../src/model/disk-tree.js'
import type { TreeRoot } from '../../../src/model/recovery-point.js'
import type { StoredChunks, TreeSide } from '../../../src/store/store-types.js'
import { TreeEditor } from '../../../src/store/tree-draft.js'
import { lookUpChunks } from '../../../src/store/tree-lookup.js'
import { diffTrees, walkTree } from '../../../src/store/tree-walk.js'
import { MemoryNodes } from '../../fakes/memory-nodes.js'

const CHUNK = 65536

/** What one chunk is: -1 as below, 0 hole, 1 zero, else the number that its id is made of. */
type Flat = number[]

const NUMBERS = { below: -1, hole: 0, zero: 1 } as const

type Change =
  | { readonly kind: 'chunks'; readonly values: readonly (readonly [index: number, value: number])[] }
  | { readonly kind: 'run'; readonly first: number; readonly count: number; readonly state: keyof typeof NUMBERS }

function idOf(value: number): Buffer {
  const id = Buffer.alloc(32, 0xaa)
  id.writeUInt32LE(value)
  return id
}

function stored(values: readonly number[]): StoredChunks {
  return {
    count: values.length,
    ids: Buffer.concat(values.map(value => (value === 1 ? Buffer.alloc(32) : idOf(value)))),
    zero: Uint8Array.from(values, value => (value === 1 ? 1 : 0)),
    newChunks: 0,
    newBytes: 0,
    storedBytes: 0,
  }
}

function geometryOf(chunks: number): DiskGeometry {
  return { size: chunks * CHUNK, chunkSize: CHUNK }
}

async function edit(
  nodes: MemoryNodes,
  geometry: DiskGeometry,
  edits: { readonly changes: readonly Change[]; readonly parent?: TreeSide | undefined },
): Promise<{ root: TreeRoot; newNodes: number }> {
  const tree = new TreeEditor(nodes, geometry, edits.parent)
  for (const change of edits.changes) {
    if (change.kind === 'run') await tree.putRun(change.first, change.count, change.state)
    else
      await tree.putChunks(
        Float64Array.from(change.values, ([index]) => index),
        stored(change.values.map(([, value]) => value)),
      )
  }
  return tree.finish()
}

async function flatten(nodes: MemoryNodes, side: TreeSide, from = 0): Promise<Flat> {
  const flat: Flat = []
  for await (const run of walkTree(nodes, side, from)) {
    if (run.first !== from + flat.length) throw new Error(`a run at ${run.first} where ${from + flat.length} is next`)
    for (let at = 0; at < run.count; at++) {
      flat.push(run.kind === 'data' ? Buffer.from(run.ids).readUInt32LE(32 * at) : NUMBERS[run.kind])
    }
  }
  return flat
}

function apply(flat: Flat, changes: readonly Change[]): Flat {
  const result = [...flat]
  for (const change of changes) {
    if (change.kind === 'run') result.fill(NUMBERS[change.state], change.first, change.first + change.count)
    else for (const [index, value] of change.values) result[index] = value
  }
  return result
}

const STATES = ['below', 'zero', 'hole'] as const

/** Changes that make a disk of holes this one. */
function fromScratch(flat: Flat): Change[] {
  const changes: Change[] = []
  let values: (readonly [number, number])[] = []
  for (const [index, value] of flat.entries()) {
    if (value === 0) continue
    if (value === -1) {
      changes.push({ kind: 'run', first: index, count: 1, state: 'below' })
      values = []
      continue
    }
    if (values.length === 0) changes.push({ kind: 'chunks', values })
    values.push([index, value])
  }
  return changes
}

/** Ascending changes of a disk of `chunks` chunks. */
function changesFor(chunks: number): fc.Arbitrary<Change[]> {
  const cuts = fc.uniqueArray(fc.nat({ max: chunks }), { maxLength: 12 }).map(list => list.sort((a, b) => a - b))
  const seeds = fc.array(fc.nat(), { minLength: 12, maxLength: 12 })
  return fc.tuple(cuts, seeds).map(([at, kinds]) =>
    at.flatMap((first, index): Change[] => {
      const end = at[index + 1] ?? chunks
      const seed = kinds[index % kinds.length]!
      if (end === first) return []
      if (seed % 4 === 0) return []
      if (seed % 4 === 1)
        return [
          { kind: 'run', first, count: 1 + (seed % (end - first)), state: STATES[seed % 5 < 2 ? 0 : (seed % 2) + 1]! },
        ]
      const count = Math.min(end - first, 1 + (seed % 7))
      const values = Array.from({ length: count }, (_, n) => [first + n, 1 + ((seed + n) % 5)] as const)
      return [{ kind: 'chunks', values }]
    }),
  )
}

const sizes = fc.oneof(
  { weight: 8, arbitrary: fc.integer({ min: 1, max: 300 }) },
  { weight: 3, arbitrary: fc.constantFrom(127, 128, 129, 255, 256) },
  { weight: 1, arbitrary: fc.constantFrom(16_383, 16_384, 16_385, 16_500) },
)

t.test('a history of edits, growing and shrinking, reads as the same edits of a flat array', async t => {
  const history = fc
    .array(sizes, { minLength: 1, maxLength: 5 })
    .chain(list => fc.tuple(...list.map(chunks => changesFor(chunks).map(changes => ({ chunks, changes })))))

  await fc.assert(
    fc.asyncProperty(history, async steps => {
      const nodes = new MemoryNodes()
      let flat: Flat = []
      let parent: TreeSide | undefined
      for (const { chunks, changes } of steps) {
        const grown = Array.from({ length: chunks }, (_, index) => flat[index] ?? 0)
        const wanted = apply(grown, changes)
        const geometry = geometryOf(chunks)
        const { root } = await edit(nodes, geometry, { changes, parent })
        const side = { root, geometry }

        if (JSON.stringify(await flatten(nodes, side)) !== JSON.stringify(wanted)) throw new Error('another content')

        // The same content has the same root, however it came about.
        const again = await edit(nodes, geometry, {
          changes: fromScratch(wanted),
        })
        if (JSON.stringify(again.root) !== JSON.stringify(root)) throw new Error('another root for the same content')
        if (again.newNodes !== 0) throw new Error('new nodes for the same content')

        const from = Math.floor(chunks / 3)
        if (JSON.stringify(await flatten(nodes, side, from)) !== JSON.stringify(wanted.slice(from))) {
          throw new Error('another content from the middle')
        }

        if (parent !== undefined) await checkDiff(nodes, { a: parent, b: side, flatA: flat, flatB: wanted })
        flat = wanted
        parent = side
      }
    }),
    { numRuns: 200 },
  )
  t.pass()
})

async function checkDiff(
  nodes: MemoryNodes,
  sides: { readonly a: TreeSide; readonly b: TreeSide; readonly flatA: Flat; readonly flatB: Flat },
): Promise<void> {
  const { a, b, flatA, flatB } = sides
  const found: number[] = []
  for await (const { first, count } of diffTrees(nodes, a, b)) for (let at = 0; at < count; at++) found.push(first + at)
  const content = (flat: Flat, index: number) => (flat[index] === -1 ? -1 : Math.max(1, flat[index] ?? 0))
  const wanted: number[] = []
  for (let index = 0; index < Math.max(flatA.length, flatB.length); index++) {
    if (content(flatA, index) !== content(flatB, index)) wanted.push(index)
  }
  if (JSON.stringify(found) !== JSON.stringify(wanted)) throw new Error('another difference')
}

t.test('an unchanged tree keeps its root, loads nothing and stores nothing', async t => {
  const nodes = new MemoryNodes()
  const geometry = geometryOf(20_000)
  const parent = {
    root: (
      await edit(nodes, geometry, {
        changes: [
          {
            kind: 'chunks',
            values: [
              [3, 7],
              [19_999, 8],
            ],
          },
        ],
      })
    ).root,
    geometry,
  }
  nodes.loaded = 0

  const { root, newNodes } = await edit(nodes, geometry, { changes: [], parent })

  t.strictSame(root, parent.root)
  t.strictSame([newNodes, nodes.loaded], [0, 0])
})

t.test('1,000 scattered changes of a 1 TiB disk cost at most 2 % of a flat list', async t => {
  const nodes = new MemoryNodes()
  const geometry = { size: 2 ** 40, chunkSize: CHUNK }
  const chunks = chunkCount(geometry)
  const values = Array.from({ length: 1000 }, (_, n) => [Math.floor((n * chunks) / 1000) + (n % 97), 2 + n] as const)

  const { root } = await edit(nodes, geometry, { changes: [{ kind: 'chunks', values }] })
  const first = nodes.bytes
  const later = values.map(([index, value]) => [index + 11, value + 5000] as const)
  await edit(nodes, geometry, { changes: [{ kind: 'chunks', values: later }], parent: { root, geometry } })

  t.ok(first <= 0.02 * chunks * 32, `${first} bytes at first`)
  t.ok(nodes.bytes - first <= 0.02 * chunks * 32, `${nodes.bytes - first} bytes of the incremental`)
})

t.test('a disk of 16 TiB that is as the images below has no node, and is no hole', async t => {
  const nodes = new MemoryNodes()
  const geometry = { size: 2 ** 44, chunkSize: CHUNK }

  const { root } = await edit(nodes, geometry, { changes: [{ kind: 'run', first: 0, count: 2 ** 28, state: 'below' }] })
  const hole = { root: { kind: 'hole' }, geometry } as const
  const runs = await collect(walkTree(nodes, { root, geometry }))

  t.strictSame([root, nodes.bytes], [{ kind: 'below' }, 0])
  t.strictSame(runs, [{ kind: 'below', first: 0, count: 2 ** 28 }])
  t.strictSame(await collect(diffTrees(nodes, { root, geometry }, hole)), [{ first: 0, count: 2 ** 28 }])
  const known = await lookUpChunks(nodes, { root, geometry }, Float64Array.of(0, 5))
  t.strictSame([...known.zero], [2, 2])
})

t.test('a disk of 16 TiB that is one hole, or all zero, has no node', async t => {
  const nodes = new MemoryNodes()
  const geometry = { size: 2 ** 44, chunkSize: CHUNK }

  const hole = await edit(nodes, geometry, { changes: [] })
  const zero = await edit(nodes, geometry, { changes: [{ kind: 'run', first: 0, count: 2 ** 28, state: 'zero' }] })

  t.strictSame([hole.root, zero.root, nodes.bytes], [{ kind: 'hole' }, { kind: 'zero' }, 0])
})

t.test('changes out of order, or beyond the disk, are a bug', async t => {
  const nodes = new MemoryNodes()
  const geometry = geometryOf(10)

  await t.rejects(
    edit(nodes, geometry, {
      changes: [
        {
          kind: 'chunks',
          values: [
            [5, 2],
            [4, 3],
          ],
        },
      ],
    }),
    /ascending/,
  )
  await t.rejects(edit(nodes, geometry, { changes: [{ kind: 'run', first: 5, count: 6, state: 'hole' }] }), /within/)
})

t.test('I6: a last chunk that changes its length must come anew', async t => {
  const nodes = new MemoryNodes()
  const small = { size: 10 * CHUNK - 512, chunkSize: CHUNK }
  const large = { size: 12 * CHUNK, chunkSize: CHUNK }
  const parent = {
    root: (await edit(nodes, small, { changes: [{ kind: 'chunks', values: [[9, 7]] }] })).root,
    geometry: small,
  }

  await t.rejects(edit(nodes, large, { changes: [], parent }), /I6/)
  await t.rejects(edit(nodes, large, { changes: [{ kind: 'chunks', values: [[11, 7]] }], parent }), /I6/)
  await t.resolves(edit(nodes, large, { changes: [{ kind: 'chunks', values: [[9, 8]] }], parent }))
})
