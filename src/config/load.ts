import { readdir, readFile, stat } from 'node:fs/promises'
import { dirname, join } from 'node:path'

import { parse as parseYaml } from 'yaml'

import { BackupError, messageOf } from '../base/errors.js'
import type { Warning } from '../base/errors.js'
import { migrateConfig } from './compat.js'
import { locate, parseConfigDocument, valuesOf } from './document.js'
import type { ConfigDocument, ConfigPath } from './document.js'
import { checkReferences, formatPath, formatProblem, parsePath, suggestKey } from './problems.js'
import type { ConfigProblem } from './problems.js'
import type { RawConfig } from './schema.js'

/**
 * From files, `conf.d` and `--override` to one checked configuration. Nothing
 * is read from the process: the environment is an argument.
 */

export type Environment = Readonly<Record<string, string | undefined>>

export interface ConfigRequest {
  /** `--config`; it must then exist. */
  readonly file?: string | undefined
  /** `--override key=value`, in the order given. */
  readonly overrides?: readonly string[] | undefined
  readonly env: Environment
}

export interface ConfigReading {
  /** Present when there is no problem. */
  readonly config: RawConfig | undefined
  /** Files that were read, in the order in which later ones win. */
  readonly files: readonly string[]
  readonly problems: readonly ConfigProblem[]
  readonly warnings: readonly Warning[]
  /** Where a value was written: `config.yml:12:5`, `--override`; undefined for what is not in it. */
  readonly where: (path: ConfigPath) => string | undefined
}

export interface LoadedConfig extends ConfigReading {
  readonly config: RawConfig
}

const MAX_FILE_BYTES = 8 * 1024 * 1024
/** Keys whose values are secrets when they stand in the file itself. */
const SECRET_KEYS = new Set(['passphrase', 'secret_access_key', 'token', 'password'])

/** As `readConfig`, but throws E_CONFIG that lists all problems. */
export async function loadConfig(request: ConfigRequest): Promise<LoadedConfig> {
  const reading = await readConfig(request)
  const { config, problems } = reading
  if (config !== undefined) return { ...reading, config }
  const lines = problems.map(formatProblem)
  const count = lines.length === 1 ? 'a mistake' : `${lines.length} mistakes`
  throw new BackupError('E_CONFIG', `the configuration has ${count}: ${lines.join('\n  ')}`, {
    hints: ['virtvault config validate shows them again'],
  })
}

/**
 * Reads the configuration and lists everything that is wrong with it. Without
 * any file it is empty, which is allowed: flags can say all that a pull needs.
 *
 * Throws E_CONFIG when a file that was named, or one that exists, cannot be read.
 */
export async function readConfig(request: ConfigRequest): Promise<ConfigReading> {
  const texts = await readFiles(request)
  return checkTexts(texts, request.overrides ?? [])
}

export interface ConfigText {
  readonly file: string
  readonly text: string
  /** True when others than its owner can read the file. */
  readonly isExposed?: boolean | undefined
}

/** The same for texts at hand; the first is the main file. */
export async function checkTexts(
  texts: readonly ConfigText[],
  overrides: readonly string[] = [],
): Promise<ConfigReading> {
  const problems: ConfigProblem[] = []
  const warnings: Warning[] = []
  const documents: ConfigDocument[] = []
  let merged: unknown = {}
  for (const [at, { file, text, isExposed }] of texts.entries()) {
    const { document, problems: syntax } = parseConfigDocument(file, text)
    problems.push(...syntax.map(({ where, message }) => ({ where, path: '', message })))
    if (syntax.length > 0) continue
    // Only a whole file can be somebody else's; a part in conf.d is ours.
    const remarks = at === 0 && texts.length === 1 ? migrateConfig(document) : []
    warnings.push(...remarks.map(({ where, message }) => warning(`${where}  ${message}`)))
    documents.push(document)
    const values = valuesOf(document)
    const secret = isExposed === true ? findSecret(values, []) : undefined
    if (secret !== undefined) {
      const where = locate(document, secret, 'key') ?? file
      warnings.push(warning(`${where}  ${formatPath(secret)}: others can read this file: chmod 600 ${file}`))
    }
    merged = merge(merged, values)
  }
  const overridden: ConfigPath[] = []
  for (const override of overrides) {
    const { path, value, problem } = readOverride(override)
    if (problem !== undefined) problems.push({ where: `--override ${override}`, path: '', message: problem })
    else {
      merged = assign(merged, path, value)
      overridden.push(path)
    }
  }

  const where = (path: ConfigPath, part: 'key' | 'value' = 'value'): string | undefined => {
    if (overridden.some(start => start.every((segment, at) => path[at] === segment))) return '--override'
    // The last file that has it won.
    for (const document of documents.toReversed()) {
      const place = locate(document, path, part)
      if (place !== undefined) return place
    }
    return path.length > 1 ? where(path.slice(0, -1), 'key') : undefined
  }
  const base = { files: texts.map(one => one.file), warnings, where }
  const inOrder = (found: readonly ConfigProblem[]) => sortByPlace(found, base.files)
  if (problems.length > 0) return { ...base, config: undefined, problems: inOrder(problems) }

  // zod takes 60 ms to load: only where there is something to check.
  const { checkConfig, configJsonSchema } = await import('./schema.js')
  const { config, issues } = checkConfig(merged)
  const schema = issues.length === 0 ? {} : configJsonSchema()
  problems.push(
    ...issues.map(({ path, message, isUnknownKey }) => ({
      where: where(path, isUnknownKey ? 'key' : 'value'),
      path: formatPath(path),
      message,
      suggestion: isUnknownKey ? suggestKey(schema, path) : undefined,
    })),
  )
  if (config === undefined) return { ...base, config: undefined, problems: inOrder(problems) }
  for (const { path, message, suggestion } of checkReferences(config)) {
    problems.push({ where: where(path), path: formatPath(path), message, suggestion })
  }
  return { ...base, config: problems.length === 0 ? config : undefined, problems: inOrder(problems) }
}

async function readFiles(request: ConfigRequest): Promise<readonly ConfigText[]> {
  const named = request.file ?? nonEmpty(request.env['VIRTVAULT_CONFIG'])
  const main = named === undefined ? await firstThere(defaultFiles(request.env)) : await readText(named)
  if (named !== undefined && main === undefined) {
    throw new BackupError('E_CONFIG', `the configuration file ${named} does not exist`, {
      hints: [`write one with: virtvault config generate > ${named}`],
    })
  }
  if (main === undefined) return []
  const folder = join(dirname(main.file), 'conf.d')
  const parts: ConfigText[] = []
  for (const name of await partsIn(folder)) {
    const part = await readText(join(folder, name))
    if (part !== undefined) parts.push(part)
  }
  return [main, ...parts]
}

/** Where a configuration is looked for, first found wins: the user's own, then the machine's. */
export function defaultFiles(env: Environment): readonly string[] {
  const home = nonEmpty(env['HOME'])
  const own = nonEmpty(env['XDG_CONFIG_HOME']) ?? (home === undefined ? undefined : join(home, '.config'))
  return [...(own === undefined ? [] : [join(own, 'virtvault', 'config.yml')]), '/etc/virtvault/config.yml']
}

async function firstThere(files: readonly string[]): Promise<ConfigText | undefined> {
  for (const file of files) {
    const found = await readText(file)
    if (found !== undefined) return found
  }
  return undefined
}

async function readText(file: string): Promise<ConfigText | undefined> {
  try {
    const { mode, size } = await stat(file)
    if (size > MAX_FILE_BYTES) throw new BackupError('E_CONFIG', `${file} is too large for a configuration`)
    return { file, text: await readFile(file, 'utf8'), isExposed: (mode & 0o077) !== 0 }
  } catch (error) {
    if (isErrno(error, 'ENOENT') || isErrno(error, 'ENOTDIR')) return undefined
    if (error instanceof BackupError) throw error
    throw new BackupError('E_CONFIG', `the configuration ${file} cannot be read: ${messageOf(error)}`, { cause: error })
  }
}

async function partsIn(folder: string): Promise<readonly string[]> {
  try {
    const names = await readdir(folder)
    return names.filter(name => /^[^.].*\.ya?ml$/.test(name)).sort()
  } catch (error) {
    if (isErrno(error, 'ENOENT') || isErrno(error, 'ENOTDIR')) return []
    throw new BackupError('E_CONFIG', `${folder} cannot be read: ${messageOf(error)}`, { cause: error })
  }
}

/** Maps are joined, everything else is replaced by the later file. */
function merge(earlier: unknown, later: unknown): unknown {
  if (!isRecord(earlier) || !isRecord(later)) return later
  const joined = new Map(Object.entries(earlier))
  for (const [key, value] of Object.entries(later)) joined.set(key, merge(joined.get(key), value))
  return Object.fromEntries(joined)
}

type Override =
  | { readonly path: ConfigPath; readonly value: unknown; readonly problem?: undefined }
  | { readonly path?: undefined; readonly value?: undefined; readonly problem: string }

function readOverride(text: string): Override {
  const equals = text.indexOf('=')
  const path = equals < 1 ? undefined : parsePath(text.slice(0, equals))
  if (path === undefined) return { problem: 'expected key=value, such as groups.prod.daily=14' }
  try {
    const value: unknown = parseYaml(text.slice(equals + 1))
    return { path, value }
  } catch (error) {
    return { problem: messageOf(error) }
  }
}

/** `target` with `value` at `path`; maps on the way are made where they are missing, an index past the end appends. */
function assign(target: unknown, path: ConfigPath, value: unknown): unknown {
  const [first, ...rest] = path
  if (first === undefined) return value
  if (Array.isArray(target) && typeof first === 'number') {
    const list: readonly unknown[] = target
    if (first >= list.length) return [...list, assign(undefined, rest, value)]
    return list.map((item, at) => (at === first ? assign(item, rest, value) : item))
  }
  const entries = new Map(isRecord(target) ? Object.entries(target) : [])
  entries.set(String(first), assign(entries.get(String(first)), rest, value))
  return Object.fromEntries(entries)
}

/** As a reader meets them: file by file, from top to bottom; what stands in no file comes last. */
function sortByPlace(problems: readonly ConfigProblem[], files: readonly string[]): readonly ConfigProblem[] {
  const rank = ({ where = '' }: ConfigProblem): readonly [number, number, number] => {
    const [, file = '', line, column] = /^(.*):(\d+):(\d+)$/.exec(where) ?? []
    const at = files.indexOf(file)
    return [at < 0 ? files.length : at, Number(line ?? 0), Number(column ?? 0)]
  }
  return problems.toSorted((a, b) => {
    const [fileA, lineA, columnA] = rank(a)
    const [fileB, lineB, columnB] = rank(b)
    return fileA - fileB || lineA - lineB || columnA - columnB
  })
}

function findSecret(value: unknown, path: ConfigPath): ConfigPath | undefined {
  if (!isRecord(value)) return undefined
  for (const [key, inner] of Object.entries(value)) {
    if (SECRET_KEYS.has(key) && typeof inner === 'string') return [...path, key]
    const found = findSecret(inner, [...path, key])
    if (found !== undefined) return found
  }
  return undefined
}

function warning(message: string): Warning {
  return { code: 'W_CONFIG_FILE', message }
}

function nonEmpty(text: string | undefined): string | undefined {
  return text === '' ? undefined : text
}

function isErrno(error: unknown, code: string): boolean {
  return error instanceof Error && 'code' in error && error.code === code
}

function isRecord(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}
