const fs: typeof import('node:fs') = require('node:fs')
const path: typeof import('node:path') = require('node:path')
const vm: typeof import('node:vm') = require('node:vm')

/**
 * The three programs that `npm run build` bundles, each from the modules of one
 * entry: the version and the main help; all commands; the guardian.
 */
export interface Programs {
  readonly front: typeof import('./front.js')
  readonly program: typeof import('./program.js')
  readonly 'guardian-main': object
}

/** What this file gives. CommonJS, since it is loaded before any ES module may be. */
export interface Bundled {
  readonly STAMP_BYTES: number
  readonly setFlags: typeof setFlags
  readonly loadProgram: typeof loadProgram
  readonly compile: typeof compile
  readonly readCompiled: typeof readCompiled
  readonly runScript: typeof runScript
}

const MODULES: { readonly [Name in keyof Programs]: () => Promise<Programs[Name]> } = {
  front: () => import('./front.js'),
  program: () => import('./program.js'),
  'guardian-main': () => import('./guardian-main.js'),
}

/** Bytes in front of the compiled code: the digest of the bundle that it was made from. */
const STAMP_BYTES = 64
/**
 * Bytecode that a function runs before V8 optimizes it, 15 times the default. JavaScript only hands batches on here:
 * compiling it took 10 to 20 % of the CPU time of a full of known data and of a restore of 0.75 GiB (Node 20.20).
 * Compiled code is only good under the flags that it was made under.
 *
 * Only for the program of all commands: node:v8 brings along what takes as long as all of the front.
 */
const V8_FLAGS = '--interrupt-budget=1000000'

/**
 * Loads one program: as one script with the code that V8 had compiled of it,
 * where there is a bundle of this very build, or as some 280 modules. The
 * difference is 0.1 to 0.2 s. Compiled code of another version of Node, or
 * under other V8 flags, is not used by V8, and the script compiled.
 */
async function loadProgram<Name extends keyof Programs>(name: Name): Promise<Programs[Name]> {
  if (name === 'program') setFlags()
  const file = path.join(__dirname, `${name}.bundle.cjs`)
  if (!isCurrent(file)) return await MODULES[name]()
  if (wantsStacks()) {
    process.setSourceMapsEnabled(true)
    return require(file) as Programs[Name]
  }
  return runScript(compile(file, readCompiled(file)), file) as Programs[Name]
}

function setFlags(): void {
  const v8: typeof import('node:v8') = require('node:v8')
  v8.setFlagsFromString(V8_FLAGS)
}

/** The script of a bundle, as Node wraps CommonJS modules. */
function compile(file: string, compiled: { readonly stamp: string; readonly code: Buffer } | undefined): import('node:vm').Script {
  const text = fs.readFileSync(file, 'latin1')
  // The last line has the stamp; V8 would take code of any text that has the same length.
  const isOfThis = compiled !== undefined && text.endsWith(`// ${compiled.stamp}\n`)
  return new vm.Script(`(function (exports, require, module, __filename, __dirname) { ${text}\n})`, {
    filename: file,
    cachedData: isOfThis ? compiled.code : undefined,
  })
}

function runScript(script: import('node:vm').Script, file: string): unknown {
  const made = { exports: {} }
  const wrapped = script.runInThisContext() as (...parts: unknown[]) => void
  wrapped(made.exports, require, made, file, __dirname)
  return made.exports
}

function readCompiled(file: string): { stamp: string; code: Buffer } | undefined {
  try {
    const bytes = fs.readFileSync(`${file}.compiled`)
    return { stamp: bytes.toString('latin1', 0, STAMP_BYTES), code: bytes.subarray(STAMP_BYTES) }
  } catch {
    return undefined
  }
}

/** False where somebody compiled the modules anew and did not bundle them. There is no such record in a package. */
function isCurrent(file: string): boolean {
  const bundle = fs.statSync(file, { throwIfNoEntry: false })
  const modules = fs.statSync(path.join(__dirname, '../../.tsbuildinfo'), { throwIfNoEntry: false })
  return bundle !== undefined && (modules === undefined || modules.mtimeMs <= bundle.mtimeMs)
}

/** -vv shows where an error came from, in terms of the sources. */
function wantsStacks(): boolean {
  return process.argv.filter(word => word === '-v' || word === '--verbose').length > 1 || process.argv.includes('-vv')
}

module.exports = { STAMP_BYTES, setFlags, loadProgram, compile, readCompiled, runScript } satisfies Bundled
