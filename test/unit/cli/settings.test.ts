import t from 'tap'

import { type GlobalFlagValues, resolveSettings, wantsColor, wantsJson } from '../../../src/cli/settings.js'

const NO_TERMINAL = { stdoutIsTty: false, stderrIsTty: false }
const TERMINAL = { stdoutIsTty: true, stderrIsTty: true }

function settings(
  flags: GlobalFlagValues,
  env: Record<string, string> = {},
  argv: string[] = [],
  terminal = NO_TERMINAL,
) {
  return resolveSettings(flags, { argv, env, terminal })
}

t.test('a flag beats our variable, which beats libvirt’s', async t => {
  const env = { VIRTVAULT_CONNECT: 'b', LIBVIRT_DEFAULT_URI: 'c', VIRTVAULT_TARGET: 'nas' }

  t.equal(settings({ connect: 'a' }, env).connect, 'a')
  t.equal(settings({}, env).connect, 'b')
  t.equal(settings({}, { LIBVIRT_DEFAULT_URI: 'c' }).connect, 'c')
  t.equal(settings({}, { VIRTVAULT_CONNECT: '', LIBVIRT_DEFAULT_URI: 'c' }).connect, 'c', 'empty is unset')
  t.equal(settings({}).connect, undefined)
  t.equal(settings({ target: '/x' }, env).target, '/x')
  t.equal(settings({}, env).target, 'nas')
})

t.test('bars are drawn on a terminal only', async t => {
  t.equal(settings({}, {}, [], TERMINAL).progress, 'bar')
  t.equal(settings({}).progress, 'plain')
  t.equal(settings({ progress: 'bar' }).progress, 'plain')
  t.equal(settings({}, { TERM: 'dumb' }, [], TERMINAL).progress, 'plain')
  t.equal(settings({ quiet: true }, {}, [], TERMINAL).progress, 'none')
  t.equal(settings({}, { VIRTVAULT_PROGRESS: 'json' }, [], TERMINAL).progress, 'json')
  t.equal(settings({ progress: 'none' }, { VIRTVAULT_PROGRESS: 'json' }).progress, 'none')
})

t.test('json is known before flags are parsed', async t => {
  t.ok(wantsJson(['list', '--json'], {}))
  t.ok(wantsJson([], { VIRTVAULT_JSON: '1' }))
  t.notOk(wantsJson(['list', '--', '--json'], {}))
})

t.test('-v adds up', async t => {
  t.equal(settings({}).verbosity, 1)
  t.equal(settings({}, {}, ['-v']).verbosity, 2)
  t.equal(settings({}, {}, ['-vv']).verbosity, 3)
  t.equal(settings({}, {}, ['-v', '--verbose', '-v']).verbosity, 3)
  t.equal(settings({ quiet: true }, {}, ['-q']).verbosity, 0)
})

t.test('colour follows the flag, then NO_COLOR, then FORCE_COLOR, then the terminal', async t => {
  t.equal(wantsColor('always', { NO_COLOR: '1' }, false), true)
  t.equal(wantsColor('never', { FORCE_COLOR: '1' }, true), false)
  t.equal(wantsColor(undefined, { NO_COLOR: '1', FORCE_COLOR: '1' }, true), false)
  t.equal(wantsColor(undefined, { FORCE_COLOR: '1' }, false), true)
  t.equal(wantsColor(undefined, { FORCE_COLOR: '0' }, true), false)
  t.equal(wantsColor(undefined, {}, true), true)
  t.equal(wantsColor('auto', { TERM: 'dumb' }, true), false)
})
