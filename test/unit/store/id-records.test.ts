import fc from 'fast-check'
import t from 'tap'

import { IdRecords, PARTITIONS, rangesOf } from '../../../src/store/id-records.js'
import { ID_WORDS } from '../../../src/store/id-table.js'

const WORDS = ID_WORDS + 1

/** An id in a partition, told apart by `number`. */
function idOf(partition: number, number: number): Uint8Array {
  const id = new Uint8Array(32)
  new DataView(id.buffer).setUint16(0, partition << 4)
  new DataView(id.buffer).setUint32(8, number)
  return id
}

/** Every record that a bag gives back, as `partition:number:word`, range after range. */
async function readAll(records: IdRecords, maxRecords: number): Promise<string[]> {
  const found: string[] = []
  for (const range of rangesOf([records], maxRecords)) {
    const words = await records.read(range)
    for (let at = 0; at < words.length; at += WORDS) {
      const view = new DataView(words.buffer, words.byteOffset + at * 4, WORDS * 4)
      const partition = view.getUint16(0) >> 4
      if (partition < range.from || partition >= range.to) throw new Error('a record of another range')
      found.push(`${partition}:${view.getUint32(8)}:${words[at + ID_WORDS]}`)
    }
  }
  return found
}

t.test('what was added comes back, each once and in its range, spilled or not', async t => {
  const partition = fc.oneof(fc.nat(PARTITIONS - 1), fc.constantFrom(0, 1, PARTITIONS - 1))
  await fc.assert(
    fc.asyncProperty(
      fc.array(partition, { maxLength: 400 }),
      fc.nat(5000),
      fc.integer({ min: 1, max: 50 }),
      async (partitions, limit, most) => {
        await using records = new IdRecords(WORDS, limit)
        const added: string[] = []
        for (const [number, where] of partitions.entries()) {
          records.add(idOf(where, number), 0, number * 7)
          added.push(`${where}:${number}:${number * 7}`)
          if (records.isFull) await records.spill()
        }

        const found = await readAll(records, most)

        if (found.length !== partitions.length || records.count !== partitions.length) throw new Error('another count')
        if (found.sort().join() !== added.sort().join()) throw new Error('other records')
      },
    ),
  )
  t.pass()
})

t.test('several may add and spill at once', async t => {
  await using records = new IdRecords(WORDS, 1000)

  await Promise.all(
    Array.from({ length: 8 }, async (_, task) => {
      for (let turn = 0; turn < 20; turn++) {
        for (let one = 0; one < 10; one++)
          records.add(idOf((task * 500 + one) % PARTITIONS, task * 1000 + turn * 10 + one), 0, 1)
        if (records.isFull) await records.spill()
      }
    }),
  )

  t.equal(new Set(await readAll(records, 100)).size, 1600)
})

t.test('ranges hold no more than they may, but for a partition that is larger alone', async t => {
  await using many = new IdRecords(WORDS)
  await using few = new IdRecords(WORDS)
  for (let number = 0; number < 1000; number++) many.add(idOf(number % 10, number), 0, 0)
  for (let number = 0; number < 50; number++) few.add(idOf(3000, number), 0, 0)

  const ranges = [...rangesOf([many, few], 250)]

  t.strictSame(
    ranges.map(range => many.countIn(range) + few.countIn(range)),
    [200, 200, 200, 200, 250],
  )
  t.strictSame([ranges[0]?.from, ranges.at(-1)?.to], [0, PARTITIONS])
  t.ok([...rangesOf([many], 10)].every(({ from, to }) => many.countIn({ from, to }) === 100))
  t.strictSame([...rangesOf([new IdRecords(WORDS)])], [])
})
