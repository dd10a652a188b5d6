import fc from 'fast-check'
import t from 'tap'

import { bytesOf, splitPieces } from '../../../src/nbd/pieces.js'

/** Each byte as "where from, where to". */
function moves(pieces: Float64Array): string[] {
  const found: string[] = []
  for (let i = 0; i < pieces.length; i += 3) {
    for (let k = 0; k < pieces[i + 1]!; k++) found.push(`${pieces[i]! + k}>${pieces[i + 2]! + k}`)
  }
  return found
}

const somePieces = fc
  .array(
    fc.tuple(fc.integer({ min: 0, max: 1000 }), fc.integer({ min: 1, max: 40 }), fc.integer({ min: 0, max: 1000 })),
    {
      maxLength: 8,
    },
  )
  .map(pieces => Float64Array.from(pieces.flat()))

t.test('split pieces move the same bytes in the same order, in no more runs than asked for', async t => {
  fc.assert(
    fc.property(somePieces, fc.integer({ min: 1, max: 5 }), fc.integer({ min: 1, max: 16 }), (pieces, count, unit) => {
      const runs = splitPieces(pieces, count, unit)

      t.ok(runs.length <= count)
      t.same(runs.flatMap(moves), moves(pieces))
    }),
  )
})

t.test('one large piece is shared evenly', async t => {
  const runs = splitPieces(Float64Array.of(0, 4096, 0), 4, 64)

  t.same(runs.map(bytesOf), [1024, 1024, 1024, 1024])
})
