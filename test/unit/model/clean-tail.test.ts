import fc from 'fast-check'
import t from 'tap'

import type { PlannedRun } from '../../../src/model/chunk-plan.js'
import { CleanTail } from '../../../src/model/clean-tail.js'

const KINDS = {
  'clean data': { kind: 'inherit' },
  'clean zeros': { kind: 'inherit', isZero: true },
  'audited data': { kind: 'read', clean: true },
  'audited zeros': { kind: 'hole', clean: true },
  'dirty data': { kind: 'read' },
  'dirty zeros': { kind: 'zero' },
} as const
type Kind = keyof typeof KINDS

function tailOf(kinds: readonly Kind[]): CleanTail {
  const tail = new CleanTail()
  for (const [first, kind] of kinds.entries()) tail.add({ ...KINDS[kind], first, count: 1 } satisfies PlannedRun)
  return tail
}

const indexesOf = (tail: CleanTail) =>
  tail.runs.flatMap(({ first, count }) => Array.from({ length: count }, (_, i) => first + i))

t.test('the tail is every clean zero behind the last clean data', async () => {
  const disk = fc.array(fc.constantFrom(...(Object.keys(KINDS) as Kind[])), { maxLength: 40 })
  fc.assert(
    fc.property(disk, kinds => {
      const lastData = kinds.findLastIndex(kind => kind === 'clean data' || kind === 'audited data')

      const tail = tailOf(kinds)

      const zeros = [...kinds.keys()].filter(i => i > lastData && /(clean|audited) zeros/.test(kinds[i]!))
      if (JSON.stringify(indexesOf(tail)) !== JSON.stringify(zeros)) throw new Error(indexesOf(tail).join())
      if ((tail.lastData ?? -1) !== lastData) throw new Error(String(tail.lastData))
    }),
  )
})

t.test('a tail in too many pieces becomes longer, never shorter', async t => {
  const pieces = 200_000
  const kinds = Array.from({ length: pieces }, (_, i): Kind => (i % 2 === 0 ? 'clean zeros' : 'dirty data'))

  const tail = tailOf(kinds)

  t.ok(tail.runs.length <= 65_536)
  const covered = new Set(indexesOf(tail))
  t.ok([...kinds.keys()].every(i => kinds[i] !== 'clean zeros' || covered.has(i)))
})
