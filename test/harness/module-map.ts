import { readdirSync, readFileSync } from 'node:fs'
import { join, posix } from 'node:path'

import ts from 'typescript'

/** One folder of src/: what it may import. `byType` with `import type` only. */
export interface Room {
  readonly may: readonly string[]
  readonly byType?: readonly string[]
}

export interface ModuleMap {
  readonly rooms: Readonly<Record<string, Room>>
  /** Files that may import by value what their folder may import by type only. */
  readonly builders: readonly string[]
  /** npm packages: where each may be imported. */
  readonly packages: Readonly<Record<string, RegExp>>
  /** Node's own modules that are kept to some files; the others may be used everywhere but in pure folders. */
  readonly builtins: Readonly<Record<string, RegExp>>
  /** Folders without I/O, clock or randomness: the only Node modules that they may import. */
  readonly pure: Readonly<Record<string, readonly string[]>>
  /** Expressions that only some files may use, as `object.property`. */
  readonly globals: Readonly<Record<string, RegExp>>
}

/** src/-relative paths with forward slashes, and their text. */
export type Sources = ReadonlyMap<string, string>

export function readSources(folder: string): Sources {
  const paths = readdirSync(folder, { recursive: true, encoding: 'utf8' }).filter(path => /\.[cm]?ts$/.test(path))
  return new Map(paths.sort().map(path => [path, readFileSync(join(folder, path), 'utf8')]))
}

/** One line per import or expression that the map does not have: `file:line: what`. */
export function findViolations(map: ModuleMap, sources: Sources): string[] {
  return [...sources].flatMap(([path, text]) => new File(map, sources, path, text).violations())
}

class File {
  readonly #map: ModuleMap
  readonly #sources: Sources
  readonly #path: string
  readonly #tree: ts.SourceFile
  readonly #found: string[] = []

  constructor(map: ModuleMap, sources: Sources, path: string, text: string) {
    this.#map = map
    this.#sources = sources
    this.#path = path
    this.#tree = ts.createSourceFile(path, text, ts.ScriptTarget.ES2022, true)
  }

  violations(): string[] {
    const folder = folderOf(this.#path)
    if (this.#map.rooms[folder] === undefined) return [`${this.#path}:1: src/${folder} is not on the map`]
    this.#visit(this.#tree)
    return this.#found
  }

  #visit(node: ts.Node): void {
    if (ts.isImportDeclaration(node) && ts.isStringLiteral(node.moduleSpecifier)) {
      this.#checkImport(node, node.moduleSpecifier.text, isTypeOnly(node))
    } else if (ts.isExportDeclaration(node) && node.moduleSpecifier !== undefined) {
      if (ts.isStringLiteral(node.moduleSpecifier)) this.#checkImport(node, node.moduleSpecifier.text, node.isTypeOnly)
    } else if (ts.isImportTypeNode(node) && ts.isLiteralTypeNode(node.argument)) {
      if (ts.isStringLiteral(node.argument.literal)) this.#checkImport(node, node.argument.literal.text, true)
    } else if (ts.isCallExpression(node) && isImportCall(node)) {
      const [argument] = node.arguments
      if (argument !== undefined && ts.isStringLiteral(argument)) this.#checkImport(node, argument.text, false)
      else this.#checkGlobal(node, 'process.dlopen', 'imports something that cannot be told')
    } else if (ts.isPropertyAccessExpression(node) && ts.isIdentifier(node.expression)) {
      this.#checkGlobal(node, `${node.expression.text}.${node.name.text}`)
    } else if (ts.isNewExpression(node) && ts.isIdentifier(node.expression)) {
      const isNow = node.expression.text === 'Date' && (node.arguments ?? []).length === 0
      if (isNow) this.#checkGlobal(node, 'Date.now')
    } else if (ts.isStringLiteral(node) && node.text.endsWith('.node')) {
      this.#checkGlobal(node, 'process.dlopen')
    }
    ts.forEachChild(node, child => this.#visit(child))
  }

  #checkImport(node: ts.Node, name: string, typeOnly: boolean): void {
    if (name.startsWith('.')) this.#checkRelative(node, name, typeOnly)
    else if (name.startsWith('node:')) this.#checkBuiltin(node, name, typeOnly)
    else this.#checkPackage(node, name)
  }

  #checkRelative(node: ts.Node, name: string, typeOnly: boolean): void {
    const target = posix.join(posix.dirname(this.#path), name).replace(/\.([cm]?)js$/, '.$1ts')
    if (!this.#sources.has(target)) {
      this.#report(node, `imports ${name}, which is not in src/`)
      return
    }
    const from = folderOf(this.#path)
    const to = folderOf(target)
    const room = this.#map.rooms[from]
    if (from === to || room?.may.includes(to) === true) return
    if (room?.byType?.includes(to) !== true) this.#report(node, `src/${from} may not import src/${to}`)
    else if (!typeOnly && !this.#map.builders.includes(this.#path)) {
      this.#report(node, `src/${from} may import src/${to} only with import type`)
    }
  }

  #checkBuiltin(node: ts.Node, name: string, typeOnly: boolean): void {
    const pure = this.#map.pure[folderOf(this.#path)]
    if (pure !== undefined && !typeOnly && !pure.includes(name))
      this.#report(node, `a pure folder may not import ${name}`)
    const allowed = this.#map.builtins[name]
    if (allowed !== undefined && !allowed.test(this.#path)) this.#report(node, `may not import ${name} here`)
  }

  #checkPackage(node: ts.Node, name: string): void {
    const [first = '', second = ''] = name.split('/')
    const bare = first.startsWith('@') ? `${first}/${second}` : first
    const allowed = this.#map.packages[bare]
    if (allowed === undefined) this.#report(node, `package ${bare} is not on the map`)
    else if (!allowed.test(this.#path)) this.#report(node, `may not import ${bare} here`)
  }

  #checkGlobal(node: ts.Node, name: string, what = `may not use ${name} here`): void {
    const allowed = this.#map.globals[name]
    if (allowed !== undefined && !allowed.test(this.#path)) this.#report(node, what)
  }

  #report(node: ts.Node, what: string): void {
    const { line } = this.#tree.getLineAndCharacterOfPosition(node.getStart(this.#tree))
    this.#found.push(`${this.#path}:${line + 1}: ${what}`)
  }
}

function folderOf(path: string): string {
  return path.includes('/') ? path.slice(0, path.indexOf('/')) : ''
}

function isTypeOnly(node: ts.ImportDeclaration): boolean {
  return node.importClause?.phaseModifier === ts.SyntaxKind.TypeKeyword
}

function isImportCall(node: ts.CallExpression): boolean {
  return (
    node.expression.kind === ts.SyntaxKind.ImportKeyword ||
    (ts.isIdentifier(node.expression) && node.expression.text === 'require')
  )
}
