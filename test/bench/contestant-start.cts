/** Runs contestant.ts as the executable runs: as a bundle, with the compiled code that $BENCH_COMPILE makes of a run. */
const path: typeof import('node:path') = require('node:path')

const bundled: import('../../src/cli/bundled.cjs').Bundled = require('../../src/cli/bundled.cjs')
const compiled: import('../tools/compiled.cjs').Compiled = require('../tools/compiled.cjs')

const file = path.join(__dirname, 'contestant.bundle.cjs')

async function run(isCompiling: boolean): Promise<void> {
  bundled.setFlags()
  if (isCompiling) compiled.keepCompiled()
  const script = bundled.compile(file, isCompiling ? undefined : bundled.readCompiled(file))
  const { main } = bundled.runScript(script, file) as typeof import('./contestant.js')
  await main(process.argv.slice(2))
  if (isCompiling) compiled.writeCompiled(script, file)
}

void run(process.env['BENCH_COMPILE'] === '1')
