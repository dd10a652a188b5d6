const fs: typeof import('node:fs') = require('node:fs')
const v8: typeof import('node:v8') = require('node:v8')

const bundled: import('../../src/cli/bundled.cjs').Bundled = require('../../src/cli/bundled.cjs')

export interface Compiled {
  readonly keepCompiled: typeof keepCompiled
  readonly writeCompiled: typeof writeCompiled
}

/** From now on V8 forgets no function's code because it has not run for some time. */
function keepCompiled(): void {
  v8.setFlagsFromString('--no-flush-bytecode')
}

/** Writes the code of all functions of a bundle that have run since keepCompiled(). */
function writeCompiled(script: import('node:vm').Script, file: string): void {
  // The code is good under the flags of this moment.
  v8.setFlagsFromString('--flush-bytecode')
  const stamp = fs.readFileSync(file, 'latin1').slice(-bundled.STAMP_BYTES - 1, -1)
  fs.writeFileSync(`${file}.compiled`, Buffer.concat([Buffer.from(stamp, 'latin1'), script.createCachedData()]))
}

module.exports = { keepCompiled, writeCompiled } satisfies Compiled
