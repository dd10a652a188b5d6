import { ExportServer } from '../../src/nbd/export-server.js'
import type { ReadableDisk } from '../../src/nbd/served-export.js'

/**
 * An NBD export for below a lab domain's image (`over` of LabDiskSpec): reads
 * behind `holdFrom` wait until release(). Whatever reads the domain's disk is
 * so caught in the middle, for as long as a test likes, on any machine.
 */
export class HeldExport implements AsyncDisposable {
  readonly socket: string
  /** Resolves at the first read that has to wait. */
  readonly held: Promise<void>
  readonly #server: ExportServer
  readonly #release: () => void

  private constructor(
    socket: string,
    parts: { readonly server: ExportServer; readonly held: Promise<void>; readonly release: () => void },
  ) {
    this.socket = socket
    this.held = parts.held
    this.#server = parts.server
    this.#release = parts.release
  }

  static async listen(
    socket: string,
    disk: { readonly bytes: Buffer; readonly holdFrom: number },
  ): Promise<HeldExport> {
    const released = signal()
    const held = signal()
    const { bytes, holdFrom } = disk
    const readable: ReadableDisk = {
      size: bytes.length,
      async *extents(from, to) {
        yield { offset: from, length: to - from, kind: 'data' }
      },
      read: async (offset, out) => {
        if (offset + out.length > holdFrom) {
          held.resolve()
          await released.promise
        }
        out.set(bytes.subarray(offset, offset + out.length))
      },
    }
    const exports = [{ name: '', description: 'held', preferredBlock: 65536, disk: readable }]
    const server = await ExportServer.listen({ kind: 'unix', path: socket }, { exports })
    return new HeldExport(socket, { server, held: held.promise, release: released.resolve })
  }

  /** All reads are answered from now on. */
  release(): void {
    this.#release()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#release()
    await this.#server[Symbol.asyncDispose]()
  }
}

function signal(): { readonly promise: Promise<void>; readonly resolve: () => void } {
  let resolve = () => undefined as void
  const promise = new Promise<void>(done => (resolve = done))
  return { promise, resolve }
}
