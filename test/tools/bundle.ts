/**
 * Bundles the executable, after tsc: `dist/src/cli/*.bundle.cjs`, with source
 * maps, and beside each the code that V8 compiled of it (src/cli/bundled.cts).
 */
import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import { build, type Plugin } from 'esbuild'

const CLI = fileURLToPath(new URL('../../src/cli', import.meta.url))
const WARM_UP = fileURLToPath(new URL('./compile-bundle.cjs', import.meta.url))
const NAMES = ['front', 'program', 'guardian-main'] as const

/** What finds a native part of its own by its path, and what oclif loads only to develop with. */
const EXTERNAL = ['classic-level', 'typescript', 'ts-node', 'tsx']

/** The front knows all commands and loads none. */
const WITHOUT_COMMANDS: Plugin = {
  name: 'without-commands',
  setup: builder => {
    builder.onResolve({ filter: /\/commands\// }, ({ path }) => ({ path, external: true }))
  },
}

for (const name of NAMES) {
  const file = join(CLI, `${name}.bundle.cjs`)
  rmSync(`${file}.compiled`, { force: true })
  await build({
    entryPoints: [join(CLI, `${name}.js`)],
    outfile: file,
    bundle: true,
    platform: 'node',
    format: 'cjs',
    target: 'node20',
    external: EXTERNAL,
    // A script outside of a module loader has no import().
    supported: { 'dynamic-import': false },
    define: { 'import.meta.url': 'bundleUrl' },
    banner: { js: 'const bundleUrl = require("node:url").pathToFileURL(__filename).href;' },
    sourcemap: 'linked',
    sourcesContent: false,
    minifySyntax: true,
    minifyWhitespace: true,
    keepNames: true,
    legalComments: 'none',
    logLevel: 'warning',
    plugins: name === 'front' ? [WITHOUT_COMMANDS] : [],
  })
  const text = readFileSync(file, 'latin1')
  writeFileSync(file, `${text}// ${createHash('sha256').update(text).digest('hex')}\n`, 'latin1')
}

// Each in a process of its own: what was run is compiled, and nothing else.
const scratch = mkdtempSync(join(tmpdir(), 'virtvault-bundle-'))
try {
  for (const name of NAMES) {
    // What the commands say that are run to be compiled is of interest only where one fails.
    const { status, stderr } = spawnSync(process.execPath, [WARM_UP, name, scratch], { encoding: 'utf8' })
    if (status !== 0) throw new Error(`${name} could not be compiled: ${stderr}`)
  }
} finally {
  rmSync(scratch, { recursive: true })
}
