import { Config } from '@oclif/core/config'

import { PACKAGE_ROOT, readPackageJson } from './package-json.js'

/** oclif's view of this program, holding only the commands that were selected in command-table.ts. */
export async function loadOclifConfig(): Promise<Config> {
  const pjson = readPackageJson()
  const commands = { strategy: 'explicit', target: './dist/src/cli/command-table.js', identifier: 'SELECTED' } as const
  return Config.load({ root: PACKAGE_ROOT, pjson: { ...pjson, oclif: { ...pjson.oclif, commands } } })
}
