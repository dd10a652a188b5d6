import { chmodSync } from 'node:fs'
import { join } from 'node:path'

import t from 'tap'

import { lookAtDirectory } from '../../../src/libvirt/doctor-host.js'

const QEMU = { uid: 64055, gid: 64055 }

t.test('a directory that QEMU’s user cannot reach is told with the parent that is closed', async t => {
  const folder = t.testdir({ closed: { open: {} } })
  const closed = join(folder, 'closed')
  chmodSync(closed, 0o700)
  const wanted = join(closed, 'open', 'not-there')

  const found = await lookAtDirectory(wanted, 'scratch', QEMU)

  t.match(found, {
    existing: join(closed, 'open'),
    obstacle: `QEMU's user (64055:64055) may not pass through ${closed}`,
  })
  t.ok(found.free > 0)
})

t.test('root’s QEMU, and a session’s, reach everything that we do', async t => {
  const folder = t.testdir({ closed: {} })
  chmodSync(join(folder, 'closed'), 0o700)

  t.equal((await lookAtDirectory(join(folder, 'closed'), 'runtime', { uid: 0, gid: 0 })).obstacle, undefined)
  t.equal((await lookAtDirectory(join(folder, 'closed'), 'runtime', undefined)).obstacle, undefined)
})
