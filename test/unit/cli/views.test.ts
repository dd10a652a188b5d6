import t from 'tap'

import { BackupError } from '../../../src/base/errors.js'
import { renderRows, renderTable } from '../../../src/cli/output.js'
import { pullDocument, pullSummary } from '../../../src/cli/pull-view.js'
import { targetPlace } from '../../../src/cli/targets.js'
import type { DomainOutcome } from '../../../src/jobs/pull-domains.js'
import type { RecoveryPoint } from '../../../src/model/recovery-point.js'

const MiB = 1024 ** 2

function point(name: string, fields: Partial<RecoveryPoint> = {}): RecoveryPoint {
  return {
    id: '91be7d0'.padEnd(32, '0'),
    storeId: '0'.repeat(32),
    sequence: 2,
    runId: 'r',
    domain: { uuid: '11111111-2222-3333-4444-555555555555', name },
    time: Date.UTC(2026, 10, 20),
    mode: 'incremental',
    consistency: { kind: 'filesystem', frozenMs: 110 },
    disks: [
      {
        target: 'vda',
        size: 1024 * MiB,
        root: { kind: 'zero' },
        mode: 'incremental',
        source: { path: '/x', sourceType: 'file', format: 'qcow2' },
        statistics: {
          dirtyBytes: 5 * MiB,
          readBytes: 4 * MiB,
          newBytes: 3 * MiB,
          storedBytes: 2 * MiB,
          newChunks: 48,
          newNodes: 2,
        },
      },
    ],
    skipped: [],
    blobs: [],
    parent: 'p',
    warnings: [],
    durationMs: 100,
    tags: [],
    toolVersion: '0',
    ...fields,
  }
}

const made = (name: string): DomainOutcome => ({
  status: 'success',
  domain: { uuid: `uuid of ${name}`, name },
  target: 'nas',
  point: point(name),
  warnings: [{ code: 'W_CHAIN', message: 'bitmap lost' }],
  durationMs: 81_000,
})
const failed = (name: string, code: 'E_AGENT' | 'E_LOCKED' | 'E_INTERRUPTED'): DomainOutcome => ({
  status: 'failed',
  domain: { uuid: `uuid of ${name}`, name },
  target: 'nas',
  error: new BackupError(code, `${name} failed`),
  durationMs: 5,
})
const run = (outcomes: DomainOutcome[], interrupted?: number) => ({
  outcomes,
  targets: ['nas'],
  started: 0,
  durationMs: 208_400,
  interrupted,
})

t.test('the summary has a line per domain, its remarks below, and one line for all', async t => {
  t.strictSame(pullSummary(run([made('db01'), failed('web02', 'E_AGENT')])), [
    'db01   @91be7d0  incremental  read 4.0 MiB  new 3.0 MiB  stored 2.0 MiB  frozen 0.11s  1m21s',
    '    ! W_CHAIN bitmap lost',
    'web02  -         failed          [E_AGENT]',
    '    Error: web02 failed  [E_AGENT]',
    '      More: virtvault help E_AGENT',
    '1 point on nas, 1 failed, 1 warning, 3m28s, 2.0 MiB written.',
  ])
})

t.test('the document counts and has bytes as integers', async t => {
  t.match(pullDocument(run([made('db01'), failed('web02', 'E_AGENT')])), {
    schema: 'virtvault/backup_pull/1',
    ok: false,
    status: 'partial',
    exit: 3,
    seconds: 208.4,
    totals: { domains: 2, points: 1, warnings: 1, failed: 1, read_bytes: 4 * MiB, stored_bytes: 2 * MiB },
    results: [
      { domain: 'db01', status: 'success', frozen_seconds: 0.11, disks: [{ target: 'vda', dirty_bytes: 5 * MiB }] },
      { domain: 'web02', status: 'failed', error: { code: 'E_AGENT', exit: 6 } },
    ],
  })
})

t.test('the exit code of several domains is that of UX', async t => {
  t.match(pullDocument(run([made('a'), made('b')])), { ok: true, status: 'success', exit: 0 })
  t.match(pullDocument(run([failed('a', 'E_AGENT'), failed('b', 'E_AGENT')])), { status: 'failed', exit: 6 })
  t.match(pullDocument(run([failed('a', 'E_AGENT'), failed('b', 'E_LOCKED')])), { status: 'failed', exit: 1 })
  t.match(pullDocument(run([made('a'), failed('b', 'E_INTERRUPTED')], 143)), { status: 'partial', exit: 143 })
  t.match(pullDocument(run([made('a')], 130)), { exit: 0 }, 'a signal that came too late changed nothing')
})

t.test('a table lines up, also with wide letters, and has no blanks at the end', async t => {
  t.strictSame(
    renderTable(
      [{ title: 'A' }, { title: 'N', align: 'right' }, { title: 'T' }],
      [
        ['żółw', '1', ''],
        ['b', '22', 'x'],
      ],
    ),
    ['A      N  T', 'żółw   1', 'b     22  x'],
  )
  t.strictSame(renderTable([{ title: 'A' }], []), [])
  t.strictSame(renderRows([['a\nb']]), ['a\\x0ab'])
})

t.test('a target with a slash is a place, one without is a name of the configuration', async t => {
  const config = { targets: { nas: { path: '/srv/nas', index_dir: '/fast' }, off: { s3: { bucket: 'b' } } } }

  t.match(targetPlace('/srv/x', {}), { path: '/srv/x', name: '/srv/x' })
  t.equal(targetPlace('file:///srv/x%20y', {}).path, '/srv/x y')
  t.match(targetPlace('./x', {}).path, /^\/.*\/x$/)
  t.match(targetPlace('nas', config), { path: '/srv/nas', indexDirectory: '/fast', name: 'nas' })
  t.throws(() => targetPlace('nsa', config), { code: 'E_NOT_FOUND', message: /Did you mean "nas"/ })
  t.throws(() => targetPlace('off', config), { code: 'E_UNSUPPORTED' })
  t.throws(() => targetPlace('s3://key:secret@bucket/x', {}), { code: 'E_UNSUPPORTED', message: /key:\*\*\*@/ })
  t.throws(() => targetPlace('file://host/x', {}), { code: 'E_USAGE' })
})

t.test('without a name the default target counts, then the only one', async t => {
  const targets = { nas: { path: '/srv/nas' }, usb: { path: '/mnt/usb' } }

  t.equal(targetPlace(undefined, { targets, default: { target: 'usb' } }).name, 'usb')
  t.equal(targetPlace(undefined, { targets: { nas: targets.nas } }).name, 'nas')
  t.throws(() => targetPlace(undefined, { targets }), { code: 'E_USAGE', why: /several/ })
  t.throws(() => targetPlace(undefined, {}), { code: 'E_USAGE' })
})
