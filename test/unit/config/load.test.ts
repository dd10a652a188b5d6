import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

import fc from 'fast-check'
import t from 'tap'

import { convertConfig, migrateConfig } from '../../../src/config/compat.js'
import { parseConfigDocument, valuesOf } from '../../../src/config/document.js'
import { generateConfig } from '../../../src/config/generate.js'
import { checkTexts, defaultFiles, loadConfig, readConfig } from '../../../src/config/load.js'
import type { ConfigReading } from '../../../src/config/load.js'
import { formatPath, formatProblem, parsePath } from '../../../src/config/problems.js'
import { configJsonSchema } from '../../../src/config/schema.js'
import type { ConfigLayer } from '../../../src/config/virt-backup.js'

function fixture(name: string): string {
  return readFileSync(fileURLToPath(new URL(`../../../../fixtures/config/${name}`, import.meta.url)), 'utf8')
}

async function check(text: string, overrides: string[] = []): Promise<ConfigReading> {
  return checkTexts([{ file: 'config.yml', text }], overrides)
}

async function problems(text: string, overrides: string[] = []): Promise<string[]> {
  return (await check(text, overrides)).problems.map(formatProblem)
}

t.test('the documented configuration has no problem and no warning', async t => {
  const { problems, warnings, config } = await check(fixture('documented.yml'))

  t.strictSame(problems.map(formatProblem), [])
  t.strictSame(warnings, [])
  t.match(config, { threads: 2, timezone: 'Europe/Berlin', groups: { prod: { targets: ['nas', 'offsite'] } } })
  t.equal(config?.username, undefined)
})

t.test('a misspelt key is reported with its place and the key that was meant', async t => {
  const text = 'targets:\n  nas: { path: /x }\ngroups:\n  prod:\n    target: nas\n    dayly: 7\n'

  t.strictSame(await problems(text), ['config.yml:6:5  groups.prod.dayly: unknown key. Did you mean "daily"?'])
})

t.test('all mistakes are listed, each with its place', async t => {
  const text = `threads: many
targest: {}
targets: { nas: { path: /x, encrypt: none }, both: { path: /y, s3: { bucket: b } } }
default:
  target: nsa
  quiesce: maybe
  window: 22-6
groups:
  prod:
    schedule: 61 0 * * *
    weekly: -1
    monthly:
    hosts:
      - host: db01
        diks: [vda]
      - 'r:('
      - 5
commands: [{ run: x }]
verify: { sample: 200%, boot: { groups: [pord] } }
`
  t.strictSame(await problems(text), [
    'config.yml:1:10  threads: expected a whole number',
    'config.yml:2:1  targest: unknown key. Did you mean "targets"?',
    'config.yml:3:29  targets.nas.encrypt: unknown key. Did you mean "encryption"?',
    'config.yml:6:12  default.quiesce: expected true or false or "required"',
    'config.yml:7:11  default.window: "22-6" is not a time window',
    'config.yml:10:15  groups.prod.schedule: "61 0 * * *" is not a schedule: Invalid value for minute: 61',
    'config.yml:11:13  groups.prod.weekly: too small: expected number to be >=0',
    'config.yml:12:13  groups.prod.monthly: expected a whole number or "*"',
    'config.yml:15:9  groups.prod.hosts[0].diks: unknown key. Did you mean "disks"?',
    'config.yml:16:9  groups.prod.hosts[1]: "r:(" is not a regular expression: Invalid regular expression: /^(?:()/: Unterminated group',
    'config.yml:17:9  groups.prod.hosts[2]: expected a text or a map of keys',
    'config.yml:19:19  verify.sample: expected a percentage such as 5%',
  ])
})

t.test('names that do not exist are found once the form is right', async t => {
  const text = `targets: { nas: { path: /x }, both: { path: /y, s3: { bucket: b } } }
default: { target: nsa }
groups: { prod: { target: nas, targets: [/srv/store, ofsite], hosts: [{ host: a, target: s3://x }] } }
commands: [{ run: x }]
verify: { boot: { groups: [pord] } }
`
  t.strictSame(await problems(text), [
    'config.yml:1:37  targets.both: a target has either path or s3',
    'config.yml:2:20  default.target: there is no target "nsa". Did you mean "nas"?',
    'config.yml:3:41  groups.prod.targets: target and targets are both set: keep one of them',
    'config.yml:3:54  groups.prod.targets[1]: there is no target "ofsite"',
    'config.yml:4:12  commands[0]: a command has one of before, after, error',
    'config.yml:5:28  verify.boot.groups[0]: there is no group "pord". Did you mean "prod"?',
  ])
})

t.test('a target on an object store is answered while the file is checked, not at night', async t => {
  t.strictSame(await problems('targets: { off: { s3: { bucket: b } } }\n'), [
    'config.yml:1:23  targets.off.s3: object stores are not supported by this version: use path, with a local or mounted file system',
  ])
})

t.test('what is not YAML is reported with its place', async t => {
  t.match(await problems('threads: 1\n  uri: x\n'), [/^config\.yml:1:10 {2}Nested/])
  t.match(await problems('uri: a\nuri: b\n'), [/^config\.yml:2:1 {2}key is given twice/])
  const stumbled = await problems('uri: a\nuri: b\n$ x\n- a: b\nc: d\ne: f\n')
  t.equal(stumbled.length, 2, 'what was said twice, and where the syntax breaks, not all that comes of it')
  t.match(await problems('- a\n- b\n'), [/a configuration is a map/])
  t.strictSame(await problems(''), [])
})

t.test('aliases that expand without end are refused', async t => {
  const bomb = [
    'a: &a [x, x, x, x, x, x, x, x, x]',
    ...'bcdefgh'.split('').map((key, at) => `${key}: &${key} [${Array(9).fill(`*${'abcdefg'[at]}`).join(', ')}]`),
  ].join('\n')

  t.match(await problems(bomb), [/alias/i])
})

t.test('an anchor and a merge key are understood, and their places found', async t => {
  const text = 'groups:\n  a: &keep\n    daily: 7\n    hosts: [x]\n  b:\n    <<: *keep\n    weekly: 4\n'
  const { config, where } = await check(text)

  t.match(config?.groups?.['b'], { daily: 7, weekly: 4, hosts: ['x'] })
  t.equal(where(['groups', 'b', 'weekly']), 'config.yml:7:13')
  t.match(where(['groups', 'b', 'daily']), /^config\.yml:\d+:\d+$/)
})

t.test('an override replaces one value and is where its mistakes are', async t => {
  const text = 'groups: { prod: { daily: 7, hosts: [a, b] } }\n'
  const { config, where } = await check(text, [
    'groups.prod.daily=14',
    'groups.prod.hosts[1]=c',
    'groups."x.y".weekly=\'*\'',
  ])

  t.match(config?.groups, { prod: { daily: 14, hosts: ['a', 'c'] }, 'x.y': { weekly: '*' } })
  t.equal(where(['groups', 'prod', 'daily']), '--override')
  t.strictSame(await problems(text, ['groups.prod.dayly=14']), [
    '--override  groups.prod.dayly: unknown key. Did you mean "daily"?',
  ])
  t.match(await problems(text, ['nonsense']), [/^--override nonsense {2}expected key=value/])
  t.match(await problems(text, ['a=[']), [/^--override a=\[ {2}/])
})

t.test('a path reads back as it was written', async t => {
  for (const path of [
    ['groups', 'prod', 'daily'],
    ['a', 0, 'b'],
    ['x.y', 'q"r', ''],
    ['hosts', 12],
  ]) {
    t.strictSame(parsePath(formatPath(path)), path)
  }
  for (const text of ['', '.a', 'a..b', 'a[x]']) t.equal(parsePath(text), undefined, text)
})

t.test('conf.d is read in the order of names, maps are joined and later files win', async t => {
  const folder = t.testdir({
    'config.yml': 'groups: { a: { daily: 1, weekly: 1 } }\n',
    'conf.d': {
      '20-b.yml': 'groups:\n  a: { daily: 2 }\n  b: { hosts: [x] }\n',
      '30-c.yaml': 'groups:\n  a: { daily: 3 }\n',
      '.hidden.yml': 'nonsense: 1\n',
      'notes.txt': 'nonsense: 1\n',
    },
  })

  const { config, where, files } = await loadConfig({ file: `${folder}/config.yml`, env: {} })

  t.match(config.groups, { a: { daily: 3, weekly: 1 }, b: { hosts: ['x'] } })
  t.equal(where(['groups', 'a', 'daily']), `${folder}/conf.d/30-c.yaml:2:15`)
  t.equal(files.length, 3)
})

t.test('a file that is named must exist, one that is not need not', async t => {
  const folder = t.testdir({ '.config': { virtvault: { 'config.yml': 'threads: 3\n' } } })

  await t.rejects(readConfig({ file: `${folder}/none.yml`, env: {} }), { code: 'E_CONFIG' })
  await t.rejects(readConfig({ env: { VIRTVAULT_CONFIG: `${folder}/none.yml` } }), { code: 'E_CONFIG' })
  t.match(await readConfig({ env: { HOME: folder } }), { config: { threads: 3 } })
  t.strictSame(defaultFiles({ XDG_CONFIG_HOME: '/x', HOME: '/h' }), [
    '/x/virtvault/config.yml',
    '/etc/virtvault/config.yml',
  ])
  t.strictSame(defaultFiles({}), ['/etc/virtvault/config.yml'])
})

t.test('loading a wrong file throws one error that lists every mistake', async t => {
  const folder = t.testdir({ 'config.yml': 'uri: 5\nthreads: x\n' })

  await t.rejects(loadConfig({ file: `${folder}/config.yml`, env: {} }), {
    code: 'E_CONFIG',
    message: /2 mistakes: .*config\.yml:1:6 {2}uri: [^]*config\.yml:2:10 {2}threads: /,
  })
  await t.rejects(loadConfig({ file: folder, env: {} }), { code: 'E_CONFIG', message: /cannot be read/ })
})

t.test('a secret in a file that others can read is a warning that does not show it', async t => {
  const text = 'targets: { nas: { path: /x, encryption: { passphrase: hunter2 } } }\n'
  const { warnings } = await checkTexts([{ file: 'config.yml', text, isExposed: true }])

  t.match(warnings, [{ code: 'W_CONFIG_FILE', message: /targets\.nas\.encryption\.passphrase: others can read/ }])
  t.notMatch(JSON.stringify(warnings), 'hunter2')
  t.strictSame((await check(text)).warnings, [])
})

t.test('a file of virt-backup is taken as it is, and what has no equal is said', async t => {
  const { config, problems: found, warnings } = await check(fixture('virt-backup-0.4.yml'))

  t.strictSame(found.map(formatProblem), [])
  t.match(config, {
    threads: 1,
    default: { hourly: 1, daily: 4, quiesce: false },
    groups: {
      test: {
        target: '/mnt/kvm/backups',
        autostart: true,
        yearly: '*',
        quiesce: true,
        hosts: [
          { host: 'domainname', disks: ['vda', 'vdb'], quiesce: false },
          'domainname2',
          'r:^prod.*',
          '!domainname3',
          '!r:^test.*',
        ],
      },
      test_dir: { monthly: '*' },
    },
  })
  const messages = warnings.map(one => one.message)
  for (const expected of [
    /^config\.yml:18:5 {2}packager tar: .*virtvault restore/,
    /^config\.yml:19:5 {2}packager_opts is not needed/,
    /^config\.yml:17:13 {2}\/mnt\/kvm\/backups is taken as a store/,
    /^config\.yml:24:5 {2}yearly without a number keeps for ever/,
    /packager directory/,
  ]) {
    t.ok(
      messages.some(message => expected.test(message)),
      String(expected),
    )
  }
})

t.test('a file of virt-backup 0.1 is taken too, with five of each period it does not mention', async t => {
  const { config, problems: found, warnings } = await check(fixture('virt-backup-0.1.yml'))

  t.strictSame(found.map(formatProblem), [])
  t.match(config, { passphrase: 'secret', default: { hourly: 5, daily: 4, yearly: 1 } })
  t.match(config?.groups?.['test']?.hosts, [{ host: 'domainname', disks: ['vda'] }, 'r:^prod.*'])
  t.ok(warnings.some(one => /^config\.yml:\d+:\d+ {2}packager tar/.test(one.message)))
  t.ok(warnings.some(one => /keeps 5 of each period.*hourly/.test(one.message)))
})

t.test('a file of virt-backup is converted once and for all, with its comments', async t => {
  for (const name of ['virt-backup-0.1.yml', 'virt-backup-0.4.yml']) {
    const original = `# ours since 2019\n${fixture(name).replace('groups:', '# the groups\ngroups:')}`
    const { text, remarks } = convertConfig('config.yml', original)
    const before = await check(original)
    const after = await check(text)

    t.match(text, /^# ours since 2019/)
    t.match(text, '# the groups')
    t.ok(remarks.length > 0)
    t.strictSame(after.warnings, [])
    t.strictSame(after.config, { ...before.config, version: 1 })
  }
  t.throws(() => convertConfig('config.yml', 'a: ['), { code: 'E_CONFIG', why: /config\.yml:1:/ })
})

t.test('a layer that is added later is applied after those before it', async t => {
  const { document } = parseConfigDocument('config.yml', 'a: 1\n')
  const step = (from: string, to: string): ConfigLayer => ({
    from,
    appliesTo: one => one.yaml.has(from),
    apply: one => {
      one.yaml.delete(from)
      one.yaml.set(to, 1)
      return [{ where: 'x', message: `${from} to ${to}` }]
    },
  })

  const remarks = migrateConfig(document, [step('a', 'b'), step('z', 'y'), step('b', 'c')])

  t.strictSame(valuesOf(document), { c: 1 })
  t.strictSame(
    remarks.map(one => one.message),
    ['a to b', 'b to c'],
  )
})

t.test('a file of ours is never taken for one of virt-backup', async t => {
  for (const text of [
    'version: 1\ngroups: { a: { target: /srv/store, daily: 7 } }\n',
    'groups: { a: { target: /srv/store, daily: 7, schedule: "@daily" } }\n',
    'groups: { a: { target: nas, daily: 7 } }\ntargets: { nas: { path: /x } }\n',
    '',
  ]) {
    const { config, warnings } = await check(text)
    t.strictSame(warnings, [], text)
    t.notMatch(config, { default: { weekly: 5 } }, text)
  }
})

t.test('whatever a file holds, reading it ends in problems and never in a crash', async () => {
  const base = fixture('documented.yml')
  const piece = fc.oneof(
    fc.string({ maxLength: 8 }),
    fc.constantFrom(': ', '\n', '  ', '- ', '&a ', '*a', '<<', '!!set ', '{', '[', '"', '? '),
  )
  const places = fc.tuple(fc.nat(base.length), fc.nat(40), piece)
  await fc.assert(
    fc.asyncProperty(places, fc.string(), async ([at, cut, put], override) => {
      const { config, problems } = await check(base.slice(0, at) + put + base.slice(at + cut), [override])
      return (config === undefined) === problems.length > 0
    }),
    { numRuns: 60 },
  )
})

t.test('a part in conf.d, and a file that has parts, is never taken for one of virt-backup', async t => {
  const main = 'groups: { a: { target: /srv/store, daily: 7 } }\n'
  const reading = await checkTexts([
    { file: 'config.yml', text: main },
    { file: 'conf.d/b.yml', text: main },
  ])

  t.strictSame(reading.warnings, [])
  t.equal(reading.config?.default, undefined)
})

t.test('a version that does not exist yet is refused', async t => {
  t.strictSame(await problems('version: 2\n'), ['config.yml:1:10  version: expected 1'])
})

t.test('the generated configuration is right as it stands, and with every comment taken in', async t => {
  const text = generateConfig({ storePath: '/srv/a b: "c"', timeZone: 'Europe/Berlin' })
  const all = text.replaceAll(/^#(?! )(?=[ \w])/gm, '').replaceAll(/^#( {2,}\S)/gm, '$1')

  t.strictSame(await problems(text), [])
  t.strictSame(await problems(all), [])
  const { config } = await check(all)
  t.match(config, { notify: {}, commands: [{}, {}], targets: { offsite: {}, local: { path: '/srv/a b: "c"' } } })
})

t.test('the JSON Schema knows the keys and forbids others', async t => {
  const schema = configJsonSchema()

  t.match(schema, { type: 'object', additionalProperties: false, properties: { groups: { type: 'object' } } })
  t.match(JSON.stringify(schema), /"quiesce":\{"description":"[^"]+","anyOf":/)
})
