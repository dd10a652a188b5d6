import { Buffer } from 'node:buffer'

import { invariant } from '../base/invariant.js'
import type { ImageWriter, ResumePort } from '../image/image-writer.js'
import type { StorePort } from '../store/store-types.js'
import type { RestoreStep, RestoreWindow } from './restore-windows.js'

const ID_BYTES = 32

/** What a chunk of a window needs to be read from the store, all spans within the window's own buffer. */
export type MissingChunks = Pick<RestoreWindow, 'ids' | 'chunks' | 'spans' | 'bytes'>

/**
 * Writes one window into an image that an interrupted restore has left, but for
 * what is there: what the file holds is named as the store would name it, and
 * has to have the names that the disk tree says. So whatever happened to the
 * file meanwhile, the image is right. `readMissing` reads chunks from the store
 * into the buffer. Resolves to whether all of the window was there.
 */
export async function recallWindow(
  to: { readonly identify: StorePort['identify']; readonly image: ImageWriter; readonly resume: ResumePort },
  place: { readonly window: RestoreWindow; readonly buffer: Uint8Array },
  readMissing: (chunks: MissingChunks) => Promise<void>,
  signal: AbortSignal,
): Promise<boolean> {
  const { window, buffer } = place
  let isAllThere = true
  for (const step of window.steps) {
    invariant(step.kind !== 'below', 'what lies on other images is restored in one go')
    if (step.kind === 'zero') {
      await to.image.zero(step.offset, step.length, signal)
      continue
    }
    const chunks = chunksOf(window, step)
    const settle = async () => {
      const { ids, zero } = await to.identify(buffer.subarray(0, window.bytes), chunks.spans)
      if (zero.every(flag => flag === 0) && Buffer.compare(ids, chunks.ids) === 0) return true
      await readMissing(chunks)
      return false
    }
    const bytes = buffer.subarray(step.start, step.start + step.length)
    if (!(await to.resume.recall(step.pieces, bytes, settle, signal))) isAllThere = false
  }
  return isAllThere
}

/** Those of one step, which lie side by side in the buffer. */
function chunksOf(window: RestoreWindow, step: RestoreStep & { readonly kind: 'data' }): MissingChunks {
  const { spans } = window
  const end = step.start + step.length
  let first = 0
  while ((spans[first * 2] ?? end) < step.start) first++
  let behind = first
  while ((spans[behind * 2] ?? end) < end) behind++
  return {
    ids: window.ids.subarray(first * ID_BYTES, behind * ID_BYTES),
    chunks: window.chunks.subarray(first, behind),
    spans: spans.subarray(first * 2, behind * 2),
    bytes: window.bytes,
  }
}
