import { isMap, isNode, isScalar, isSeq } from 'yaml'
import type { YAMLMap } from 'yaml'

import { keyName, pairOf, placeOf } from './document.js'
import type { ConfigDocument } from './document.js'

/**
 * Configuration files of virt-backup (aruhier/virt-backup), accepted as they
 * are. What means something else there is rewritten in the document; what has
 * no equal is taken out, and a remark says what replaces it.
 */

export interface ConfigRemark {
  /** `config.yml:12:5` */
  readonly where: string
  readonly message: string
}

/** One step from an older form of configuration towards ours. */
export interface ConfigLayer {
  readonly from: string
  appliesTo(document: ConfigDocument): boolean
  /** Changes the document. */
  apply(document: ConfigDocument): readonly ConfigRemark[]
}

const TOP_KEYS = new Set(['debug', 'threads', 'uri', 'username', 'passphrase', 'password', 'default', 'groups'])
const RETENTION_KEYS = ['hourly', 'daily', 'weekly', 'monthly', 'yearly'] as const
const OLD_PACKING_KEYS = ['compression', 'compression_lvl']
const OLD_KEYS = [...OLD_PACKING_KEYS, 'disk']
const PACKING_KEYS = ['packager', 'packager_opts']
const SETTING_KEYS = new Set([
  'target',
  'backup_dir',
  'autostart',
  'quiesce',
  'hosts',
  'host',
  'disks',
  ...RETENTION_KEYS,
  ...OLD_KEYS,
  ...PACKING_KEYS,
])
/** What virt-backup keeps of each period that its file does not mention. */
const DEFAULT_KEEP = 5

/** Versions before 0.4 said `compression`, later ones `packager`; the first said `disk` for a host's `disks`. */
export const VIRT_BACKUP_0_1: ConfigLayer = {
  from: 'virt-backup 0.1',
  appliesTo: document => isVirtBackup(document) && settingMaps(document).some(map => hasAny(map, OLD_KEYS)),
  apply: document => {
    for (const map of settingMaps(document)) {
      const disk = pairOf(map, 'disk')
      if (disk !== undefined && isScalar(disk.key)) disk.key.value = 'disks'
      const compression = pairOf(map, 'compression')
      if (compression === undefined && !map.has('compression_lvl')) continue
      const algorithm = scalarOf(compression?.value)
      const isPacked = typeof algorithm === 'string' && algorithm !== ''
      const packager = document.yaml.createPair('packager', isPacked ? 'tar' : 'directory')
      // Keeps its place in the file, so that remarks on it can name one.
      if (isNode(packager.key) && isScalar(compression?.key)) packager.key.range = compression.key.range ?? null
      map.delete('compression')
      map.delete('compression_lvl')
      if (compression !== undefined) map.items.push(packager)
    }
    return []
  },
}

export const VIRT_BACKUP_0_4: ConfigLayer = {
  from: 'virt-backup',
  appliesTo: isVirtBackup,
  apply: document => [
    ...replacePassword(document),
    ...settingMaps(document).flatMap(map => [...replacePacking(document, map), ...replaceTarget(document, map)]),
    ...settingMaps(document).flatMap(map => keepForEver(document, map)),
    ...fillDefaults(document),
  ],
}

/**
 * A file that says nothing which only we know, and something that virt-backup
 * says. `version: 1` tells that a file is ours.
 */
export function isVirtBackup(document: ConfigDocument): boolean {
  const top = document.yaml.contents
  if (!isMap(top) || !top.items.every(pair => TOP_KEYS.has(keyName(pair) ?? ''))) return false
  const maps = settingMaps(document)
  if (!maps.every(map => map.items.every(pair => SETTING_KEYS.has(keyName(pair) ?? '')))) return false
  const isItsOwn = (map: YAMLMap) =>
    hasAny(map, [...PACKING_KEYS, ...OLD_PACKING_KEYS, 'backup_dir']) || String(map.get('target')).startsWith('/')
  return top.has('password') || maps.some(isItsOwn)
}

/** The `default` map, each group's, and each host entry's. */
function settingMaps(document: ConfigDocument): YAMLMap[] {
  const top = document.yaml.contents
  const defaults = pairOf(top, 'default')?.value
  const groups = pairOf(top, 'groups')?.value
  const groupMaps = isMap(groups) ? groups.items.map(pair => pair.value).filter(isMap) : []
  const hostMaps = groupMaps.flatMap(group => {
    const hosts = pairOf(group, 'hosts')?.value
    return isSeq(hosts) ? hosts.items.filter(isMap) : []
  })
  return [...(isMap(defaults) ? [defaults] : []), ...groupMaps, ...hostMaps]
}

function replacePassword(document: ConfigDocument): ConfigRemark[] {
  const pair = pairOf(document.yaml.contents, 'password')
  if (pair === undefined || !isScalar(pair.key)) return []
  pair.key.value = 'passphrase'
  return [{ where: placeOf(document, pair.key), message: 'password is read as passphrase' }]
}

const PACKAGERS: Readonly<Record<string, string>> = {
  directory: 'points are kept in a store; `virtvault restore POINT --to DIR` gives the images as files',
  dir: 'points are kept in a store; `virtvault restore POINT --to DIR` gives the images as files',
  tar: 'the store compresses and deduplicates by itself; `virtvault restore POINT --to DIR` gives the images as files',
  zstd: 'the store compresses with zstd and deduplicates by itself; there is nothing to set',
}

function replacePacking(document: ConfigDocument, map: YAMLMap): ConfigRemark[] {
  return PACKING_KEYS.flatMap(key => {
    const pair = pairOf(map, key)
    if (pair === undefined) return []
    map.delete(key)
    const packager = scalarOf(pair.value)
    const value = typeof packager === 'string' ? packager : ''
    const replaced =
      key === 'packager' ? `packager ${value}: ${PACKAGERS[value] ?? PACKAGERS['zstd'] ?? ''}` : undefined
    const message = replaced ?? 'packager_opts is not needed: the store chooses how to compress'
    return [{ where: placeOf(document, pair.key), message }]
  })
}

function replaceTarget(document: ConfigDocument, map: YAMLMap): ConfigRemark[] {
  const old = pairOf(map, 'backup_dir')
  if (old !== undefined && isScalar(old.key)) old.key.value = 'target'
  const pair = pairOf(map, 'target')
  const target = scalarOf(pair?.value)
  if (pair === undefined || typeof target !== 'string') return []
  const message = `${target} is taken as a store: make it one with \`virtvault init ${target}\`; backups that virt-backup made there stay its own`
  return [{ where: placeOf(document, pair.value), message }]
}

/** Python's YAML has more words for true and false, and an empty retention rule keeps for ever. */
function keepForEver(document: ConfigDocument, map: YAMLMap): ConfigRemark[] {
  for (const key of ['autostart', 'quiesce']) {
    const value = pairOf(map, key)?.value
    if (!isScalar(value) || typeof value.value !== 'string') continue
    if (/^(yes|on)$/i.test(value.value)) value.value = true
    else if (/^(no|off)$/i.test(value.value)) value.value = false
  }
  return RETENTION_KEYS.flatMap(key => {
    const pair = pairOf(map, key)
    const value: unknown = scalarOf(pair?.value)
    if (pair === undefined || (value !== null && value !== 'None')) return []
    map.set(key, '*')
    return [{ where: placeOf(document, pair.key), message: `${key} without a number keeps for ever: '*'` }]
  })
}

function fillDefaults(document: ConfigDocument): ConfigRemark[] {
  const { yaml } = document
  if (!isMap(pairOf(yaml.contents, 'default')?.value)) yaml.set('default', yaml.createNode({}))
  const defaults = pairOf(yaml.contents, 'default')?.value
  if (!isMap(defaults)) return []
  if (!defaults.has('quiesce')) defaults.set('quiesce', false)
  const missing = RETENTION_KEYS.filter(key => !defaults.has(key))
  for (const key of missing) defaults.set(key, DEFAULT_KEEP)
  if (missing.length === 0) return []
  const message = `virt-backup keeps ${DEFAULT_KEEP} of each period that is not mentioned: taken over for ${missing.join(', ')} (say "version: 1" if this file is not virt-backup's)`
  return [{ where: placeOf(document, yaml.contents), message }]
}

function hasAny(map: YAMLMap, keys: readonly string[]): boolean {
  return keys.some(key => map.has(key))
}

function scalarOf(node: unknown): unknown {
  return isScalar(node) ? node.value : node === null ? null : undefined
}
