import { spawnSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'

import t from 'tap'

import { requires } from '../harness/requires.js'

const DEMO = fileURLToPath(new URL('../demo/demo.js', import.meta.url))

t.test('the demo pulls, restores and compares without a mismatch', requires('lab'), async t => {
  const { status, stdout, stderr } = spawnSync(process.execPath, ['--enable-source-maps', DEMO], { encoding: 'utf8' })

  t.equal(status, 0, `${stdout}${stderr}`)
  t.match(stdout, /All as it should be/)
  t.equal(stdout.match(/ok {8}qemu-img compare/g)?.length, 8, 'four points of two disks')
})
