/**
 * Bundles the executable, after tsc: `dist/src/cli/*.bundle.cjs`, with source
 * maps, and beside each the code that V8 compiled of it (src/cli/bundled.cts).
 */
import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import type { Plugin } from 'esbuild'

import { makeBundle } from './make-bundle.js'

const CLI = fileURLToPath(new URL('../../src/cli', import.meta.url))
const WARM_UP = fileURLToPath(new URL('./compile-bundle.cjs', import.meta.url))
const NAMES = ['front', 'program', 'guardian-main'] as const

/** The front knows all commands and loads none. */
const WITHOUT_COMMANDS: Plugin = {
  name: 'without-commands',
  setup: builder => {
    builder.onResolve({ filter: /\/commands\// }, ({ path }) => ({ path, external: true }))
  },
}

for (const name of NAMES) {
  const plugins = name === 'front' ? [WITHOUT_COMMANDS] : []
  await makeBundle({ entry: join(CLI, `${name}.js`), outfile: join(CLI, `${name}.bundle.cjs`), plugins })
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
