import { readFileSync } from 'node:fs'
import { join } from 'node:path'

import t from 'tap'

import { type HookContext, type HookPorts, runHooksAfter, runHooksBefore } from '../../../src/daemon/hooks.js'

const never = new AbortController().signal
const CONTEXT: HookContext = { verb: 'pull', target: 'nas', domain: { uuid: 'u1', name: "db'01" }, group: 'prod' }
const FAILED = { status: 'failed', error: { code: 'E_AGENT', message: 'silent' }, figures: {} } as const
const about = { scope: 'domain', context: CONTEXT } as const

function ports(log: string[] = [], inGuest: string[] = []): HookPorts {
  return {
    log: line => log.push(line),
    runInGuest: (uuid, { argv }) => {
      inGuest.push(`${uuid} ${argv.join(' ')}`)
      return Promise.resolve({ exit: 0, output: 'inside\n' })
    },
  }
}

t.test('a hook is told what it is about, and nothing of our environment', async t => {
  const file = join(t.testdir(), 'env')
  process.env['SOME_SECRET'] = 'x'
  t.teardown(() => Reflect.deleteProperty(process.env, 'SOME_SECRET'))

  const context = { ...CONTEXT, outcome: FAILED, exit: 6 }
  const hook = { after: 'domain', run: `env > ${file}` } as const
  t.strictSame(await runHooksAfter([hook], { scope: 'domain', context }, ports(), never), [])

  const env = new Map(
    readFileSync(file, 'utf8')
      .split('\n')
      .map(line => [line.slice(0, line.indexOf('=')), line.slice(line.indexOf('=') + 1)] as const),
  )
  t.notOk(env.has('SOME_SECRET'))
  t.equal(env.get('VIRTVAULT_EVENT'), 'after.domain')
  t.equal(env.get('VIRTVAULT_DOMAIN'), "db'01")
  t.equal(env.get('VIRTVAULT_GROUP'), 'prod')
  t.equal(env.get('VIRTVAULT_ERROR_CODE'), 'E_AGENT')
  t.equal(env.get('VIRTVAULT_EXIT'), '6')
  t.match(JSON.parse(env.get('VIRTVAULT_SUMMARY_JSON') ?? ''), { domain: "db'01", status: 'failed' })
})

t.test('a failing hook before a run fails it, cancels it, or is a warning, as on_error says', async t => {
  const run = (on_error?: 'ignore' | 'cancel' | 'fail') =>
    runHooksBefore([{ before: 'domain', run: 'exit 3', ...(on_error && { on_error }) }], about, ports(), never)

  t.match(await run(), { kind: 'fail', error: { code: 'E_HOOK', message: /"exit 3" ended with 3/ } })
  t.match(await run('fail'), { kind: 'fail' })
  t.match(await run('cancel'), { kind: 'cancel', why: /ended with 3/ })
  t.match(await run('ignore'), { kind: 'go', warnings: [{ code: 'W_HOOK' }] })
})

t.test('a failing hook after a run is only a warning, whatever on_error says', async t => {
  const hook = { after: 'domain', run: 'false', on_error: 'fail' } as const
  const context = { ...CONTEXT, outcome: { status: 'success', figures: {} } } as const

  t.match(await runHooksAfter([hook], { scope: 'domain', context }, ports(), never), [{ code: 'W_HOOK' }])
})

t.test('scope, verb, group and state choose the hooks', async t => {
  const log: string[] = []
  const hooks = [
    { after: 'domain', run: 'echo all' },
    { after: 'domain', run: 'echo failed', states: ['failed'] },
    { after: 'domain', run: 'echo good', states: ['success', 'partial'] },
    { after: 'group', run: 'echo group' },
    { after: 'domain', run: 'echo gc', when: ['gc'] },
    { after: 'domain', run: 'echo lab', groups: ['lab'] },
    { error: 'domain', run: 'echo error' },
  ] as const
  const mutable = hooks.map(hook => JSON.parse(JSON.stringify(hook)) as (typeof hooks)[number])

  const context = { ...CONTEXT, outcome: FAILED }
  await runHooksAfter(mutable as never, { scope: 'domain', context }, ports(log), never)

  t.strictSame(log, ['hook: error', 'hook: all', 'hook: failed'])
})

t.test('a list is a program and its arguments: no shell reads them', async t => {
  const log: string[] = []
  const hook = { before: 'domain' as const, run: [['/bin/echo', '$HOME', ';false']] }

  t.match(await runHooksBefore([hook], about, ports(log), never), { kind: 'go' })
  t.strictSame(log, ['hook: $HOME ;false'])
  const relative = { before: 'domain' as const, run: [['echo', 'x']] }
  t.match(await runHooksBefore([relative], about, ports(), never), { kind: 'fail', error: /not an absolute path/ })
})

t.test('a hook that takes too long is killed with all that it started', async t => {
  const file = join(t.testdir(), 'late')
  const hook = { before: 'domain' as const, run: `(sleep 1; touch ${file}) & sleep 60`, timeout: '100ms' }

  const from = performance.now()
  t.match(await runHooksBefore([hook], about, ports(), never), {
    kind: 'fail',
    error: { message: /longer than 0.10s/ },
  })
  t.ok(performance.now() - from < 20_000)
})

t.test('a hook that leaves something running in the background is not waited for', async t => {
  const from = performance.now()
  t.match(await runHooksBefore([{ before: 'domain', run: 'sleep 30 & echo on' }], about, ports(), never), {
    kind: 'go',
  })
  t.ok(performance.now() - from < 20_000)
})

t.test('hooks inside run in the guest of the domain', async t => {
  const inGuest: string[] = []
  const log: string[] = []
  const hook = { before: 'domain' as const, inside: true, run: ['sync', ['fsfreeze', '-f', '/']] }

  t.match(await runHooksBefore([hook], about, ports(log, inGuest), never), { kind: 'go' })
  t.strictSame(inGuest, ['u1 /bin/sh -c sync', 'u1 fsfreeze -f /'])
  t.strictSame(log, ['hook: inside', 'hook: inside'])
})

t.test('the end of the daemon ends a hook', async t => {
  const ending = new AbortController()
  const running = runHooksBefore([{ before: 'domain', run: 'sleep 60' }], about, ports(), ending.signal)
  setImmediate(() => ending.abort())
  t.match(await running, { kind: 'fail', error: { message: /interrupted/ } })
})
