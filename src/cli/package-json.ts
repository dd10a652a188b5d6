import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

import type { PJSON } from '@oclif/core/interfaces'

/** Directory of package.json, above dist/. */
export const PACKAGE_ROOT = fileURLToPath(new URL('../../..', import.meta.url))

export function readPackageJson(): PJSON {
  const parsed: unknown = JSON.parse(readFileSync(`${PACKAGE_ROOT}/package.json`, 'utf8'))
  if (!isPackageJson(parsed)) throw new Error('bug: package.json has no version or no oclif section')
  return parsed
}

function isPackageJson(value: unknown): value is PJSON {
  return typeof value === 'object' && value !== null && 'version' in value && 'oclif' in value
}

/** The program as it was started, for units and scripts that start it again. */
export function programPath(): string {
  return process.argv[1] ?? `${PACKAGE_ROOT}/dist/src/cli/main.cjs`
}
