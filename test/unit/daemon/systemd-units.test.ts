import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import t from 'tap'

import { checkTexts, type LoadedConfig } from '../../../src/config/load.js'
import { calendarEvents } from '../../../src/daemon/calendar-event.js'
import { daemonUnits, timerUnits } from '../../../src/daemon/systemd-units.js'

const OPTIONS = { program: '/usr/bin/virtvault', configFile: '/etc/virtvault/config.yml', timeZone: 'Europe/Berlin' }

async function load(text: string): Promise<LoadedConfig> {
  const { config, ...rest } = await checkTexts([{ file: 'config.yml', text }])
  if (config === undefined) throw new Error(JSON.stringify(rest.problems))
  return { ...rest, config }
}

const CONFIG = `
targets:
  nas: { path: /mnt/nas, encryption: { passphrase_credential: nas-key } }
  offsite: { path: /mnt/offsite, index_dir: /var/lib/index }
default: { target: nas }
groups:
  prod: { targets: [nas, offsite], schedule: '0 2 * * 1-5', jitter: 10m, hosts: ['r:.*'] }
  lab: { schedule: '@weekly', catch_up: false, hosts: ['lab*'] }
  manual: { hosts: [x] }
gc: { schedule: '30 5 * * SUN', targets: [nas] }
metrics: { textfile: /var/lib/node/virtvault.prom }
`

t.test('cron expressions become calendar events, two where cron means "or"', async t => {
  const of = (cron: string) => calendarEvents(cron, 'UTC')
  t.strictSame(of('0 2 * * *'), ['*-*-* 02:00:00 UTC'])
  t.strictSame(of('*/15 8-17 * * MON-FRI'), [
    'Mon,Tue,Wed,Thu,Fri *-*-* 08,09,10,11,12,13,14,15,16,17:00,15,30,45:00 UTC',
  ])
  t.strictSame(of('30 5 * * 7'), ['Sun *-*-* 05:30:00 UTC'])
  t.strictSame(of('0 0 1 jan,jul *'), ['*-01,07-01 00:00:00 UTC'])
  t.strictSame(of('0 0 13 * 5'), ['*-*-13 00:00:00 UTC', 'Fri *-*-* 00:00:00 UTC'])
  t.throws(() => of('0 0 L * *'), { code: 'E_UNSUPPORTED' })
})

t.test('the daemon is hardened, watched, and may write where it must', async t => {
  const [unit] = daemonUnits(await load(CONFIG), OPTIONS)
  const text = unit?.text ?? ''
  t.equal(unit?.name, 'virtvault-daemon.service')
  t.match(text, /^ExecStart=\/usr\/bin\/virtvault daemon run --config \/etc\/virtvault\/config\.yml$/m)
  for (const line of ['Type=notify', 'WatchdogSec=60', 'NoNewPrivileges=yes', 'MemoryDenyWriteExecute=no']) {
    t.ok(text.split('\n').includes(line), line)
  }
  t.match(text, /^LoadCredentialEncrypted=nas-key$/m)
  t.match(text, /^ReadWritePaths=-\/mnt\/nas -\/mnt\/offsite -\/var\/lib\/index -\/var\/lib\/node$/m)
})

t.test('each group with a schedule has a timer, and so has the work on stores', async t => {
  const units = new Map(timerUnits(await load(CONFIG), OPTIONS).map(({ name, text }) => [name, text]))
  t.strictSame(
    [...units.keys()],
    [
      'virtvault-pull-prod.service',
      'virtvault-pull-prod.timer',
      'virtvault-pull-lab.service',
      'virtvault-pull-lab.timer',
      'virtvault-gc.service',
      'virtvault-gc.timer',
      'virtvault-notify@.service',
    ],
  )
  t.match(
    units.get('virtvault-pull-prod.timer'),
    /OnCalendar=Mon,Tue,Wed,Thu,Fri \*-\*-\* 02:00:00 Europe\/Berlin\nPersistent=true\nRandomizedDelaySec=600/,
  )
  t.match(units.get('virtvault-pull-lab.timer'), /Persistent=false/)
  const both = units.get('virtvault-pull-prod.service') ?? ''
  t.match(both, /^ExecStart=\/usr\/bin\/virtvault backup pull -g prod --config /m, 'one read for both its targets')
  t.strictSame(
    both.split('\n').filter(line => line.startsWith('ExecStopPost')),
    ['nas', 'offsite'].map(
      target => `ExecStopPost=-/usr/bin/virtvault backup abort --quiet -t ${target} --config /etc/virtvault/config.yml`,
    ),
    'what a killed pull leaves is ended at once',
  )
  t.match(both, /OnFailure=virtvault-notify@%n\.service/)
})

const hasAnalyze = spawnSync('systemd-analyze', ['--version']).status === 0

t.test('systemd understands all of it', { skip: hasAnalyze ? false : 'needs systemd-analyze' }, async t => {
  const folder = mkdtempSync(join(tmpdir(), 'vv-units-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  const loaded = await load(CONFIG)
  const units = [
    ...daemonUnits(loaded, { ...OPTIONS, program: '/bin/true' }),
    ...timerUnits(loaded, { ...OPTIONS, program: '/bin/true' }),
  ]
  for (const { name, text } of units) writeFileSync(join(folder, name), text)
  for (const { text } of units) {
    for (const [, event = ''] of text.matchAll(/^OnCalendar=(.*)$/gm)) {
      t.equal(spawnSync('systemd-analyze', ['calendar', event]).status, 0, event)
    }
  }
  const { stderr } = spawnSync('systemd-analyze', ['verify', ...units.map(({ name }) => join(folder, name))], {
    encoding: 'utf8',
  })
  t.notMatch(stderr, /Unknown|Failed to parse|Invalid/, stderr)
})
