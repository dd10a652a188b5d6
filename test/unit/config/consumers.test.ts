import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

import t from 'tap'

import { configJsonSchema } from '../../../src/config/schema.js'
import { SETTING_KEYS } from '../../../src/config/settings.js'

const SRC = fileURLToPath(new URL('../../../../src/', import.meta.url))
const SECRETS = /_(file|command|credential)$/

/** Who acts on each key: a file, and the words in it that do. Settings of jobs are below. */
const CONSUMERS: Readonly<Record<string, readonly [string, string]>> = {
  threads: ['cli/pull-requests.ts', 'loaded.config.threads'],
  uri: ['cli/wire.ts', 'config.uri'],
  username: ['cli/wire.ts', 'config.username'],
  passphrase: ['cli/wire.ts', "secretSourceOf(config, 'passphrase')"],
  'remote.nbd': ['cli/remote-wire.ts', 'remote?.nbd'],
  'remote.insecure': ['cli/remote-wire.ts', 'remote?.insecure'],
  'remote.bind': ['cli/remote-wire.ts', 'remote?.bind'],
  'remote.host': ['cli/remote-wire.ts', 'remote?.host'],
  'remote.ports': ['cli/remote-wire.ts', 'remote.ports'],
  'remote.certificates': ['cli/remote-wire.ts', 'remote?.certificates'],
  'remote.runtime_dir': ['cli/remote-wire.ts', 'remote?.runtime_dir'],
  timezone: ['config/resolve.ts', 'timezone'],
  nice: ['cli/pull-run.ts', 'loaded.config.nice'],
  ionice: ['cli/pull-run.ts', 'loaded.config.ionice'],
  state_dir: ['cli/daemon-wire.ts', 'loaded.config.state_dir'],
  'retry.attempts': ['daemon/limits.ts', 'retry?.attempts'],
  'retry.delay': ['daemon/limits.ts', 'retry?.delay'],
  'targets.*.path': ['cli/targets.ts', 'configured.path'],
  'targets.*.encryption': ['cli/targets.ts', 'encryptionOf(encryption)'],
  'targets.*.encryption.passphrase': ['cli/passphrases.ts', "'passphrase'"],
  'targets.*.bwlimit': ['cli/targets.ts', 'configured.bwlimit'],
  'targets.*.parallel': ['daemon/limits.ts', '.parallel'],
  'targets.*.index_dir': ['cli/targets.ts', 'configured.index_dir'],
  'groups.*.hosts': ['config/resolve.ts', 'hosts'],
  'groups.*.hosts.host': ['config/resolve.ts', '.host'],
  'verify.schedule': ['daemon/plan-tasks.ts', 'verify?.schedule'],
  'verify.targets': ['daemon/plan-tasks.ts', 'verify?.targets'],
  'verify.level': ['cli/verify-store.ts', 'verify?.level'],
  'verify.sample': ['cli/verify-store.ts', 'verify?.sample'],
  'verify.max_age': ['cli/verify-store.ts', 'verify?.max_age'],
  'verify.boot.schedule': ['daemon/plan-tasks.ts', 'verify?.boot?.schedule'],
  'verify.boot.groups': ['cli/verify-store.ts', 'groups, timeout } = verify?.boot'],
  'verify.boot.timeout': ['cli/verify-store.ts', 'groups, timeout } = verify?.boot'],
  'prune.schedule': ['daemon/plan-tasks.ts', 'prune?.schedule'],
  'gc.schedule': ['daemon/plan-tasks.ts', 'gc?.schedule'],
  'gc.targets': ['daemon/plan-tasks.ts', 'gc?.targets'],
  'commands.before': ['daemon/hooks.ts', "'before'"],
  'commands.after': ['daemon/hooks.ts', "'after'"],
  'commands.error': ['daemon/hooks.ts', "'error'"],
  'commands.when': ['daemon/hooks.ts', 'hook.when'],
  'commands.states': ['daemon/hooks.ts', 'hook.states'],
  'commands.groups': ['daemon/hooks.ts', 'hook.groups'],
  'commands.inside': ['daemon/hooks.ts', 'hook.inside'],
  'commands.run': ['daemon/hooks.ts', 'hook.run'],
  'commands.on_error': ['daemon/hooks.ts', 'hook.on_error'],
  'commands.timeout': ['daemon/hooks.ts', 'hook.timeout'],
  'notify.healthchecks.url': ['daemon/notifiers.ts', "'url'"],
  'notify.healthchecks.start': ['daemon/notifiers.ts', 'raw.start'],
  'notify.healthchecks.send_log': ['daemon/notifiers.ts', 'raw.send_log'],
  'notify.ntfy.topic': ['daemon/notifiers.ts', 'raw.topic'],
  'notify.ntfy.token': ['daemon/notifiers.ts', "'token'"],
  'notify.ntfy.priority': ['daemon/notifiers.ts', 'raw.priority'],
  'notify.ntfy.on': ['daemon/notifiers.ts', '.on'],
  'notify.mail.to': ['daemon/notifiers.ts', 'raw.to'],
  'notify.mail.from': ['daemon/notifiers.ts', 'raw.from'],
  'notify.mail.smtp.host': ['daemon/smtp.ts', 'host'],
  'notify.mail.smtp.port': ['daemon/smtp.ts', 'port'],
  'notify.mail.smtp.username': ['daemon/smtp.ts', 'username'],
  'notify.mail.smtp.password': ['daemon/notifiers.ts', "'password', raw.smtp"],
  'notify.mail.on': ['daemon/notifiers.ts', '.on'],
  'notify.mail.digest': ['daemon/notice-desk.ts', 'digest'],
  'notify.webhook.url': ['daemon/notifiers.ts', "'url'"],
  'notify.webhook.headers': ['daemon/notifiers.ts', 'raw.headers'],
  'notify.webhook.on': ['daemon/notifiers.ts', '.on'],
  'metrics.textfile': ['daemon/publisher.ts', 'metrics?.textfile'],
  'metrics.listen': ['cli/daemon-wire.ts', 'metrics?.listen'],
  'ui.listen': ['cli/daemon-wire.ts', 'ui?.listen'],
  'ui.socket': ['cli/daemon-wire.ts', 'ui?.socket'],
  'ui.token': ['cli/daemon-wire.ts', "secretSourceOf(ui, 'token')"],
}

/** Keys that may be written and change nothing, or are refused by name. */
const WITHOUT_EFFECT: Readonly<Record<string, string>> = {
  version: 'the form of the file; only 1 is accepted',
  debug: 'a key of virt-backup; -vv is what does it here',
  'targets.*.s3': 'refused while the configuration is checked: no object stores yet',
  'targets.*.storage_class': 'of object stores',
}

/** Who acts on each setting of a job, by its name in the program. */
const SETTING_CONSUMERS: Readonly<Record<keyof typeof SETTING_KEYS, readonly [string, string]>> = {
  targets: ['daemon/plan-tasks.ts', 'targets } = job.settings'],
  schedule: ['daemon/plan-tasks.ts', 'settings.schedule'],
  timeZone: ['daemon/plan-tasks.ts', 'settings.timeZone'],
  jitter: ['daemon/plan-tasks.ts', 'settings.jitter'],
  catchUp: ['daemon/plan-tasks.ts', 'settings.catchUp'],
  window: ['daemon/plan-tasks.ts', 'settings.window'],
  autostart: ['config/resolve.ts', 'autostart'],
  paused: ['daemon/plan-tasks.ts', 'settings.paused'],
  priority: ['daemon/plan-tasks.ts', 'settings.priority'],
  disks: ['cli/pull-requests.ts', 'settings.disks'],
  excludeDisks: ['cli/pull-requests.ts', 'settings.excludeDisks'],
  depth: ['cli/pull-requests.ts', 'settings.depth'],
  disableIfPoweredOff: ['cli/daemon-jobs.ts', 'settings.disableIfPoweredOff'],
  startPaused: ['cli/pull-requests.ts', 'settings.startPaused'],
  quiesce: ['cli/pull-requests.ts', 'settings.quiesce'],
  freezeMounts: ['cli/pull-requests.ts', 'settings.freezeMounts'],
  onBrokenChain: ['cli/pull-requests.ts', 'settings.onBrokenChain'],
  connections: ['cli/pull-requests.ts', 'settings.connections'],
  bwlimit: ['cli/paces.ts', 'settings.bwlimit'],
  minChange: ['cli/pull-requests.ts', 'settings.minChange'],
  scratchDir: ['cli/pull-requests.ts', 'settings.scratchDir'],
  scratchDevices: ['cli/pull-requests.ts', 'settings.scratchDevices'],
  last: ['config/settings.ts', 'last, hourly, daily'],
  hourly: ['config/settings.ts', 'last, hourly, daily'],
  daily: ['config/settings.ts', 'last, hourly, daily'],
  weekly: ['config/settings.ts', 'weekly, monthly, yearly, within'],
  monthly: ['config/settings.ts', 'weekly, monthly, yearly, within'],
  yearly: ['config/settings.ts', 'weekly, monthly, yearly, within'],
  within: ['config/settings.ts', 'weekly, monthly, yearly, within'],
  keepTags: ['config/settings.ts', 'tags: keepTags'],
  tags: ['cli/pull-requests.ts', 'settings.tags'],
  prune: ['cli/daemon-jobs.ts', 'settings.prune'],
}

interface SchemaNode {
  readonly properties?: Readonly<Record<string, SchemaNode>>
  readonly additionalProperties?: SchemaNode | boolean
  readonly items?: SchemaNode
  readonly anyOf?: readonly SchemaNode[]
}

/** Every key that can be written, as `targets.*.path`; lists and alternatives add nothing to it. */
function* keysOf(node: SchemaNode, path: readonly string[] = []): Generator<string> {
  for (const [name, below] of Object.entries(node.properties ?? {})) {
    yield [...path, name].join('.')
    yield* keysOf(below, [...path, name])
  }
  if (typeof node.additionalProperties === 'object') yield* keysOf(node.additionalProperties, [...path, '*'])
  for (const below of [...(node.items === undefined ? [] : [node.items]), ...(node.anyOf ?? [])])
    yield* keysOf(below, path)
}

const isSettingsPath = (key: string) => /^(default|groups\.\*|groups\.\*\.hosts)\.[a-z_]+$/.test(key)

t.test('every key of the configuration is acted on', async t => {
  const known = new Set<string>([...Object.values(SETTING_KEYS), 'target'])
  const keys = [...new Set(keysOf(configJsonSchema()))]
  const within = (table: object) => (key: string) =>
    Object.keys(table).some(one => key === one || key.startsWith(`${one}.`))

  const unknown = keys
    .map(key => key.replace(SECRETS, ''))
    .filter(key => !(isSettingsPath(key) && known.has(key.split('.').at(-1)!)))
    .filter(key => !within(WITHOUT_EFFECT)(key))
    // A section is no key of its own.
    .filter(key => !keys.some(other => other.startsWith(`${key}.`)))
    .filter(key => !(key in CONSUMERS))

  t.ok(keys.length > 150, `${keys.length} keys`)
  t.strictSame([...new Set(unknown)], [], 'name who acts on it')
  for (const [key, [file, words]] of [...Object.entries(CONSUMERS), ...Object.entries(SETTING_CONSUMERS)]) {
    t.ok(readFileSync(`${SRC}${file}`, 'utf8').includes(words), `${key}: "${words}" in ${file}`)
  }
  for (const key of Object.keys(CONSUMERS)) t.ok(keys.includes(key), `${key} is a key`)
})
