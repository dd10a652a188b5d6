import t from 'tap'

import { systemClock } from '../../../src/base/clock.js'
import { Paces } from '../../../src/cli/paces.js'
import { readPriority } from '../../../src/cli/priority.js'
import { checkTexts } from '../../../src/config/load.js'
import { resolveJob } from '../../../src/config/resolve.js'

t.test('who is limited by the same line shares a pace, and nobody else', async t => {
  const text = `groups:
  prod: { bwlimit: 10MiB, hosts: ['r:^web', { host: db01, bwlimit: 5MiB }, { host: free, bwlimit: 0 }] }
  lab: { bwlimit: 10MiB, hosts: [lab01] }
`
  const reading = await checkTexts([{ file: 'config.yml', text }])
  const loaded = { ...reading, config: reading.config! }
  const jobs = ['web01', 'web02', 'db01', 'lab01', 'free', 'other'].map(name =>
    resolveJob(loaded, { uuid: `uuid-${name}`, name }, { timeZone: 'UTC', env: {} }),
  )
  const paces = new Paces(systemClock)
  const [web01, web02, db01, lab01, free, other] = jobs.map(job => paces.ofJob(job))

  t.equal(web01?.bytesPerSecond, 10 * 1024 ** 2)
  t.equal(web01, web02)
  t.equal(db01?.bytesPerSecond, 5 * 1024 ** 2)
  t.not(lab01, web01)
  t.strictSame([free, other], [undefined, undefined])
})

t.test('a restore keeps to its flag, else to its target', async t => {
  const paces = new Paces(systemClock)
  const place = { name: 'nas', path: '/x', encryption: { kind: 'none' }, bwlimit: 1000 } as const

  t.equal(paces.ofRestore(undefined, place), paces.ofTarget(place))
  t.equal(paces.ofRestore(7, place)?.bytesPerSecond, 7)
  t.equal(paces.ofRestore(0, place), undefined)
})

t.test('priorities are read as ionice says them', async t => {
  t.equal(readPriority({}), undefined)
  t.strictSame(readPriority({ nice: 10 }), { nice: 10, ioClass: 2, ioLevel: 6 })
  t.strictSame(readPriority({ ionice: 'idle' }), { nice: 0, ioClass: 3, ioLevel: 0 })
  t.strictSame(readPriority({ ionice: 'best-effort' }), { nice: 0, ioClass: 2, ioLevel: 4 })
  t.strictSame(readPriority({ nice: 5, ionice: 'best-effort:7' }), { nice: 5, ioClass: 2, ioLevel: 7 })
  for (const ionice of ['', 'realtime', 'best-effort:8', 'best-effort:', 'idle:1']) {
    t.throws(() => readPriority({ ionice }), { code: 'E_USAGE' })
  }
})
