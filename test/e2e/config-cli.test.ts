import { spawnSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

import t from 'tap'
import { parse } from 'yaml'

import { cliEnvironment } from '../demo/virtvault-cli.js'
import { requires } from '../harness/requires.js'
import { MAIN, runCli } from '../harness/run-cli.js'
import { MIB } from '../lab/fill.js'
import { Lab } from '../lab/lab.js'

// Real domains, on a machine that others use as well.
t.setTimeout(300_000)

const DOCUMENTED = fileURLToPath(new URL('../../../fixtures/config/virt-backup-0.4.yml', import.meta.url))

interface Resolved {
  readonly groups: readonly {
    readonly group: string
    readonly values: readonly { readonly name: string; readonly value: unknown }[]
  }[]
}

t.test('the file of virt-backup’s documentation backs up real domains', requires('lab'), async t => {
  await using lab = await Lab.start()
  const store = lab.path('backups')
  const config = lab.path('config.yml')
  const text = readFileSync(DOCUMENTED, 'utf8').replace('qemu:///system', lab.uri).replaceAll('/mnt/kvm/backups', store)
  writeFileSync(config, text, { mode: 0o600 })
  const env = { ...process.env, ...cliEnvironment(lab) }
  const virtvault = (...args: readonly string[]) => runCli(args, { ...env, VIRTVAULT_CONFIG: config })
  const meaning = async (file: string) => {
    const { stdout } = await runCli(['config', 'show', '--resolved', '--json'], { ...env, VIRTVAULT_CONFIG: file })
    const { groups } = JSON.parse(stdout) as Resolved
    return groups.map(({ group, values }) => [group, Object.fromEntries(values.map(one => [one.name, one.value]))])
  }
  for (const [name, targets] of [
    ['domainname', ['vda', 'vdb', 'vdc']],
    ['prod-web', ['vda']],
    ['domainname3', ['vda']],
  ] as const) {
    const disks = targets.map(target => ({ target, size: 16 * MIB }))
    const domain = await lab.domain({ name, disks })
    await domain.start()
    await domain.write('vda', 0, MIB, { seed: 1 })
  }

  await t.test('it is valid, and what cannot be mapped is told as a warning', async t => {
    const { code, stdout, stderr } = await virtvault('config', 'validate')
    t.equal(code, 0)
    t.match(stdout, /config\.yml: ok/)
    t.match(stderr, /config\.yml:\d+:\d+ +packager tar: /)
    t.match(stderr, /config\.yml:\d+:\d+ +packager_opts is not needed/)
    t.match(stderr, /config\.yml:\d+:\d+ +yearly without a number keeps for ever/)
  })

  await t.test('import gives a file that is valid without a warning and means the same', async t => {
    const { code, stdout, stderr } = await virtvault('config', 'import', 'virt-backup', config)
    t.equal(code, 0)
    t.match(stderr, /packager_opts is not needed/)
    const imported = lab.path('imported.yml')
    writeFileSync(imported, stdout, { mode: 0o600 })
    const checked = await runCli(['config', 'validate', '--json'], { ...env, VIRTVAULT_CONFIG: imported })
    t.match(JSON.parse(checked.stdout), { ok: true, warnings: [] })
    const expected = await meaning(config)
    t.match(expected, [
      ['test', { targets: [store], hourly: 5, daily: 4, weekly: 2, monthly: 5, yearly: '*', quiesce: true }],
      ['test_dir', { targets: [store], hourly: 1, daily: 4, monthly: '*', yearly: 1 }],
    ])
    t.strictSame(await meaning(imported), expected)
  })

  await t.test('before there is a store, the error says how to make it', async t => {
    t.match(await virtvault('backup', 'pull', '-g', 'test'), {
      code: 10,
      stderr: new RegExp(`virtvault init ${store}`),
    })
    const named = lab.path('named.yml')
    writeFileSync(named, `uri: ${lab.uri}\ntargets: { nas: { path: ${store} } }\n`, { mode: 0o600 })
    const listed = await runCli(['list'], { ...env, VIRTVAULT_CONFIG: named })
    t.match(listed, { code: 10, stderr: /virtvault init nas\n/ })
  })

  await t.test('a pull takes the domains and disks that the file lists, and prune its retention', async t => {
    t.equal((await virtvault('init', store)).code, 0)
    const pulls = [
      await virtvault('backup', 'pull', '-g', 'test', '--json'),
      await virtvault('backup', 'pull', '--json'),
    ]
    for (const { code, stdout } of pulls) {
      const { results } = JSON.parse(stdout) as {
        results: readonly { domain: string; status: string; disks: readonly { target: string }[] }[]
      }
      t.equal(code, 0)
      t.strictSame(
        results
          .map(({ domain, status, disks }) => `${domain} ${status} ${disks.map(disk => disk.target).join()}`)
          .sort(),
        ['domainname success vda,vdb', 'prod-web success vda'],
        stdout,
      )
    }
    const pruned = await virtvault('prune', '-n', '-t', store, '--json')
    t.equal(pruned.code, 0)
    const { domains } = JSON.parse(pruned.stdout) as {
      domains: readonly { group: string; points: readonly { reason: string }[] }[]
    }
    t.strictSame(
      domains.map(({ group, points }) => [group, points.length]),
      [
        ['test', 2],
        ['test', 2],
      ],
    )
    for (const { points } of domains) {
      t.match(points.at(-1)?.reason, /^hourly \d\/5, daily \d\/4, weekly \d\/2, monthly \d\/5, yearly \d\/\*$/)
    }
  })
})

t.test('config show, schema, generate and validate as users run them', requires('lab'), async t => {
  await using lab = await Lab.start()
  const env = { ...process.env, ...cliEnvironment(lab) }
  const file = lab.path('new.yml')
  const virtvault = (...args: readonly string[]) => runCli(args, { ...env, VIRTVAULT_CONFIG: file })

  const generated = await runCli(['config', 'generate'], env)
  t.equal(generated.code, 0)
  writeFileSync(file, generated.stdout, { mode: 0o600 })
  t.match(await virtvault('config', 'validate', '--json'), { code: 0, stdout: /"warnings":\s*\[\]/ })
  // A pipe of the shell: Node gives its children sockets, which cannot be opened by path.
  const pipe = '"$0" config generate | "$0" config validate --config /dev/stdin'
  const piped = spawnSync('sh', ['-c', pipe, MAIN], { env })
  t.equal(piped.status, 0, piped.stderr.toString())

  const shown = await virtvault('config', 'show')
  t.equal(shown.code, 0)
  t.match(parse(shown.stdout), { version: 1, groups: { all: { hosts: ['r:.*'] } } })
  const schema = await virtvault('config', 'schema')
  t.equal(schema.code, 0)
  const { properties } = JSON.parse(schema.stdout) as { readonly properties: Readonly<Record<string, unknown>> }
  for (const key of ['targets', 'default', 'groups']) t.ok(key in properties, key)

  const broken = 'threads: many\ngroups:\n  prod:\n    dayly: 7\n    schedule: 0 2 1 13 *\n    hosts: [a]\n'
  writeFileSync(file, broken, { mode: 0o600 })
  const { code, stderr } = await virtvault('config', 'validate')
  t.equal(code, 2)
  t.match(stderr, /new\.yml:1:10 +threads: expected a whole number/)
  t.match(stderr, /new\.yml:4:5 +groups\.prod\.dayly: unknown key\. Did you mean "daily"\?/)
  t.match(stderr, /new\.yml:5:15 +groups\.prod\.schedule: .*Invalid value for month: 13/)
})
