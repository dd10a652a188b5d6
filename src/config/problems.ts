import { suggest } from '../model/suggest.js'
import type { ConfigPath } from './document.js'
import type { RawConfig, RawSettings } from './schema.js'

/** Something wrong in a configuration, for `config validate` and for the error of every other command. */
export interface ConfigProblem {
  /** `config.yml:12:5`, or the flag or variable that said it; undefined when it stands nowhere. */
  readonly where: string | undefined
  /** `groups.prod.dayly` */
  readonly path: string
  readonly message: string
  readonly suggestion?: string | undefined
}

/** `config.yml:12:5  groups.prod.dayly: unknown key. Did you mean "daily"?` */
export function formatProblem({ where, path, message, suggestion }: ConfigProblem): string {
  const place = where === undefined ? '' : `${where}  `
  const subject = path === '' ? '' : `${path}: `
  return `${place}${subject}${message}${suggestion === undefined ? '' : `. Did you mean "${suggestion}"?`}`
}

/** `groups.prod.hosts[2].disks`, with quotes where a name needs them. */
export function formatPath(path: ConfigPath): string {
  return path
    .map((part, at) => {
      if (typeof part === 'number') return `[${part}]`
      const text = /[.[\]"\s]/.test(part) || part === '' ? JSON.stringify(part) : part
      return at === 0 ? text : `.${text}`
    })
    .join('')
}

/** Reads `groups.prod.daily` and `hosts[0]` back; undefined for what is no path. */
export function parsePath(text: string): ConfigPath | undefined {
  const parts: (string | number)[] = []
  const part = /\.?(?:"((?:[^"\\]|\\.)*)"|([^.[\]"]+))|\[(\d+)\]/y
  while (part.lastIndex < text.length) {
    const [, quoted, plain, index] = part.exec(text) ?? []
    const found = index === undefined ? (quoted?.replaceAll(/\\(.)/g, '$1') ?? plain) : Number(index)
    if (found === undefined || (parts.length === 0 && text.startsWith('.'))) return undefined
    parts.push(found)
  }
  return parts.length === 0 ? undefined : parts
}

/** The key that JSON Schema `schema` knows at `path`'s parent and that is nearest to its last part. */
export function suggestKey(schema: unknown, path: ConfigPath): string | undefined {
  const wrong = path.at(-1)
  const parents = path
    .slice(0, -1)
    .reduce<readonly unknown[]>((nodes, part) => nodes.flatMap(node => inside(node, part)), [schema])
  const keys = parents
    .flatMap(alternatives)
    .flatMap(node => Object.keys(recordOf(recordOf(node)?.['properties']) ?? {}))
  return typeof wrong === 'string' ? suggest(wrong, new Set(keys)) : undefined
}

/** What the schema cannot see: names that must exist elsewhere in the file, and keys that exclude one another. */
export function checkReferences(
  config: RawConfig,
): { path: ConfigPath; message: string; suggestion?: string | undefined }[] {
  const problems: { path: ConfigPath; message: string; suggestion?: string | undefined }[] = []
  const targets = Object.keys(config.targets ?? {})
  const groups = Object.keys(config.groups ?? {})
  const checkTarget = (name: string, path: ConfigPath) => {
    if (targets.includes(name) || isStoreAddress(name)) return
    problems.push({ path, message: `there is no target "${name}"`, suggestion: suggest(name, targets) })
  }
  const checkGroups = (names: readonly string[] | undefined, path: ConfigPath) => {
    for (const [at, name] of (names ?? []).entries()) {
      if (groups.includes(name)) continue
      problems.push({ path: [...path, at], message: `there is no group "${name}"`, suggestion: suggest(name, groups) })
    }
  }
  const checkTargets = (names: readonly string[] | undefined, path: ConfigPath) => {
    for (const [at, name] of (names ?? []).entries()) checkTarget(name, [...path, at])
  }
  const checkSettings = (settings: RawSettings, path: ConfigPath) => {
    if (settings.target !== undefined) checkTarget(settings.target, [...path, 'target'])
    checkTargets(settings.targets, [...path, 'targets'])
    if (settings.target !== undefined && settings.targets !== undefined) {
      problems.push({ path: [...path, 'targets'], message: 'target and targets are both set: keep one of them' })
    }
  }

  checkSettings(config.default ?? {}, ['default'])
  for (const [name, group] of Object.entries(config.groups ?? {})) {
    checkSettings(group, ['groups', name])
    for (const [at, host] of (group.hosts ?? []).entries()) {
      if (typeof host !== 'string') checkSettings(host, ['groups', name, 'hosts', at])
    }
  }
  for (const [name, target] of Object.entries(config.targets ?? {})) {
    if ((target.path === undefined) === (target.s3 === undefined)) {
      problems.push({ path: ['targets', name], message: 'a target has either path or s3' })
    } else if (target.s3 !== undefined) {
      // Known so that files written for later versions are answered, not called misspelt.
      problems.push({
        path: ['targets', name, 's3'],
        message: 'object stores are not supported by this version: use path, with a local or mounted file system',
      })
    }
  }
  for (const [at, command] of (config.commands ?? []).entries()) {
    const moments = [command.before, command.after, command.error].filter(moment => moment !== undefined)
    if (moments.length !== 1)
      problems.push({ path: ['commands', at], message: 'a command has one of before, after, error' })
    checkGroups(command.groups, ['commands', at, 'groups'])
  }
  checkTargets(config.verify?.targets, ['verify', 'targets'])
  checkTargets(config.gc?.targets, ['gc', 'targets'])
  checkGroups(config.verify?.boot?.groups, ['verify', 'boot', 'groups'])
  return problems
}

/** What holds a slash is the path or URL of a store, everything else the name of a target. */
export function isStoreAddress(target: string): boolean {
  return target.includes('/') || target === '.' || target === '..'
}

function inside(node: unknown, part: string | number): readonly unknown[] {
  return alternatives(node).flatMap(one => {
    const record = recordOf(one)
    if (record === undefined) return []
    if (typeof part === 'number') return [record['items']]
    return [recordOf(record['properties'])?.[part] ?? record['additionalProperties']]
  })
}

function alternatives(node: unknown): readonly unknown[] {
  const anyOf = recordOf(node)?.['anyOf']
  return Array.isArray(anyOf) ? anyOf.flatMap(alternatives) : [node]
}

function recordOf(value: unknown): Readonly<Record<string, unknown>> | undefined {
  return isRecord(value) ? value : undefined
}

function isRecord(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}
