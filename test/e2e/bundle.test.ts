import { spawnSync } from 'node:child_process'
import { copyFileSync, mkdirSync, readFileSync, utimesSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import t from 'tap'

import type { Bundled } from '../../src/cli/bundled.cjs'

const ROOT = fileURLToPath(new URL('../../..', import.meta.url))
const CLI = join(ROOT, 'dist/src/cli')
/** The one under flags of its own last: they are the process's. */
const BUNDLES = ['front', 'guardian-main', 'program']

function run(main: string, args: readonly string[]) {
  return spawnSync(process.execPath, [main, ...args], { encoding: 'utf8' })
}

/** An installed program that has bundles and none of the modules that they were made of. */
function withoutModules(folder: string): { readonly main: string; readonly record: string } {
  const cli = join(folder, 'dist/src/cli')
  mkdirSync(cli, { recursive: true })
  copyFileSync(join(ROOT, 'package.json'), join(folder, 'package.json'))
  const files = [
    'main.cjs',
    'bundled.cjs',
    ...BUNDLES.flatMap(name => [`${name}.bundle.cjs`, `${name}.bundle.cjs.compiled`]),
  ]
  for (const file of files) copyFileSync(join(CLI, file), join(cli, file))
  return { main: join(cli, 'main.cjs'), record: join(folder, 'dist/.tsbuildinfo') }
}

t.test('the executable runs its bundles and needs none of the modules', async t => {
  const { main } = withoutModules(t.testdir())

  t.match(run(main, ['--version']), { status: 0, stdout: /^virtvault \d/ })
  t.match(run(main, ['backup', 'pull', '--help']), { status: 0, stdout: /--quiesce/ })
})

t.test('modules that were compiled after the bundle are run instead of it', async t => {
  const { main, record } = withoutModules(t.testdir())
  writeFileSync(record, '')
  const later = Date.now() / 1000 + 60
  utimesSync(record, later, later)

  t.match(run(main, ['--version']), { status: 1, stderr: /Cannot find module .*front\.js/ })
})

for (const name of BUNDLES) {
  t.test(`V8 takes the compiled code of ${name}`, async t => {
    const bundled = createRequire(import.meta.url)('../../src/cli/bundled.cjs') as Bundled
    const file = join(CLI, `${name}.bundle.cjs`)
    if (name === 'program') bundled.setFlags()

    t.equal(bundled.compile(file, bundled.readCompiled(file)).cachedDataRejected, false)
  })
}

t.test('compiled code of another bundle is not run', async t => {
  const { main } = withoutModules(t.testdir())
  const file = main.replace('main.cjs', 'front.bundle.cjs')
  // Of the same length, which is all that V8 looks at.
  const text = readFileSync(file, 'latin1')
  const stamp = text.slice(-65)
  const other = text.slice(0, -65).replace('virtvault/version/1', 'virtvault/version/2') + stamp.replace(/^./, '-')
  writeFileSync(file, other, 'latin1')

  t.equal(other.length, text.length)
  t.match(run(main, ['--version', '--json']), { status: 0, stdout: /virtvault\/version\/2/ })
})

t.test('-vv shows where an error came from in terms of the sources', async t => {
  const { stderr } = run(join(CLI, 'main.cjs'), ['list', '-vv', '-t', join(t.testdir(), 'none')])

  t.match(stderr, /E_NO_STORE/)
  t.match(stderr, /src\/store\/[a-z-]+\.ts:\d+/)
})
