import fc from 'fast-check'
import t from 'tap'

import { cutWindows, type RestoreWindow } from '../../../src/jobs/restore-windows.js'
import type { TreeRun } from '../../../src/model/disk-tree.js'

const CHUNK = 4096
const LIMITS = { bytes: 4 * CHUNK, items: 5, zeros: true }

t.test('windows hold every chunk once, in order, within their limits', async () => {
  const kinds = fc.array(fc.tuple(fc.constantFrom('data', 'data', 'zero', 'hole'), fc.integer({ min: 1, max: 9 })), {
    minLength: 1,
    maxLength: 12,
  })
  await fc.assert(
    fc.asyncProperty(kinds, fc.integer({ min: 1, max: CHUNK }), fc.boolean(), async (parts, last, zeros) => {
      const runs: TreeRun[] = []
      let first = 0
      for (const [kind, count] of parts) {
        const ids = Buffer.concat(Array.from({ length: count }, (_, i) => Buffer.alloc(32, first + i)))
        runs.push(kind === 'data' ? { kind, first, count, ids } : { kind, first, count })
        first += count
      }
      const geometry = { size: (first - 1) * CHUNK + last, chunkSize: CHUNK }

      const image = new Map<number, string>()
      let next = 0
      for await (const window of cutWindows(stream(runs), geometry, { ...LIMITS, zeros })) {
        if (window.bytes > LIMITS.bytes) throw new Error('more bytes than a buffer')
        if (window.steps.length > LIMITS.items + 1) throw new Error('more steps than allowed')
        next = play(window, image, next)
      }

      for (const run of runs) {
        for (let chunk = run.first; chunk < run.first + run.count; chunk++) {
          const expected = run.kind === 'data' ? `${chunk & 0xff}` : zeros ? 'zero' : undefined
          if (image.get(chunk) !== expected) throw new Error(`chunk ${chunk}: ${image.get(chunk)}, not ${expected}`)
        }
      }
      if (zeros && next !== geometry.size) throw new Error(`ends at ${next}`)
    }),
  )
})

/** Notes per chunk what its place in the image gets; gives where the window ends. */
function play(window: RestoreWindow, image: Map<number, string>, from: number): number {
  let next = from
  for (const step of window.steps) {
    if (step.kind === 'below') throw new Error('nothing is left out')
    const pieces = step.kind === 'zero' ? [step] : step.pieces
    let at = step.kind === 'zero' ? 0 : step.start
    for (const { offset, length } of pieces) {
      if (offset < next) throw new Error('pieces do not ascend')
      for (let done = 0; done < length; done += CHUNK) {
        const chunk = (offset + done) / CHUNK
        if (step.kind === 'zero') image.set(chunk, 'zero')
        else {
          const piece = [...window.spans].findIndex((start, i) => i % 2 === 0 && start === at + done) / 2
          if (window.chunks[piece] !== chunk) throw new Error('a chunk lies elsewhere in the buffer')
          image.set(chunk, `${window.ids[piece * 32]}`)
        }
      }
      at += length
      next = offset + length
    }
  }
  if (window.end !== next) throw new Error('the window ends elsewhere')
  return next
}

async function* stream<T>(items: readonly T[]): AsyncGenerator<T> {
  yield* items
}
