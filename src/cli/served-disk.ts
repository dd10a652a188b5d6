import { disposeAll } from '../base/async.js'
import type { ExportImage } from '../image/export-image.js'
import type { DiskToOpen, OpenedDisk } from '../jobs/rollback-job.js'
import type { ExportReader } from '../nbd/export-reader.js'

/** What serves the image, here or on another machine, and how to connect to it. */
export interface DiskServer extends AsyncDisposable {
  /** Rejects with E_IO where what was written may not be in the image. */
  stop(): Promise<void>
  openReader(): Promise<ExportReader>
  /** `size`: what the reader says. */
  openWriter(size: number): Promise<ExportImage>
}

/**
 * Starts what serves an image, and connects for its extents, and to write where
 * that is asked for. Disposing, or a failure, ends all of it and what is in
 * `undo`, last first. Rejects as the server does.
 */
export async function openServedDisk(
  { writable }: Pick<DiskToOpen, 'writable'>,
  start: () => Promise<DiskServer>,
  undo: AsyncDisposable[] = [],
): Promise<OpenedDisk> {
  try {
    const server = await start()
    undo.push(server)
    const reader = await server.openReader()
    undo.push(reader)
    const writer = writable ? await server.openWriter(reader.size) : undefined
    if (writer !== undefined) undo.push(writer)
    return {
      size: reader.size,
      extents: until => reader.extents(until),
      writer,
      close: async () => {
        await writer?.[Symbol.asyncDispose]()
        await reader[Symbol.asyncDispose]()
        await server.stop()
      },
      [Symbol.asyncDispose]: () => disposeAll(undo),
    }
  } catch (error) {
    await disposeAll(undo)
    throw error
  }
}
