/**
 * Runs one bundle for a while and writes down what V8 has compiled of it:
 * `compile-bundle.cjs NAME SCRATCH`. Functions that never ran stay out, since
 * reading them back would cost each start more than compiling them does once.
 */
const path: typeof import('node:path') = require('node:path')

const bundled: import('../../src/cli/bundled.cjs').Bundled = require('../../src/cli/bundled.cjs')
const compiled: import('./compiled.cjs').Compiled = require('./compiled.cjs')

const [name = '', scratch = ''] = process.argv.slice(2)
const file = path.join(__dirname, '../../src/cli', `${name}.bundle.cjs`)

async function run(): Promise<void> {
  if (name === 'program') bundled.setFlags()
  compiled.keepCompiled()
  const script = bundled.compile(file, undefined)
  if (name === 'front') {
    const { answerAtOnce } = bundled.runScript(script, file) as import('../../src/cli/bundled.cjs').Programs['front']
    for (const line of ['--version', '--help', 'backup --help', 'list']) answerAtOnce(line.split(' '))
  } else if (name === 'program') {
    const { main } = bundled.runScript(script, file) as import('../../src/cli/bundled.cjs').Programs['program']
    const store = path.join(scratch, 'store')
    const lines = [
      `init ${store}`,
      `backup pull --help`,
      `restore --help`,
      `list -t ${store}`,
      `stats -t ${store} --json`,
      `verify -t ${store}`,
      `gc -t ${store}`,
      // Refused by this driver of libvirt, after most of what comes before a backup.
      `backup pull test -t ${store} -c test:///default`,
    ]
    for (const line of lines) await main(line.split(' '))
  } else {
    process.stdin.destroy()
    bundled.runScript(script, file)
  }
  compiled.writeCompiled(script, file)
  process.exit(0)
}

run().catch((error: unknown) => {
  console.error(error)
  process.exit(1)
})
