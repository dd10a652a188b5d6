import { stringify } from 'yaml'

import type { LoadedConfig } from '../config/load.js'
import { completeSettings, SETTING_KEYS, settingsFrom } from '../config/settings.js'
import type { JobSettings } from '../model/domain-job.js'
import { renderRows } from './output.js'

/** Keys whose values are secrets when they stand in the file itself. */
const SECRET_KEYS = new Set(['passphrase', 'secret_access_key', 'token', 'password', 'url'])
const HIDDEN = '***'

/** The configuration of all files together, without its secrets. */
export function shownConfig(loaded: LoadedConfig): unknown {
  return withoutSecrets(loaded.config)
}

export function configLines(loaded: LoadedConfig): string[] {
  return [`# ${loaded.files.join(', ')}`, ...stringify(shownConfig(loaded), { lineWidth: 0 }).trimEnd().split('\n')]
}

export interface ResolvedValue {
  readonly name: string
  readonly value: unknown
  /** `config.yml:12:5`, or `built-in`. */
  readonly where: string
}

/** What holds for each group, setting by setting, and where that is said. */
export function resolvedGroups(
  loaded: LoadedConfig,
): readonly { readonly group: string; readonly values: readonly ResolvedValue[] }[] {
  const { config, where } = loaded
  const outer = settingsFrom(config.default ?? {})
  return Object.entries(config.groups ?? {}).map(([group, raw]) => {
    const own = settingsFrom(raw)
    const all: JobSettings = completeSettings({ ...outer, ...own })
    const values = settingNames().flatMap((name): ResolvedValue[] => {
      const value = all[name]
      if (value === undefined || (Array.isArray(value) && value.length === 0)) return []
      const key = SETTING_KEYS[name]
      const path = own[name] !== undefined ? ['groups', group] : outer[name] !== undefined ? ['default'] : undefined
      const place = path === undefined ? undefined : (where([...path, key]) ?? where([...path, 'target']))
      return [{ name: key, value, where: place ?? 'built-in' }]
    })
    return { group, values }
  })
}

export function resolvedLines(loaded: LoadedConfig): string[] {
  return resolvedGroups(loaded).flatMap(({ group, values }) => [
    `${group}:`,
    ...renderRows(
      values.map(({ name, value, where }) => [
        `  ${name}`,
        Array.isArray(value) ? value.join(', ') : String(value),
        where,
      ]),
    ),
  ])
}

function settingNames(): readonly (keyof JobSettings)[] {
  const names = Object.keys(SETTING_KEYS)
  return names.filter((name): name is keyof JobSettings => name in SETTING_KEYS)
}

function withoutSecrets(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(withoutSecrets)
  if (typeof value !== 'object' || value === null) return value
  return Object.fromEntries(
    Object.entries(value).map(([key, inner]: [string, unknown]) => [
      key,
      SECRET_KEYS.has(key) && typeof inner === 'string' ? HIDDEN : withoutSecrets(inner),
    ]),
  )
}
