import type { JobSettings } from '../model/domain-job.js'
import { parseDuration } from '../model/duration.js'
import type { RetentionPolicy } from '../model/retention.js'
import { parseSize } from '../model/size.js'
import type { Environment } from './load.js'
import type { RawSettings } from './schema.js'

/** Job settings as the program uses them, from the keys that people write. */

/** The key of the file behind each setting, to say where a value stands. */
export const SETTING_KEYS: Readonly<Record<keyof JobSettings, keyof RawSettings>> = {
  targets: 'targets',
  schedule: 'schedule',
  timeZone: 'timezone',
  jitter: 'jitter',
  catchUp: 'catch_up',
  window: 'window',
  autostart: 'autostart',
  paused: 'paused',
  priority: 'priority',
  disks: 'disks',
  excludeDisks: 'exclude_disks',
  depth: 'depth',
  disableIfPoweredOff: 'disable_if_powered_off',
  startPaused: 'start_paused',
  quiesce: 'quiesce',
  freezeMounts: 'freeze_mounts',
  onBrokenChain: 'on_broken_chain',
  connections: 'threads',
  bwlimit: 'bwlimit',
  minChange: 'min_change',
  scratchDir: 'scratch_dir',
  scratchDevices: 'scratch_devices',
  last: 'last',
  hourly: 'hourly',
  daily: 'daily',
  weekly: 'weekly',
  monthly: 'monthly',
  yearly: 'yearly',
  within: 'keep_within',
  keepTags: 'keep_tags',
  tags: 'tags',
  prune: 'prune',
}

type Certain<Key extends keyof JobSettings> = { readonly [K in Key]-?: NonNullable<JobSettings[K]> }

/** The settings that always have a value. */
export type BuiltInSettings = Certain<
  | 'targets'
  | 'jitter'
  | 'catchUp'
  | 'autostart'
  | 'paused'
  | 'priority'
  | 'depth'
  | 'disableIfPoweredOff'
  | 'startPaused'
  | 'quiesce'
  | 'freezeMounts'
  | 'onBrokenChain'
  | 'keepTags'
  | 'tags'
  | 'prune'
>

/** What holds when nobody says anything. There is no retention rule in it: nothing expires unasked. */
export const BUILT_IN_SETTINGS: BuiltInSettings = {
  targets: [],
  jitter: 0,
  catchUp: true,
  autostart: false,
  paused: false,
  priority: 0,
  depth: 0,
  disableIfPoweredOff: false,
  startPaused: false,
  quiesce: true,
  freezeMounts: [],
  onBrokenChain: 'full_read',
  keepTags: [],
  tags: [],
  prune: false,
}

/** With every built-in value filled in. */
export function completeSettings(settings: JobSettings): JobSettings & BuiltInSettings {
  const builtIn = BUILT_IN_SETTINGS
  return {
    ...settings,
    targets: settings.targets ?? builtIn.targets,
    jitter: settings.jitter ?? builtIn.jitter,
    catchUp: settings.catchUp ?? builtIn.catchUp,
    autostart: settings.autostart ?? builtIn.autostart,
    paused: settings.paused ?? builtIn.paused,
    priority: settings.priority ?? builtIn.priority,
    depth: settings.depth ?? builtIn.depth,
    disableIfPoweredOff: settings.disableIfPoweredOff ?? builtIn.disableIfPoweredOff,
    startPaused: settings.startPaused ?? builtIn.startPaused,
    quiesce: settings.quiesce ?? builtIn.quiesce,
    freezeMounts: settings.freezeMounts ?? builtIn.freezeMounts,
    onBrokenChain: settings.onBrokenChain ?? builtIn.onBrokenChain,
    keepTags: settings.keepTags ?? builtIn.keepTags,
    tags: settings.tags ?? builtIn.tags,
    prune: settings.prune ?? builtIn.prune,
  }
}

/** Of one level of a checked file. */
export function settingsFrom(raw: RawSettings): JobSettings {
  return withoutAbsent({
    targets: raw.targets ?? (raw.target === undefined ? undefined : [raw.target]),
    schedule: raw.schedule,
    timeZone: raw.timezone,
    jitter: optional(raw.jitter, parseDuration),
    catchUp: raw.catch_up,
    window: raw.window,
    autostart: raw.autostart,
    paused: raw.paused,
    priority: raw.priority,
    disks: raw.disks,
    excludeDisks: raw.exclude_disks,
    depth: raw.depth,
    disableIfPoweredOff: raw.disable_if_powered_off,
    startPaused: raw.start_paused,
    quiesce: raw.quiesce,
    freezeMounts: raw.freeze_mounts,
    onBrokenChain: raw.on_broken_chain,
    connections: raw.threads,
    bwlimit: optional(raw.bwlimit, bytesIn),
    minChange: optional(raw.min_change, bytesIn),
    scratchDir: raw.scratch_dir,
    scratchDevices: optional(raw.scratch_devices, devices =>
      Object.entries(devices).map(([disk, device]) => `${disk}=${device}`),
    ),
    last: raw.last,
    hourly: raw.hourly,
    daily: raw.daily,
    weekly: raw.weekly,
    monthly: raw.monthly,
    yearly: raw.yearly,
    within: optional(raw.keep_within, parseDuration),
    keepTags: raw.keep_tags,
    tags: raw.tags,
    prune: raw.prune,
  })
}

/** The settings that the environment can give, and the variable of each. */
export function settingsFromEnv(env: Environment): JobSettings {
  const target = env['VIRTVAULT_TARGET']
  const scratch = env['VIRTVAULT_SCRATCH_DIR']
  return withoutAbsent({
    targets: target === undefined || target === '' ? undefined : [target],
    scratchDir: scratch === '' ? undefined : scratch,
  })
}

export function envVariableOf(setting: keyof JobSettings): string | undefined {
  return setting === 'targets' ? 'VIRTVAULT_TARGET' : setting === 'scratchDir' ? 'VIRTVAULT_SCRATCH_DIR' : undefined
}

/** The part that `planRetention` takes. */
export function retentionOf(settings: JobSettings): RetentionPolicy {
  const { last, hourly, daily, weekly, monthly, yearly, within, keepTags } = settings
  return { last, hourly, daily, weekly, monthly, yearly, within, tags: keepTags }
}

/** So that a level which does not say something never hides one which does. */
export function withoutAbsent(settings: JobSettings): JobSettings {
  return Object.fromEntries(Object.entries(settings).filter(([, value]) => value !== undefined))
}

function optional<In, Out>(value: In | undefined, read: (value: In) => Out): Out | undefined {
  return value === undefined ? undefined : read(value)
}

function bytesIn(size: number | string): number {
  return typeof size === 'number' ? size : parseSize(size)
}
