import { type ChildProcess, spawn } from 'node:child_process'
import { mkdirSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import t from 'tap'

const MAIN = fileURLToPath(new URL('../../src/cli/main.cjs', import.meta.url))
const WAITER = fileURLToPath(new URL('cli-waiter.js', import.meta.url))
const ESC = String.fromCharCode(27)

interface Ended {
  readonly code: number | null
  readonly signal: string | null
  readonly stdout: string
  readonly stderr: string
}

interface RunOptions {
  readonly env?: Readonly<Record<string, string | undefined>>
  /** Called with what came on stdout so far. */
  readonly onOutput?: (child: ChildProcess, stdout: string, stderr: string) => void
}

function run(program: string, args: readonly string[], options: RunOptions = {}): Promise<Ended> {
  const env = {
    ...process.env,
    VIRTVAULT_TARGET: undefined,
    VIRTVAULT_JSON: undefined,
    NO_COLOR: undefined,
    ...options.env,
  }
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'], env })
  let stdout = ''
  let stderr = ''
  child.stdout.on('data', (part: Buffer) => {
    stdout += part.toString()
    options.onOutput?.(child, stdout, stderr)
  })
  child.stderr.on('data', (part: Buffer) => {
    stderr += part.toString()
    options.onOutput?.(child, stdout, stderr)
  })
  return new Promise((done, fail) => {
    child.once('error', fail)
    child.once('close', (code, signal) => done({ code, signal, stdout, stderr }))
  })
}

const virtvault = (...args: string[]) => run(MAIN, args)

/** Starts the waiter and sends it `signals`, each as soon as the one before was noticed. */
function interrupted(args: readonly string[], signals: readonly NodeJS.Signals[]): Promise<Ended> {
  let sent = 0
  return run(process.execPath, [WAITER, ...args], {
    onOutput: (child, stdout, stderr) => {
      const noticed = stdout.includes('ready') ? 1 + stderr.split('cleaning up').length - 1 : 0
      const signal = signals[sent]
      if (signal === undefined || noticed <= sent) return
      sent++
      child.kill(signal)
    },
  })
}

function parsed(text: string): Record<string, unknown> {
  const document: Record<string, unknown> = JSON.parse(text)
  return document
}

// Dozens of processes.
t.setTimeout(120_000)

t.test('each kind of failure has its exit code', async t => {
  const dir = t.testdir({ full: { file: 'x' } })
  const store = join(dir, 'store')

  t.equal((await virtvault('--version')).code, 0)
  t.equal((await virtvault('init', store)).code, 0)
  t.equal((await virtvault('list', '-t', store)).code, 0)
  t.equal((await virtvault('list', '-t', store, '--frobnicate')).code, 2, 'unknown flag')
  t.equal((await virtvault('list', '-t', store, '--since', 'tomorrow')).code, 2, 'not a duration')
  t.equal((await virtvault('list')).code, 2, 'no store named')
  t.equal((await virtvault()).code, 2, 'no command')
  t.equal((await virtvault('show', 'web01@latest', '-t', store)).code, 4, 'no such point')
  t.equal((await virtvault('list', 'web01', '-t', store)).code, 4, 'a selector that matches nothing')
  t.equal((await virtvault('list', '-t', 'nas')).code, 4, 'no such target')
  t.equal((await virtvault('list', '-t', join(dir, 'none'))).code, 10, 'no store')
  t.equal((await virtvault('init', store)).code, 15, 'a store is there')
  t.equal((await virtvault('init', join(dir, 'full'))).code, 15, 'something else is there')
  t.equal((await virtvault('lits')).code, 127, 'unknown command')
})

t.test('--json is one valid document on success and on every failure, and stderr stays empty', async t => {
  const store = join(t.testdir(), 'store')

  const made = await virtvault('init', store, '--json')
  t.match(parsed(made.stdout), { schema: 'virtvault/init/1', ok: true, exit: 0, chunk_bytes: 65536 })
  t.equal(made.stderr, '')
  const failures: readonly (readonly [code: string, exit: number, args: readonly string[]])[] = [
    ['E_USAGE', 2, ['list', '--frobnicate']],
    ['E_USAGE', 2, ['show', '-t', store]],
    ['E_USAGE', 2, []],
    ['E_USAGE', 127, ['lits']],
    ['E_NOT_FOUND', 4, ['show', 'a@latest', '-t', store]],
    ['E_NO_STORE', 10, ['list', '-t', `${store}x`]],
    ['E_EXISTS', 15, ['init', store]],
    ['E_NOT_FOUND', 4, ['help', 'E_NONSENSE']],
  ]
  for (const [code, exit, args] of failures) {
    const ended = await virtvault(...args, '--json')
    t.match(parsed(ended.stdout), { schema: 'virtvault/error/1', ok: false, error: { code, exit } }, args.join(' '))
    t.equal(ended.code, exit, args.join(' '))
    t.equal(ended.stderr, '', args.join(' '))
  }
})

t.test('VIRTVAULT_JSON=1 is --json, and forced colour does not colour it', async t => {
  const { stdout } = await run(MAIN, ['list'], { env: { VIRTVAULT_JSON: '1', FORCE_COLOR: '3' } })

  t.match(parsed(stdout), { schema: 'virtvault/error/1' })
})

t.test('without --json nothing of a failure is on stdout, and nothing looks like a stack', async t => {
  const { stdout, stderr } = await virtvault('list', '-t', '/nonexistent/store')

  t.equal(stdout, '')
  t.match(stderr, /^Error: .*\[E_NO_STORE\]\n {2}Why: .*\n {2}Do: {3}/)
  t.notMatch(stderr, /\n\s+at /)
})

t.test('-vv shows where an error came from', async t => {
  t.match((await virtvault('list', '-t', '/nonexistent/store', '-vv')).stderr, /\n\s+at /)
})

t.test('help and versions go to stdout; half a command gets its help on stderr', async t => {
  t.match((await virtvault('--version')).stdout, /^virtvault \d+\.\d+\.\d+\n$/)
  t.match((await virtvault('--help')).stdout, /USAGE/)
  t.match((await virtvault('list', '--help')).stdout, /--since/)
  t.match((await virtvault('help', 'E_AGENT')).stdout, /qemu-guest-agent/)
  t.match(await virtvault(), { stdout: '', stderr: /USAGE/ })
  t.match(parsed((await virtvault('--help', '--json')).stdout), { schema: 'virtvault/help/1' })
})

t.test('an unknown command suggests a known one and asks nothing', async t => {
  t.match((await virtvault('lits')).stderr, /there is no command "lits".*\n.*did you mean "list"/)
})

t.test('help is coloured for people only', async t => {
  const help = ['list', '--help']

  t.notOk((await virtvault(...help)).stdout.includes(ESC), 'a pipe')
  t.ok((await virtvault(...help, '--color', 'always')).stdout.includes(ESC))
  t.ok((await run(MAIN, help, { env: { FORCE_COLOR: '1' } })).stdout.includes(ESC))
  t.notOk((await run(MAIN, help, { env: { FORCE_COLOR: '1', NO_COLOR: '1' } })).stdout.includes(ESC))
})

t.test('a reader that leaves does not hurt', async t => {
  const { code, stderr } = await run('bash', ['-c', `set -o pipefail; '${MAIN}' list --help | true`])

  t.equal(code, 0)
  t.equal(stderr, '')
})

t.test('what is made is for its owner only', async t => {
  const dir = t.testdir()
  mkdirSync(join(dir, 'sub'))
  await virtvault('init', join(dir, 'sub', 'store'))

  t.equal(statSync(join(dir, 'sub', 'store')).mode & 0o077, 0)
  t.equal(statSync(join(dir, 'sub', 'store', 'store.json')).mode & 0o077, 0)
})

for (const [signal, exit] of [
  ['SIGINT', 130],
  ['SIGTERM', 143],
  ['SIGHUP', 129],
] as const) {
  t.test(`${signal} aborts the work and ends with ${exit}`, async t => {
    const ended = await interrupted([], [signal])

    t.equal(ended.code, exit)
    t.match(ended.stderr, new RegExp(`${signal}: cleaning up`))
    t.match(ended.stderr, /interrupted by SIG.*\[E_INTERRUPTED\]/)
    t.notMatch(ended.stderr, /fell over/, 'what the abort caused is not the error')
  })
}

t.test('an interrupted command still prints its one document', async t => {
  const ended = await interrupted(['--json', '--progress', 'plain'], ['SIGTERM'])

  t.equal(ended.code, 143)
  t.match(parsed(ended.stdout.replace(/^ready \d+\n/, '')), { error: { code: 'E_INTERRUPTED', exit: 143 } })
})

t.test('a second signal ends at once', async t => {
  t.match(await interrupted(['--stubborn'], ['SIGINT', 'SIGINT']), { code: 130 })
  t.match(await interrupted(['--stubborn'], ['SIGINT', 'SIGTERM']), { code: 143 })
})

t.test('SIGUSR1 prints the status and ends nothing', async t => {
  let isAsked = false
  let isEnded = false
  const { code, stderr } = await run(process.execPath, [WAITER], {
    onOutput: (child, stdout, stderr) => {
      if (!isAsked && stdout.includes('ready')) isAsked = child.kill('SIGUSR1')
      else if (!isEnded && stderr.split('40%').length > 2) isEnded = child.kill('SIGTERM')
    },
  })

  t.equal(code, 143)
  t.notMatch(stderr, /[Dd]ebugger/, 'Node’s inspector stays off')
})

t.test('progress in a pipe has no control characters', async t => {
  const { stderr } = await interrupted(['--moving', '--name', `x${ESC}[2J`], ['SIGTERM'])

  t.match(stderr, / 50% 500MiB\/1000MiB/)
  t.match(stderr, /x\\x1b\[2J/)
  t.notMatch(stderr, /[^\n\x20-\x7e]/)
})

t.test('json progress is lines of JSON on stderr', async t => {
  const { stderr } = await interrupted(['--progress', 'json', '--json'], ['SIGTERM'])

  const events = stderr.trim().split('\n').map(parsed)
  t.match(events[0], { event: 'phase', subject: 'db01' })
  t.ok(events.some(({ event }) => event === 'progress'))
})

t.test('on a terminal a bar is drawn, and the cursor comes back', async t => {
  const command = `'${process.execPath}' '${WAITER}'`
  let isEnded = false
  const { stdout, code } = await run('script', ['-qec', command, '/dev/null'], {
    env: { TERM: 'xterm', LANG: 'C.UTF-8' },
    onOutput: (_script, stdout) => {
      const pid = /ready (\d+)/.exec(stdout)?.[1]
      if (!isEnded && pid !== undefined && stdout.includes('total')) isEnded = process.kill(Number(pid), 'SIGINT')
    },
  })

  t.equal(code, 130)
  t.match(stdout, /db01 +vda +━+─+ +40 % +400 MiB\/1000 MiB/)
  const hidden = stdout.lastIndexOf(`${ESC}[?25l`)
  t.ok(hidden >= 0, 'the cursor was hidden')
  t.ok(stdout.lastIndexOf(`${ESC}[?25h`) > hidden, 'and shown again')
})
