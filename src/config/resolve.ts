import { DEFAULT_JOB_ID } from '../model/domain-job.js'
import type { DomainJob, JobSettings } from '../model/domain-job.js'
import type { DomainRef } from '../model/recovery-point.js'
import { isSelected, parseSelector } from '../model/selector.js'
import type { DomainSelector } from '../model/selector.js'
import type { ConfigPath } from './document.js'
import type { Environment, LoadedConfig } from './load.js'
import type { RawConfig, RawGroup } from './schema.js'
import {
  BUILT_IN_SETTINGS,
  completeSettings,
  envVariableOf,
  SETTING_KEYS,
  settingsFrom,
  settingsFromEnv,
} from './settings.js'
import type { BuiltInSettings } from './settings.js'

/**
 * What holds for one domain, and who says so. The nearest to the domain wins:
 * flag, environment, the domain's own metadata, host entry, group, default,
 * built-in; setting by setting, so that a group may say `daily` and leave
 * `weekly` to the default.
 */

export type SettingSource = 'flag' | 'env' | 'metadata' | 'host' | 'group' | 'default' | 'built-in'

export interface SettingOrigin {
  readonly source: SettingSource
  /** `config.yml:31:5`, `VIRTVAULT_TARGET`, `job nightly`; undefined for flags and what is built in. */
  readonly where: string | undefined
}

export interface ResolvedJob {
  /** Unique within the domain: the id in its metadata, or the name of its group. */
  readonly id: string
  readonly domain: DomainRef
  readonly group: string | undefined
  readonly description: string | undefined
  readonly settings: JobSettings & BuiltInSettings & { readonly timeZone: string }
  /** Who gives a setting; undefined when nobody does. */
  readonly originOf: (setting: keyof JobSettings) => SettingOrigin | undefined
}

export interface JobContext {
  /** Zone of the machine, where the configuration names none. */
  readonly timeZone: string
  readonly env: Environment
  readonly flags?: JobSettings | undefined
  /** Jobs in the domain's own metadata. */
  readonly metadata?: readonly DomainJob[] | undefined
}

/**
 * The jobs of a domain: one for each group that lists it, joined with the job
 * in its metadata that names this group, and one for each other job there.
 * Empty for a domain that no one mentions.
 */
export function resolveJobs(loaded: LoadedConfig, domain: DomainRef, context: JobContext): readonly ResolvedJob[] {
  const metadata = context.metadata ?? []
  const groups = groupsOf(loaded.config, domain)
  const places = groups.flatMap((group): JobPlace[] => {
    const own = metadata.filter(job => job.group === group)
    return own.length === 0 ? [{ domain, group, own: undefined }] : own.map(job => ({ domain, group, own: job }))
  })
  const alone = metadata.filter(job => job.group === undefined || !groups.includes(job.group))
  return [...places, ...alone.map(own => ({ domain, group: own.group, own }))].map(place =>
    resolveOne(loaded, place, context),
  )
}

/** One job of a domain that is pulled by hand: its first one, or what the default says where it has none. */
export function resolveJob(loaded: LoadedConfig, domain: DomainRef, context: JobContext): ResolvedJob {
  const [first] = resolveJobs(loaded, domain, context)
  return first ?? resolveOne(loaded, { domain, group: undefined, own: undefined }, context)
}

/** Names of the groups whose `hosts` include the domain, in the order of the file. */
export function groupsOf(config: RawConfig, domain: DomainRef): readonly string[] {
  return Object.entries(config.groups ?? {}).flatMap(([name, group]) =>
    isSelected(domain, membersOf(group).selectors) ? [name] : [],
  )
}

/** Each group's host selectors, as `selectDomains` takes them. */
export function groupSelectors(config: RawConfig): ReadonlyMap<string, readonly string[]> {
  return new Map(Object.entries(config.groups ?? {}).map(([name, group]) => [name, hostSelectors(group)]))
}

/** Groups that `backup pull` without a selector is about. */
export function autostartGroups(config: RawConfig): readonly string[] {
  const inherited = config.default?.autostart ?? BUILT_IN_SETTINGS.autostart
  return Object.entries(config.groups ?? {}).flatMap(([name, group]) => ((group.autostart ?? inherited) ? [name] : []))
}

interface Level {
  readonly source: SettingSource
  readonly settings: JobSettings
  where(setting: keyof JobSettings): string | undefined
}

interface JobPlace {
  readonly domain: DomainRef
  readonly group: string | undefined
  readonly own: DomainJob | undefined
}

function resolveOne(loaded: LoadedConfig, place: JobPlace, context: JobContext): ResolvedJob {
  const levels = levelsFor(loaded, place, context)
  const settings = levels.reduceRight<JobSettings>((outer, level) => ({ ...outer, ...level.settings }), {})
  return {
    id: place.own?.id ?? place.group ?? DEFAULT_JOB_ID,
    domain: place.domain,
    group: place.group,
    description: place.own?.description,
    settings: { ...completeSettings(settings), timeZone: settings.timeZone ?? context.timeZone },
    originOf: setting => {
      const level = levels.find(one => one.settings[setting] !== undefined)
      return level === undefined ? undefined : { source: level.source, where: level.where(setting) }
    },
  }
}

/** The nearest first. */
function levelsFor(loaded: LoadedConfig, { domain, group, own }: JobPlace, context: JobContext): readonly Level[] {
  const { config } = loaded
  const inFile = (source: SettingSource, path: ConfigPath, settings: JobSettings): Level => ({
    source,
    settings,
    where: setting => {
      const key = SETTING_KEYS[setting]
      // `target: nas` and `targets: [nas]` are one setting.
      return setting === 'targets' ? placeOfTargets(loaded, path) : loaded.where([...path, key])
    },
  })
  const rawGroup = group === undefined ? undefined : config.groups?.[group]
  const host = rawGroup === undefined ? undefined : hostEntryFor(domain, rawGroup)
  const nowhere = () => undefined
  const zone = config.timezone
  return [
    { source: 'flag', settings: context.flags ?? {}, where: nowhere },
    { source: 'env', settings: settingsFromEnv(context.env), where: envVariableOf },
    { source: 'metadata', settings: own?.settings ?? {}, where: () => `job ${own?.id ?? ''}` },
    ...(host === undefined ? [] : [inFile('host', ['groups', group ?? '', 'hosts', host.at], host.settings)]),
    ...(rawGroup === undefined ? [] : [inFile('group', ['groups', group ?? ''], settingsFrom(rawGroup))]),
    inFile('default', ['default'], settingsFrom(config.default ?? {})),
    {
      source: 'default',
      settings: zone === undefined ? {} : { timeZone: zone },
      where: () => loaded.where(['timezone']),
    },
    { source: 'built-in', settings: { ...BUILT_IN_SETTINGS, timeZone: context.timeZone }, where: nowhere },
  ]
}

function placeOfTargets(loaded: LoadedConfig, path: ConfigPath): string | undefined {
  const level = path.reduce<unknown>((node, part) => valueAt(node, part), loaded.config)
  return loaded.where([...path, valueAt(level, 'targets') === undefined ? 'target' : 'targets'])
}

function valueAt(node: unknown, part: string | number): unknown {
  if (typeof node !== 'object' || node === null) return undefined
  return Object.entries(node).find(([key]) => key === String(part))?.[1]
}

interface HostEntry {
  readonly at: number
  readonly selector: DomainSelector
  readonly settings: JobSettings
}

interface Members {
  readonly selectors: readonly DomainSelector[]
  /** Entries with settings of their own. */
  readonly entries: readonly HostEntry[]
}

// Read once for a group, not once for each domain: 500 domains in 10 groups took 1.4 s, and take 0.2 s.
const members = new WeakMap<RawGroup, Members>()

function membersOf(group: RawGroup): Members {
  const known = members.get(group)
  if (known !== undefined) return known
  const selectors = hostSelectors(group).map(parseSelector)
  const entries = (group.hosts ?? []).flatMap((host, at) => {
    const selector = selectors[at]
    if (typeof host === 'string' || selector === undefined || selector.excludes) return []
    return [{ at, selector, settings: settingsFrom(host) }]
  })
  const read = { selectors, entries }
  members.set(group, read)
  return read
}

/** The entry with settings that fits the domain: an exact name before a pattern, then the first listed. */
function hostEntryFor(domain: DomainRef, group: RawGroup): HostEntry | undefined {
  const fitting = membersOf(group).entries.filter(({ selector }) => selector.matches(domain))
  return fitting.find(({ selector }) => selector.kind === 'exact') ?? fitting[0]
}

function hostSelectors(group: RawGroup): readonly string[] {
  return (group.hosts ?? []).map(host => (typeof host === 'string' ? host : host.host))
}
