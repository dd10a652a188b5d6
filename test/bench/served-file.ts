import { join } from 'node:path'

import { run } from '../lab/run-program.js'

/** A raw file as an NBD export by qemu-nbd. */
export class ServedFile {
  readonly socket: string
  readonly #path: string
  readonly #pidFile: string

  constructor(path: string, folder: string) {
    this.#path = path
    this.socket = join(folder, 'nbd.sock')
    this.#pidFile = join(folder, 'nbd.pid')
  }

  async during<T>(work: () => Promise<T>): Promise<T> {
    const how = [
      '-r',
      '-t',
      '-e',
      '8',
      '-f',
      'raw',
      '-k',
      this.socket,
      '-x',
      'vda',
      '--fork',
      `--pid-file=${this.#pidFile}`,
    ]
    await run('qemu-nbd', [...how, this.#path])
    try {
      return await work()
    } finally {
      await run('bash', ['-c', `kill "$(cat '${this.#pidFile}')"; rm -f '${this.socket}'`])
    }
  }
}
