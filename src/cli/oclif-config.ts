import { Config } from '@oclif/core/config'
import type { Plugin } from '@oclif/core/interfaces'

import { PACKAGE_ROOT, readPackageJson } from './package-json.js'

/**
 * oclif's view of this program. Without commands, which are found and loaded
 * by command-table.ts: oclif would look for them in files, and there are none
 * where all of this is one bundle.
 */
export async function loadOclifConfig(): Promise<Config> {
  const pjson = readPackageJson()
  const plugin: Plugin = {
    _base: pjson.name,
    alias: pjson.name,
    name: pjson.name,
    version: pjson.version,
    pjson,
    root: PACKAGE_ROOT,
    options: { root: PACKAGE_ROOT },
    type: 'core',
    moduleType: 'module',
    isRoot: true,
    valid: true,
    hasManifest: false,
    commandsDir: undefined,
    commandIDs: [],
    commands: [],
    topics: [],
    hooks: {},
    load: () => Promise.resolve(),
    findCommand: (id: string) => Promise.reject(new Error(`bug: oclif looks for the command ${id}`)),
  }
  return await Config.load({ root: PACKAGE_ROOT, pjson, plugins: new Map([[plugin.name, plugin]]) })
}
