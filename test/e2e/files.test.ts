import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

import t from 'tap'

import { Matrix } from '../harness/matrix.js'
import { requires } from '../harness/requires.js'
import { MIB } from '../lab/fill.js'

const MAIN = fileURLToPath(new URL('../../src/cli/main.cjs', import.meta.url))

t.setTimeout(300_000)

t.test(
  'what a running guest had written and synced comes out of its backups as files, its journal unplayed',
  requires('lab', 'nbdfuse', 'nbdkit', 'fuse2fs', 'e2fsck'),
  async t => {
    await using matrix = await Matrix.start()
    const { lab, puller } = matrix
    const guest = await lab.linuxGuest({
      name: 'web01',
      disks: [{ target: 'vdb', size: 64 * MIB, fileSystem: 'ext4' }],
    })
    await guest.start()
    const folder = (await guest.exec('ls -d /mnt/vd?')).trim()
    const write = `cd ${folder}; mkdir -p deep/er; dd if=/dev/urandom of=deep/er/file bs=64k count=32 2>/dev/null; sync`
    const md5 = `md5sum <${folder}/deep/er/file | cut -c1-32`
    const virtvault = (...args: readonly string[]) => {
      const env = { ...process.env, VIRTVAULT_TARGET: lab.path('store'), VIRTVAULT_RUNTIME_DIR: lab.path('r') }
      // Not in this process's way: it holds the index that the command asks.
      return promisify(execFile)(process.execPath, [MAIN, ...args], { env, maxBuffer: 64 * MIB, encoding: 'buffer' })
    }

    const sums: string[] = []
    for (let round = 0; round < 2; round++) {
      await guest.exec(write)
      sums.push((await guest.exec(md5)).trim())
      await puller.pull(guest.domain)
    }

    for (const [i, ref] of ['~1', 'latest'].entries()) {
      const { stdout } = await virtvault('cp', `web01@${ref}:vdb/deep/er/file`, '-')
      t.equal(createHash('md5').update(stdout).digest('hex'), sums[i], ref)
    }
    t.not(sums[0], sums[1])
    t.match((await virtvault('files', 'web01@latest:vdb/deep')).stdout.toString(), /^er\/$/m)
    await guest.domain.destroy()
  },
)
