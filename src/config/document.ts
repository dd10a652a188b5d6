import { isAlias, isMap, isNode, isPair, isScalar, isSeq, LineCounter, parseDocument } from 'yaml'
import type { Document, Node, Pair } from 'yaml'

import { messageOf } from '../base/errors.js'

/**
 * One YAML file: its values, and where each of them stands. Compatibility
 * layers change the document, not its values, so that places stay true.
 */

export type ConfigPath = readonly (string | number)[]

export interface ConfigDocument {
  /** As shown to people. */
  readonly file: string
  readonly yaml: Document
  readonly lines: LineCounter
}

export interface SyntaxProblem {
  /** `config.yml:12:5` */
  readonly where: string
  readonly message: string
}

/** A small file that expands to a large one is an attack; ten uses of one anchor are not. */
const MAX_ALIASES = 100

/** Parses what it can; `problems` says what it could not. */
export function parseConfigDocument(
  file: string,
  text: string,
): { document: ConfigDocument; problems: SyntaxProblem[] } {
  const lines = new LineCounter()
  const yaml = parseDocument(text, { lineCounter: lines, prettyErrors: false, merge: true })
  const document = { file, yaml, lines }
  const broken = yaml.errors.find(({ code }) => code !== 'DUPLICATE_KEY')
  // Once the syntax is broken the parser stumbles over all that follows: the first is what to mend.
  const told = yaml.errors.filter(error => error.code === 'DUPLICATE_KEY' || error === broken)
  const problems = told.map(error => ({
    where: placeAt(document, error.pos[0]),
    message: error.message
      .replace(/ at line \d+, column \d+:?$/, '')
      .replace(/^Map keys must be unique$/, 'key is given twice'),
  }))
  const start = placeAt(document, 0)
  if (problems.length === 0 && yaml.contents !== null && !isMap(yaml.contents)) {
    problems.push({ where: start, message: 'a configuration is a map of keys' })
  }
  if (problems.length === 0) problems.push(...expansionProblems(yaml).map(message => ({ where: start, message })))
  return { document, problems }
}

/** Aliases that name nothing, or that expand without end, show only when values are made. */
function expansionProblems(yaml: Document): string[] {
  try {
    yaml.toJS({ maxAliasCount: MAX_ALIASES })
    return []
  } catch (error) {
    return [messageOf(error)]
  }
}

/** The plain values, without keys whose value is empty. */
export function valuesOf(document: ConfigDocument): unknown {
  const values: unknown = document.yaml.toJS({ maxAliasCount: MAX_ALIASES })
  return withoutEmpty(values) ?? {}
}

/**
 * `config.yml:12:5` of the value at `path`, or of its key; undefined when this
 * file does not have it.
 */
export function locate(document: ConfigDocument, path: ConfigPath, part: 'key' | 'value'): string | undefined {
  let node: unknown = document.yaml.contents
  let offset: number | undefined
  for (const segment of path) {
    const resolved = isAlias(node) ? node.resolve(document.yaml) : node
    const step = stepInto(resolved, segment)
    if (step === undefined) return undefined
    const target = part === 'key' && step.key !== undefined ? step.key : (step.value ?? step.key)
    offset = target?.range?.[0] ?? offset
    node = step.value
  }
  return offset === undefined ? undefined : placeAt(document, offset)
}

/** `config.yml:12:5` of a node of this document. */
export function placeOf(document: ConfigDocument, node: unknown): string {
  return placeAt(document, isNode(node) ? (node.range?.[0] ?? 0) : 0)
}

/** A key of a map and its value, as nodes; undefined where it is not there. */
export function pairOf(map: unknown, key: string): Pair | undefined {
  return isMap(map) ? map.items.find(pair => keyName(pair) === key) : undefined
}

export function keyName(pair: Pair): string | undefined {
  // A pair that a layer added has a bare key.
  return isScalar(pair.key) ? String(pair.key.value) : typeof pair.key === 'string' ? pair.key : undefined
}

function stepInto(
  node: unknown,
  segment: string | number,
): { key?: Node | undefined; value?: Node | undefined } | undefined {
  if (isMap(node)) {
    const pair = pairOf(node, String(segment))
    if (pair === undefined) return undefined
    return { key: isNode(pair.key) ? pair.key : undefined, value: isNode(pair.value) ? pair.value : undefined }
  }
  if (isSeq(node) && typeof segment === 'number') {
    const item = node.items[segment]
    return isNode(item) ? { value: item } : isPair(item) ? {} : undefined
  }
  return undefined
}

function placeAt(document: ConfigDocument, offset: number): string {
  const { line, col } = document.lines.linePos(offset)
  return `${document.file}:${Math.max(1, line)}:${Math.max(1, col)}`
}

/** `username:` with nothing behind it is not set. An empty retention rule stays, to be refused: it could mean none or all. */
const MAY_NOT_BE_EMPTY = new Set(['last', 'hourly', 'daily', 'weekly', 'monthly', 'yearly'])

function withoutEmpty(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(withoutEmpty)
  if (typeof value !== 'object' || value === null) return value ?? undefined
  const kept = Object.entries(value).flatMap(([key, inner]: [string, unknown]) => {
    if (inner === null) return MAY_NOT_BE_EMPTY.has(key) ? [[key, null]] : []
    return [[key, withoutEmpty(inner)]]
  })
  return Object.fromEntries(kept)
}
