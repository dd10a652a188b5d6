import { createHash } from 'node:crypto'
import { readFileSync, rmSync, writeFileSync } from 'node:fs'

import { build, type Plugin } from 'esbuild'

/** What finds a native part of its own by its path, and what oclif loads only to develop with. */
const EXTERNAL = ['classic-level', 'typescript', 'ts-node', 'tsx']

export interface BundleFiles {
  /** An ES module, compiled by tsc. */
  readonly entry: string
  readonly outfile: string
  readonly plugins?: readonly Plugin[] | undefined
}

/** One script of a module and all that it imports, for src/cli/bundled.cts. Its compiled code, of another text now, is removed. */
export async function makeBundle({ entry, outfile, plugins = [] }: BundleFiles): Promise<void> {
  rmSync(`${outfile}.compiled`, { force: true })
  await build({
    entryPoints: [entry],
    outfile,
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
    // Node shows the line that an uncaught error came from.
    lineLimit: 160,
    legalComments: 'none',
    logLevel: 'warning',
    plugins: [...plugins],
  })
  const text = readFileSync(outfile, 'latin1')
  writeFileSync(outfile, `${text}// ${createHash('sha256').update(text).digest('hex')}\n`, 'latin1')
}
