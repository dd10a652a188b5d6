import { type FileHandle, mkdtemp, open, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import { invariant } from '../base/invariant.js'

/** For large temporary files, file-hierarchy(7): /tmp is often memory. */
const LARGE_FILES = '/var/tmp'

/** A temporary file: written once, read back, gone when disposed. Nothing here needs to survive anything. */
export class SpillFile implements AsyncDisposable {
  readonly #directory: string
  readonly #handle: FileHandle
  #size = 0

  private constructor(directory: string, handle: FileHandle) {
    this.#directory = directory
    this.#handle = handle
  }

  /** Where $TMPDIR says, else in /var/tmp. Rejects with what the system says. */
  static async create(): Promise<SpillFile> {
    const directory = await makeDirectory()
    try {
      return new SpillFile(directory, await open(join(directory, 'ids'), 'wx+', 0o600))
    } catch (error) {
      await rm(directory, { recursive: true, force: true })
      throw error
    }
  }

  /** Gives the offset that the bytes got. One call at a time. */
  async append(bytes: Uint8Array): Promise<number> {
    const offset = this.#size
    for (let done = 0; done < bytes.length; ) {
      const { bytesWritten } = await this.#handle.write(bytes, done, bytes.length - done, offset + done)
      invariant(bytesWritten > 0, 'a file takes bytes or refuses them')
      done += bytesWritten
    }
    this.#size += bytes.length
    return offset
  }

  /** Fills `into`. */
  async read(into: Uint8Array, offset: number): Promise<void> {
    for (let done = 0; done < into.length; ) {
      const { bytesRead } = await this.#handle.read(into, done, into.length - done, offset + done)
      invariant(bytesRead > 0, 'a temporary file keeps what was written to it')
      done += bytesRead
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#handle.close()
    await rm(this.#directory, { recursive: true, force: true })
  }
}

async function makeDirectory(): Promise<string> {
  const place = tmpdir()
  if (place !== '/tmp') return await mkdtemp(join(place, 'virtvault-ids-'))
  return await mkdtemp(join(LARGE_FILES, 'virtvault-ids-')).catch(() => mkdtemp(join(place, 'virtvault-ids-')))
}
