import { z } from 'zod'

import { BackupError } from '../base/errors.js'
import { isTimeZone } from '../model/calendar.js'
import { BROKEN_CHAIN_POLICIES } from '../model/domain-job.js'
import { parseDuration } from '../model/duration.js'
import { portRange } from '../model/remote-way.js'
import { parseSchedule, parseWindow } from '../model/schedule.js'
import { parseSelector } from '../model/selector.js'
import { parseSize } from '../model/size.js'

/**
 * What a configuration file may say, key by key as users write it. The one
 * importer of zod, which takes 60 ms to load: import this lazily.
 */

const name = z.string().min(1)
const names = z.array(name)
const path = z.string().min(1)

/** A string that `parse` takes; its complaint becomes ours. */
function parsed(parse: (text: string) => unknown, description: string) {
  return z
    .string()
    .superRefine((text, context) => {
      try {
        parse(text)
      } catch (error) {
        if (!(error instanceof BackupError)) throw error
        const message = error.why === undefined ? error.message : `${error.message}: ${error.why}`
        context.addIssue({ code: 'custom', message })
      }
    })
    .describe(description)
}

const duration = parsed(parseDuration, 'a duration: 45s, 10m, 26h, 30d, 4w, 2y')
const size = z.union([z.int().min(0), parsed(parseSize, 'a size: 512k, 64KiB, 1.5GiB')])
const schedule = parsed(
  text => parseSchedule(text, 'UTC'),
  "when to run: cron ('0 2 * * *'), a word (@daily), or systemd's form ('Mon..Fri 02:00')",
)
const timeZone = z.string().refine(isTimeZone, { error: 'unknown time zone: use a name such as Europe/Berlin' })
const selector = parsed(parseSelector, "a domain: name, UUID, glob (web*), 'r:REGEX', or '!…' to leave out")
const listen = z.string().regex(/^(\[[0-9a-fA-F:]+\]|[^\s:]+):\d{1,5}$/, { error: 'expected HOST:PORT' })
const ionice = z
  .string()
  .regex(/^(idle|best-effort(:[0-7])?)$/, { error: 'expected idle, best-effort, or best-effort:0 to best-effort:7' })
const url = z.url({ error: 'expected a URL' })
const devicePath = z.string().regex(/^\//, { error: 'expected the path of a block device' })
const percent = z.string().regex(/^(100|\d{1,2})(\.\d+)?\s*%$/, { error: 'expected a percentage such as 5%' })
const count = z
  .union([z.int().min(0), z.literal('*')])
  .describe("how many to keep; '*' keeps for ever, 0 none by this rule")

// One secret, four ways to give it.
const secretText = z.string().optional().describe('the secret itself; the file must then be readable by its owner only')
const secretFile = path.optional().describe('file that holds it, readable by its owner only')
const secretCommand = z.string().min(1).optional().describe('shell command that prints it')
const secretCredential = name.optional().describe('systemd credential (LoadCredential=) that holds it')

const passphraseSecret = {
  passphrase: secretText,
  passphrase_file: secretFile,
  passphrase_command: secretCommand,
  passphrase_credential: secretCredential,
}

const secretAccessKeySecret = {
  secret_access_key: secretText,
  secret_access_key_file: secretFile,
  secret_access_key_command: secretCommand,
  secret_access_key_credential: secretCredential,
}

const urlSecret = {
  url: secretText,
  url_file: secretFile,
  url_command: secretCommand,
  url_credential: secretCredential,
}

const tokenSecret = {
  token: secretText,
  token_file: secretFile,
  token_command: secretCommand,
  token_credential: secretCredential,
}

const passwordSecret = {
  password: secretText,
  password_file: secretFile,
  password_command: secretCommand,
  password_credential: secretCredential,
}

const settings = {
  target: name.optional().describe('a target by name, or the path or URL of a store'),
  targets: names.min(1).optional().describe('several: the domain is read once and written to each'),
  schedule: schedule.optional(),
  timezone: timeZone.optional(),
  jitter: duration.optional().describe('put the start off by up to this, differently for each job'),
  catch_up: z.boolean().optional().describe('run once after downtime if runs were missed'),
  window: parsed(parseWindow, 'start only within: 22:00-06:00').optional(),
  autostart: z.boolean().optional().describe('part of `backup pull` without a selector'),
  paused: z.boolean().optional(),
  priority: z.int().optional().describe('higher runs first among what is due'),
  disks: names.optional().describe('only these disks: targets (vda) or image paths'),
  exclude_disks: names.optional(),
  depth: z.int().optional().describe('images of a backing chain to read: 0 all, -1 all but the base'),
  disable_if_powered_off: z.boolean().optional(),
  start_paused: z.boolean().optional().describe('start a domain that is off, paused, to read it'),
  quiesce: z
    .union([z.boolean(), z.literal('required')])
    .optional()
    .describe('freeze filesystems: true if possible, required or fail'),
  freeze_mounts: z.array(path).optional().describe('freeze only these mount points'),
  on_broken_chain: z.enum(BROKEN_CHAIN_POLICIES).optional().describe('when the dirty bitmap is lost'),
  threads: z.int().min(0).optional().describe('connections for one domain'),
  bwlimit: size
    .optional()
    .describe('bytes per second, of all domains together for which this very line counts; 0: no limit'),
  min_change: size.optional().describe('skip a run where less than this has changed'),
  scratch_dir: path.optional(),
  scratch_devices: z
    .record(z.string().regex(/^[A-Za-z][A-Za-z0-9]*$/, { error: 'expected a disk such as vda' }), devicePath)
    .optional()
    .describe('block devices instead, each for one disk; they are overwritten'),
  last: count.optional(),
  hourly: count.optional(),
  daily: count.optional(),
  weekly: count.optional(),
  monthly: count.optional(),
  yearly: count.optional(),
  keep_within: duration.optional().describe('keep all that is at most this much older than the newest'),
  keep_tags: names.optional().describe('keep points with one of these tags'),
  tags: names.optional().describe('put on each point'),
  prune: z.boolean().optional().describe('prune after each pull'),
}

const host = z.union([selector, z.strictObject({ host: selector, ...settings })])

const group = z.strictObject({ ...settings, hosts: z.array(host).optional() })

const target = z.strictObject({
  path: path.optional().describe('directory of the store'),
  s3: z
    .strictObject({
      endpoint: url.optional(),
      bucket: name,
      prefix: z.string().optional(),
      region: name.optional(),
      profile: name.optional().describe('of the AWS credentials file'),
      path_style: z.boolean().optional(),
      access_key_id: name.optional(),
      ...secretAccessKeySecret,
    })
    .optional(),
  encryption: z.union([z.literal('none'), z.strictObject(passphraseSecret)]).optional(),
  storage_class: name.optional(),
  bwlimit: size.optional().describe('bytes per second, of what is written to it or read back; 0: no limit'),
  parallel: z.int().min(1).optional().describe('domains written to it at once'),
  index_dir: path.optional().describe('where the index lives, if not in the store'),
})

const SCOPES = ['everything', 'group', 'domain', 'point'] as const
const OUTCOMES = ['success', 'partial', 'failed'] as const
const NOTICES = [...OUTCOMES, 'stale', 'all'] as const
const VERBS = ['pull', 'prune', 'gc', 'verify', 'copy', 'restore'] as const

const command = z.strictObject({
  before: z.enum(SCOPES).optional(),
  after: z.enum(SCOPES).optional(),
  error: z.enum(SCOPES).optional(),
  when: z.array(z.enum(VERBS)).optional(),
  states: z.array(z.enum(OUTCOMES)).optional(),
  groups: names.optional(),
  inside: z.boolean().optional().describe('run in the guest, through its agent'),
  run: z
    .union([z.string().min(1), z.array(z.union([z.string().min(1), z.array(z.string()).min(1)])).min(1)])
    .describe('for the shell; or several, each for the shell, or a list: a program and its arguments'),
  on_error: z.enum(['ignore', 'cancel', 'fail']).optional(),
  timeout: duration.optional(),
})

const notices = z.array(z.enum(NOTICES)).optional()

const notify = z.strictObject({
  healthchecks: z
    .strictObject({ ...urlSecret, start: z.boolean().optional(), send_log: z.boolean().optional() })
    .optional(),
  ntfy: z.strictObject({ topic: url, ...tokenSecret, priority: name.optional(), on: notices }).optional(),
  mail: z
    .strictObject({
      to: z.union([name, names.min(1)]),
      from: name.optional(),
      smtp: z
        .strictObject({
          host: name,
          port: z.int().min(1).max(65535).optional(),
          username: name.optional(),
          ...passwordSecret,
        })
        .optional(),
      on: notices,
      digest: z.enum(['daily', 'weekly']).optional(),
    })
    .optional(),
  webhook: z.strictObject({ ...urlSecret, headers: z.record(name, z.string()).optional(), on: notices }).optional(),
})

export const configSchema = z
  .strictObject({
    version: z.literal(1).optional().describe('of this form of configuration'),
    debug: z.boolean().optional(),
    threads: z.int().min(0).optional().describe('domains at once; 0 = all cores'),
    uri: z.string().min(1).optional().describe('libvirt URI'),
    username: z.string().optional().describe('libvirt SASL user'),
    ...passphraseSecret,
    remote: z
      .strictObject({
        nbd: z
          .enum(['ssh', 'tls', 'tcp'])
          .optional()
          .describe('how disks are read; default: ssh for qemu+ssh, else tls'),
        insecure: z.boolean().optional().describe('the network is trusted: tcp without TLS is allowed'),
        bind: name.optional().describe('address of the hypervisor that QEMU listens at'),
        host: name.optional().describe('its name in its certificate; default: the one in the URI'),
        ports: z
          .union([z.int().min(1).max(65_535), parsed(portRange, 'ports for QEMU to listen at: 10809-10872')])
          .optional(),
        certificates: path
          .optional()
          .describe('directory with ca-cert.pem, client-cert.pem and client-key.pem; default: /etc/virtvault/pki'),
        runtime_dir: path.optional().describe('directory of the hypervisor for sockets'),
      })
      .optional()
      .describe('a libvirt on another machine'),
    timezone: timeZone.optional().describe('of schedules and of retention’s calendar'),
    nice: z.int().min(0).max(19).optional().describe('CPU priority of pulls and of the daemon; 19 is the lowest'),
    ionice: ionice.optional().describe('their disk priority: idle, best-effort, best-effort:0-7'),
    state_dir: path.optional(),
    retry: z.strictObject({ attempts: z.int().min(0).optional(), delay: duration.optional() }).optional(),
    targets: z.record(name, target).optional(),
    default: z.strictObject(settings).optional().describe('inherited by every group'),
    groups: z.record(name, group).optional(),
    verify: z
      .strictObject({
        schedule: schedule.optional(),
        level: z.enum(['quick', 'data', 'restore', 'boot']).optional(),
        sample: percent.optional(),
        max_age: duration.optional(),
        targets: names.optional(),
        boot: z
          .strictObject({ groups: names.optional(), schedule: schedule.optional(), timeout: duration.optional() })
          .optional(),
      })
      .optional(),
    prune: z.strictObject({ schedule: schedule.optional() }).optional(),
    gc: z.strictObject({ schedule: schedule.optional(), targets: names.optional() }).optional(),
    commands: z.array(command).optional(),
    notify: notify.optional(),
    metrics: z.strictObject({ textfile: path.optional(), listen: listen.optional() }).optional(),
    ui: z.strictObject({ listen: listen.optional(), socket: path.optional(), ...tokenSecret }).optional(),
  })
  .describe('Configuration of virtvault')

/** A whole configuration, as written and checked. */
export type RawConfig = z.infer<typeof configSchema>
export type RawSettings = NonNullable<RawConfig['default']>
export type RawGroup = NonNullable<RawConfig['groups']>[string]
export type RawHost = NonNullable<RawGroup['hosts']>[number]
export type RawTarget = NonNullable<RawConfig['targets']>[string]

/** JSON Schema (2020-12) of the file, for editors. */
export function configJsonSchema(): Readonly<Record<string, unknown>> {
  return { ...z.toJSONSchema(configSchema, { io: 'input' }), title: 'virtvault configuration' }
}

export interface SchemaIssue {
  readonly path: readonly (string | number)[]
  readonly message: string
  /** The key itself is wrong, not its value. */
  readonly isUnknownKey: boolean
}

/** Every issue, not only the first; none means that `config` is there. */
export function checkConfig(value: unknown): { config?: RawConfig; issues: readonly SchemaIssue[] } {
  const result = configSchema.safeParse(value)
  if (result.success) return { config: result.data, issues: [] }
  return { issues: result.error.issues.flatMap(issue => readIssue(issue, [])) }
}

type Issue = z.core.$ZodIssue

function readIssue(issue: Issue, base: readonly (string | number)[]): readonly SchemaIssue[] {
  const path = [...base, ...issue.path.map(part => (typeof part === 'number' ? part : String(part)))]
  switch (issue.code) {
    case 'unrecognized_keys':
      return issue.keys.map(key => ({ path: [...path, key], message: 'unknown key', isUnknownKey: true }))
    case 'invalid_key':
      return [{ path, message: 'a name is missing', isUnknownKey: true }]
    case 'invalid_union': {
      // zod says only "Invalid input". The branch that got past the first look is the one that was meant.
      const meant = issue.errors.find(branch => branch.some(inner => !isAboutKind(inner)))
      if (meant !== undefined) return meant.flatMap(inner => readIssue(inner, path))
      const expected = [...new Set(issue.errors.flat().map(expectation))].join(' or ')
      return [{ path, message: `expected ${expected}`, isUnknownKey: false }]
    }
    case 'invalid_type':
    case 'invalid_value':
      return [{ path, message: `expected ${expectation(issue)}`, isUnknownKey: false }]
    case 'custom':
    case 'invalid_element':
    case 'invalid_format':
    case 'not_multiple_of':
    case 'too_big':
    case 'too_small':
      return [{ path, message: lowerFirst(issue.message), isUnknownKey: false }]
  }
}

/** True where not even the kind of value fits. */
function isAboutKind(issue: Issue): boolean {
  return issue.path.length === 0 && (issue.code === 'invalid_type' || issue.code === 'invalid_value')
}

const KINDS: Readonly<Record<string, string>> = {
  boolean: 'true or false',
  string: 'a text',
  number: 'a whole number',
  int: 'a whole number',
  array: 'a list',
  object: 'a map of keys',
  record: 'a map of names',
}

function expectation(issue: Issue): string {
  if (issue.code === 'invalid_type') return KINDS[issue.expected] ?? issue.expected
  if (issue.code === 'invalid_value')
    return issue.values.map(value => JSON.stringify(value) ?? String(value)).join(' or ')
  return lowerFirst(issue.message)
}

function lowerFirst(text: string): string {
  return text.slice(0, 1).toLowerCase() + text.slice(1)
}
