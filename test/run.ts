/**
 * The test runner: `node dist/test/run.js [--jobs=N] [unit|store|nbd|e2e|… or files]`.
 *
 * Runs each test file in a process of its own, prints one line per file and
 * every failure in full, and ends with `N passed, N failed, N skipped`, counted
 * in assertions. Exits with 1 where anything failed, no test ran, or, with
 * REQUIRE_ALL=1 or CI=true, something was skipped. All TAP goes to
 * .tap/run.log. A file that is killed, hangs or breaks off counts as a failure.
 */
import { spawn } from 'node:child_process'
import { createWriteStream, mkdirSync, readdirSync } from 'node:fs'
import { cpus } from 'node:os'
import { basename, dirname, join, relative, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'

import { Parser, type Result } from 'tap-parser'

import { mustRunAll } from './harness/requires.js'

const ROOT = fileURLToPath(new URL('../..', import.meta.url))
/** Where test files are; the runner's own test has some elsewhere. */
const TESTS = flag('root') ?? join(ROOT, 'dist', 'test')
const LOG = join(flag('root') ?? join(ROOT, '.tap'), 'run.log')
/** Not part of a run that names nothing. */
const ONLY_BY_NAME = ['bench', 'demo']
/** The longest whole file; a hung one must not cost the run its time. */
const FILE_TIMEOUT_MS = 600_000
/** How much of a failed file's stderr is shown. */
const STDERR_TAIL = 8_000

interface Outcome {
  passed: number
  failed: number
  skipped: number
  readonly failures: string[]
  readonly skips: string[]
}

function findTests(wanted: readonly string[]): string[] {
  const all = readdirSync(TESTS, { recursive: true, encoding: 'utf8' })
    .filter(path => /\.test\.m?js$/.test(path))
    .sort()
  if (wanted.length === 0) return all.filter(path => !ONLY_BY_NAME.includes(path.split('/')[0] ?? ''))
  return wanted.flatMap(want => {
    const key = relative(ROOT, resolve(ROOT, want))
      .replace(/^(dist\/)?(test\/)?/, '')
      .replace(/\.test\.[jt]s$/, '')
    const found = all.filter(path => {
      const stem = path.replace(/\.test\.m?js$/, '')
      return stem === key || stem.startsWith(`${key}/`) || basename(stem) === key
    })
    if (found.length === 0) throw new Error(`no test is named ${want}`)
    return found
  })
}

/** Longest first, so that the end of a run is not one process alone. */
function byCost(a: string, b: string): number {
  const cost = (path: string) => ['e2e/', 'conformance/', 'store/', 'nbd/'].findIndex(prefix => path.startsWith(prefix))
  const rank = (path: string) => (cost(path) < 0 ? 9 : cost(path))
  return rank(a) - rank(b) || (a < b ? -1 : 1)
}

async function runFile(path: string, log: NodeJS.WritableStream): Promise<Outcome> {
  const outcome: Outcome = { passed: 0, failed: 0, skipped: 0, failures: [], skips: [] }
  const parser = new Parser({ name: path })
  collect(parser, outcome)

  const child = spawn(process.execPath, ['--enable-source-maps', join(TESTS, path)], {
    cwd: ROOT,
    // Its own process group, so that what it started ends with it.
    detached: true,
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, TAP: '1', TAP_TIMEOUT: String(FILE_TIMEOUT_MS / 1000 - 10) },
  })
  running.add(child.pid)
  let tap = ''
  let stderr = ''
  child.stdout.on('data', (part: Buffer) => {
    tap += part.toString()
    parser.write(part)
  })
  child.stderr.on('data', (part: Buffer) => {
    stderr += part.toString()
  })
  let isLate = false
  const timer = setTimeout(() => {
    isLate = true
    killGroup(child.pid)
  }, FILE_TIMEOUT_MS)
  const ended = await new Promise<string>((done, fail) => {
    child.once('error', fail)
    child.once('close', (code, signal) => done(signal === null ? `exit code ${code ?? -1}` : `signal ${signal}`))
  })
  clearTimeout(timer)
  running.delete(child.pid)
  killGroup(child.pid)
  const done = new Promise<void>(settled => parser.once('complete', () => settled()))
  parser.end()
  await done

  log.write(`# file ${path}\n${tap}# stderr of ${path}\n${stderr.replace(/^/gm, '# ')}\n`)
  const results = parser.results
  if (results !== null && !results.ok && outcome.failed === 0) {
    outcome.failed++
    outcome.failures.push(`broken TAP: ${JSON.stringify(results.failures)}`)
  }
  if (isLate || (ended !== 'exit code 0' && outcome.failed === 0)) {
    outcome.failed++
    outcome.failures.push(isLate ? `took longer than ${FILE_TIMEOUT_MS / 1000} s` : `ended with ${ended}`)
  }
  if (outcome.passed + outcome.failed + outcome.skipped === 0) {
    outcome.failed++
    outcome.failures.push('holds no test')
  }
  if (outcome.failed > 0 && stderr !== '') outcome.failures.push(`stderr:\n${stderr.slice(-STDERR_TAIL)}`)
  return outcome
}

/** The parser reports leaves as results: a subtest is as good as what is in it. */
function collect(parser: Parser, outcome: Outcome): void {
  parser.on('result', (result: Result) => {
    if (result.skip !== false || result.todo !== false) {
      outcome.skipped++
      const reasons = [result.skip, result.todo].filter(why => typeof why === 'string')
      outcome.skips.push(`${result.fullname || result.name}: ${reasons.join(' ')}`)
    } else if (result.ok) {
      outcome.passed++
    } else {
      outcome.failed++
      outcome.failures.push(`${result.fullname || result.name}${describe(result.diag)}`)
    }
  })
  parser.on('bailout', (reason: string) => {
    outcome.failed++
    outcome.failures.push(`bailed out: ${reason}`)
  })
}

/** A diagnostic as people read it: texts as they are, the rest as JSON. */
function describe(diag: unknown): string {
  if (diag === null || typeof diag !== 'object') return ''
  return Object.entries(diag)
    .map(([key, value]) => {
      const text = typeof value === 'string' ? value.trimEnd() : JSON.stringify(value)
      return `\n  ${key}: ${text.includes('\n') ? `\n${text.replace(/^/gm, '    ')}` : text}`
    })
    .join('')
}

const running = new Set<number | undefined>()

function killGroup(pid: number | undefined): void {
  if (pid === undefined) return
  try {
    process.kill(-pid, 'SIGKILL')
  } catch {
    // Already gone, which is what was wanted.
  }
}

/** `--name=value` */
function flag(name: string): string | undefined {
  const prefix = `--${name}=`
  return process.argv.find(word => word.startsWith(prefix))?.slice(prefix.length)
}

function print(line: string): void {
  process.stdout.write(`${line}\n`)
}

async function main(): Promise<number> {
  const jobs = Number(flag('jobs') ?? Math.min(4, Math.max(2, cpus().length)))
  const files = findTests(process.argv.slice(2).filter(word => !word.startsWith('--'))).sort(byCost)
  mkdirSync(dirname(LOG), { recursive: true })
  const log = createWriteStream(LOG)
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.once(signal, () => {
      // The files' own handlers clean up; their groups do not get the terminal's Ctrl-C.
      for (const pid of running) if (pid !== undefined) process.kill(-pid, 'SIGTERM')
      process.exitCode = 1
      process.kill(process.pid, 'SIGKILL')
    })
  }

  const sum = { passed: 0, failed: 0, skipped: 0 }
  const queue = [...new Set(files)]
  await Promise.all(
    Array.from({ length: jobs }, async () => {
      for (let path = queue.shift(); path !== undefined; path = queue.shift()) {
        const start = performance.now()
        const outcome = await runFile(path, log)
        const seconds = ((performance.now() - start) / 1000).toFixed(1)
        const failed = outcome.failed > 0 ? `, ${outcome.failed} failed` : ''
        const skipped = outcome.skipped > 0 ? `, ${outcome.skipped} skipped` : ''
        const verdict = outcome.failed > 0 ? 'FAIL' : 'ok  '
        print(`${verdict}  ${path}  ${outcome.passed} passed${failed}${skipped}  ${seconds} s`)
        for (const skip of outcome.skips) print(`      SKIP ${skip}`)
        for (const failure of outcome.failures) print(failure.replace(/^/gm, '      '))
        sum.passed += outcome.passed
        sum.failed += outcome.failed
        sum.skipped += outcome.skipped
      }
    }),
  )
  await new Promise<void>(done => log.end(() => done()))
  print('')
  print(`TAP: ${LOG}`)
  if (mustRunAll() && sum.skipped > 0) print('A skipped test is a failure here (REQUIRE_ALL, CI).')
  print(`${sum.passed} passed, ${sum.failed} failed, ${sum.skipped} skipped`)
  return sum.failed > 0 || sum.passed === 0 || (mustRunAll() && sum.skipped > 0) ? 1 : 0
}

try {
  process.exitCode = await main()
} catch (error) {
  print(error instanceof Error ? error.message : String(error))
  print('0 passed, 0 failed, 0 skipped')
  process.exitCode = 1
}
