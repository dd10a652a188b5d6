import { spawnSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'

import t, { type Test } from 'tap'

const RUNNER = fileURLToPath(new URL('../../run.js', import.meta.url))

const PASSING = `console.log('TAP version 14\\nok 1 - a\\nok 2 - b\\n1..2')`
const SKIPPING = `console.log('TAP version 14\\nok 1 - a\\nok 2 - b # SKIP needs nbdkit\\n1..2')`

/** Runs the runner over these files; its last line and exit code. */
function runOver(t: Test, files: Record<string, string>, env: Record<string, string> = {}) {
  const folder = t.testdir(Object.fromEntries(Object.entries(files).map(([name, text]) => [`${name}.test.mjs`, text])))
  const { CI: _ci, REQUIRE_ALL: _all, ...inherited } = process.env
  const result = spawnSync(process.execPath, [RUNNER, `--root=${folder}`], {
    env: { ...inherited, ...env },
    encoding: 'utf8',
  })
  return { code: result.status, last: result.stdout.trimEnd().split('\n').at(-1), text: result.stdout }
}

t.test('tests that pass are counted, and the exit code is 0', async t => {
  const { code, last } = runOver(t, { one: PASSING, two: PASSING })

  t.equal(last, '4 passed, 0 failed, 0 skipped')
  t.equal(code, 0)
})

t.test('a skip is named, and counts as a failure only where nothing may be skipped', async t => {
  const { code, last, text } = runOver(t, { one: SKIPPING })
  t.equal(last, '1 passed, 0 failed, 1 skipped')
  t.match(text, /SKIP .*needs nbdkit/)
  t.equal(code, 0)

  t.equal(runOver(t, { one: SKIPPING }, { REQUIRE_ALL: '1' }).code, 1)
  t.equal(runOver(t, { one: SKIPPING }, { CI: 'true' }).code, 1)
})

t.test('no test at all is a failure', async t => {
  t.equal(runOver(t, {}).code, 1)
})

const FAILURES: readonly (readonly [name: string, file: string, shown: RegExp])[] = [
  [
    'an assertion that fails',
    `console.log('TAP version 14\\nnot ok 1 - a\\n  ---\\n  why: b\\n  ...\\n1..1')`,
    /why: b/,
  ],
  ['fewer tests than planned', `console.log('TAP version 14\\nok 1 - a\\n1..2')`, /plan|broken TAP/i],
  ['an exit code without a failed assertion', `${PASSING}; process.exit(3)`, /exit code 3/],
  ['a file that dies by a signal', `${PASSING}; process.kill(process.pid, 'SIGKILL')`, /signal SIGKILL/],
  ['a file without tests', `console.error('nothing here')`, /nothing here/],
  ['a file that cannot be loaded', `import './missing.js'`, /missing\.js/],
  ['a bail out', `console.log('TAP version 14\\nok 1 - a\\nBail out! no disk')`, /no disk/],
]

for (const [name, file, shown] of FAILURES) {
  t.test(`${name} is a failure, shown in full`, async t => {
    const { code, last, text } = runOver(t, { good: PASSING, bad: file })

    t.equal(code, 1)
    t.match(last ?? '', /^\d+ passed, [1-9]\d* failed, \d+ skipped$/)
    t.match(text, shown)
  })
}
