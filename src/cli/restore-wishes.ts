import { BackupError } from '../base/errors.js'
import type { ImageFormat, Preallocation } from '../image/image-writer.js'
import type { ExistingPlace, Qcow2Wishes } from '../jobs/restore-plan.js'
import type { RestoredNetwork } from '../libvirt/restore-xml.js'
import { parseSize } from '../model/size.js'
import { parseBacking } from './backing-flag.js'
import type { BackingWishes } from './backing-wire.js'

/** The flags of `restore`, as oclif gives them: a boolean that was not given is undefined, whatever its type says. */
export interface RestoreFlags {
  readonly all?: boolean | undefined
  readonly disk?: readonly string[] | undefined
  readonly to?: string | undefined
  readonly 'to-pool'?: string | undefined
  readonly 'to-device'?: readonly string[] | undefined
  readonly 'to-nbd'?: readonly string[] | undefined
  readonly stdout?: boolean | undefined
  readonly format: ImageFormat
  readonly sparse?: boolean | undefined
  readonly preallocate?: Preallocation | undefined
  readonly 'cluster-size'?: string | undefined
  readonly compat?: string | undefined
  readonly 'lazy-refcounts'?: boolean | undefined
  readonly 'extended-l2'?: boolean | undefined
  readonly compression?: 'none' | 'zlib' | 'zstd' | 'original' | undefined
  readonly 'data-file'?: boolean | undefined
  readonly owner?: string | undefined
  readonly mode?: string | undefined
  readonly backing?: readonly string[] | undefined
  readonly flatten?: boolean | undefined
  readonly 'trust-backing'?: boolean | undefined
  readonly force?: boolean | undefined
  readonly 'allow-damaged'?: boolean | undefined
  readonly define?: boolean | undefined
  readonly start?: boolean | undefined
  readonly name?: string | undefined
  readonly 'new-uuid'?: boolean | undefined
  readonly 'keep-uuid'?: boolean | undefined
  readonly network?: string | undefined
  readonly 'in-place'?: boolean | undefined
  readonly 'dry-run'?: boolean | undefined
  readonly bwlimit?: string | undefined
}

/** The flags as words of a command line, but for what restoreRun() says of each point itself. */
export function restoreWords(flags: RestoreFlags): readonly string[] {
  return WORDS.flatMap(name => {
    const value = flags[name]
    if (value === undefined) return []
    if (typeof value === 'boolean') return value ? [`--${name}`] : name === 'lazy-refcounts' ? [`--no-${name}`] : []
    return [`--${name}=${value}`]
  })
}

const WORDS = [
  'to-pool',
  'format',
  'sparse',
  'preallocate',
  'cluster-size',
  'compat',
  'lazy-refcounts',
  'extended-l2',
  'compression',
  'data-file',
  'owner',
  'mode',
  'flatten',
  'trust-backing',
  'force',
  'allow-damaged',
  'define',
  'start',
  'name',
  'new-uuid',
  'keep-uuid',
  'network',
  'bwlimit',
] as const satisfies readonly (keyof RestoreFlags)[]

/** What a restore is asked to do. */
export interface RestoreWishes {
  /** `DOMAIN@REF`, or the newest point of every domain. */
  readonly points: readonly string[] | 'all'
  readonly disks: readonly string[]
  readonly destination: WantedPlace
  readonly images: WantedImages
  /** About images that points leave out. */
  readonly backing: BackingWishes
  readonly force: boolean
  readonly onDamage: 'stop' | 'keep'
  /** undefined: only images. */
  readonly domain: WantedDomain | undefined
  readonly dryRun: boolean
  /** Bytes per second; undefined: as the target is limited. */
  readonly bwlimit: number | undefined
}

export type WantedPlace =
  | { readonly kind: 'directory'; readonly path: string }
  | { readonly kind: 'pool'; readonly pool: string }
  /** Without a target: of the only disk. */
  | { readonly kind: 'places'; readonly places: readonly WantedDiskPlace[] }
  | { readonly kind: 'stream' }

export interface WantedDiskPlace {
  readonly target: string | undefined
  readonly place: ExistingPlace
}

export interface WantedImages {
  readonly format: ImageFormat
  readonly preallocation: Preallocation | undefined
  readonly owner: string | undefined
  readonly mode: number | undefined
  readonly qcow2: Qcow2Wishes
}

export interface WantedDomain {
  readonly name: string | undefined
  /** undefined: a domain with another name is a copy and gets its own. */
  readonly uuid: 'keep' | 'new' | undefined
  readonly network: RestoredNetwork
  readonly then: 'define' | 'start'
}

/** Throws E_USAGE for flags that do not go together or make no sense. */
export function restoreWishes(points: readonly string[], flags: RestoreFlags, json: boolean): RestoreWishes {
  const isAll = flags.all === true
  if (isAll === points.length > 0) {
    throw usage(isAll ? 'name recovery points, or say --all' : 'no recovery point was named', [
      'virtvault restore web01@latest --to DIR',
      'virtvault restore --all --to DIR',
    ])
  }
  const destination = destinationOf(flags)
  const isMany = isAll || points.length > 1
  if (isMany && (destination.kind === 'places' || destination.kind === 'stream')) {
    throw usage('several recovery points go to a directory or a pool', ['use --to DIR or --to-pool POOL'])
  }
  if (isMany && (flags.name !== undefined || flags.disk !== undefined)) {
    throw usage('--name and --disk are for one recovery point')
  }
  if (isMany && flags.backing !== undefined) throw usage('--backing is for one recovery point')
  if (destination.kind === 'stream' && json) throw usage('--stdout and --json both want the standard output')
  return {
    points: isAll ? 'all' : points,
    disks: flags.disk ?? [],
    destination,
    images: imagesOf(flags, destination),
    backing: backingOf(flags),
    force: flags.force === true,
    onDamage: flags['allow-damaged'] === true ? 'keep' : 'stop',
    domain: domainOf(flags, destination),
    dryRun: flags['dry-run'] === true,
    bwlimit: bwlimitOf(flags),
  }
}

/** What `--in-place` is asked to do. */
export interface InPlaceWishes {
  readonly point: string
  readonly disks: readonly string[]
  readonly dryRun: boolean
  readonly bwlimit: number | undefined
}

/** Of one point, into the disks that its domain has. Throws E_USAGE for flags that make no sense there. */
export function inPlaceWishes(points: readonly string[], flags: RestoreFlags): InPlaceWishes {
  const [point, another] = points
  if (point === undefined || another !== undefined || flags.all === true) {
    throw usage('--in-place is for one recovery point', ['virtvault restore web01@~1 --in-place'])
  }
  const others = Object.entries(flags).filter(([name, value]) => NOT_IN_PLACE.has(name) && value !== undefined)
  const [[name] = []] = others
  if (name !== undefined)
    throw usage(`--${name} does not go with --in-place, which writes into the disks that are there`)
  return { point, disks: flags.disk ?? [], dryRun: flags['dry-run'] === true, bwlimit: bwlimitOf(flags) }
}

const NOT_IN_PLACE: ReadonlySet<string> = new Set([
  'to',
  'to-pool',
  'to-device',
  'to-nbd',
  'stdout',
  'sparse',
  'preallocate',
  'cluster-size',
  'compat',
  'lazy-refcounts',
  'extended-l2',
  'compression',
  'data-file',
  'owner',
  'mode',
  'backing',
  'flatten',
  'trust-backing',
  'allow-damaged',
  'define',
  'start',
  'name',
  'new-uuid',
  'keep-uuid',
  'network',
])

function backingOf(flags: RestoreFlags): BackingWishes {
  const files = parseBacking(flags.backing)
  return { files, flatten: flags.flatten === true, trust: flags['trust-backing'] === true }
}

function bwlimitOf({ bwlimit }: RestoreFlags): number | undefined {
  return bwlimit === undefined ? undefined : parseSize(bwlimit)
}

function destinationOf(flags: RestoreFlags): WantedPlace {
  const places = [
    ...(flags['to-device'] ?? []).map(text => diskPlace(text, path => ({ kind: 'device', path }))),
    ...(flags['to-nbd'] ?? []).map(text => diskPlace(text, uri => ({ kind: 'export', uri }))),
  ]
  const asked: WantedPlace[] = [
    ...(flags.to === undefined ? [] : [{ kind: 'directory', path: flags.to } as const]),
    ...(flags['to-pool'] === undefined ? [] : [{ kind: 'pool', pool: flags['to-pool'] } as const]),
    ...(places.length === 0 ? [] : [{ kind: 'places', places } as const]),
    ...(flags.stdout === true ? [{ kind: 'stream' } as const] : []),
  ]
  const [only, another] = asked
  if (only !== undefined && another === undefined) return only
  throw usage(only === undefined ? 'where to was not said' : 'only one place can be restored to', [
    'give one of --to DIR, --to-pool POOL, --to-device [vda=]/dev/X, --to-nbd [vda=]URI, --stdout, --in-place',
  ])
}

/** `vda=/dev/vg/lv`; a URI may hold `=` itself, a disk target has only letters and digits. */
function diskPlace(text: string, make: (where: string) => ExistingPlace): WantedDiskPlace {
  const [, target, where] = /^([A-Za-z0-9]+)=(.+)$/.exec(text) ?? []
  return target === undefined || where === undefined
    ? { target: undefined, place: make(text) }
    : { target, place: make(where) }
}

function imagesOf(flags: RestoreFlags, destination: WantedPlace): WantedImages {
  const isFiles = destination.kind === 'directory' || destination.kind === 'pool'
  const qcow2 = QCOW2_FLAGS.find(name => flags[name] !== undefined)
  const file = qcow2 ?? flags.preallocate ?? flags.owner ?? flags.mode
  if (!isFiles && file !== undefined) throw usage('options of image files need --to or --to-pool')
  if (flags.format === 'raw' && qcow2 !== undefined) throw usage(`--${qcow2} is an option of qcow2, not of raw images`)
  refuseQcow2(flags)
  return {
    format: flags.format,
    preallocation: flags.sparse === true ? 'off' : flags.preallocate,
    owner: flags.owner,
    mode: flags.mode === undefined ? undefined : parseMode(flags.mode),
    qcow2: {
      clusterSize: flags['cluster-size'] === undefined ? undefined : parseSize(flags['cluster-size']),
      compat: flags.compat,
      lazyRefcounts: flags['lazy-refcounts'],
      extendedL2: flags['extended-l2'],
      compression: flags.compression,
      dataFile: flags['data-file'],
    },
  }
}

const QCOW2_FLAGS = ['cluster-size', 'compat', 'lazy-refcounts', 'extended-l2', 'compression', 'data-file'] as const

/** What can be said without the original; the rest is for the image to refuse. */
function refuseQcow2(flags: RestoreFlags): void {
  const isCompressed = flags.compression !== undefined && flags.compression !== 'none'
  const isPreallocated = flags.preallocate !== undefined && flags.preallocate !== 'off'
  if (flags.compat === '0.10') {
    const newer = flags.compression === 'zstd' ? '--compression zstd' : newerFlag(flags)
    if (newer !== undefined) throw usage(`${newer} needs --compat 1.1`, ['leave out --compat 0.10'])
  }
  if (isCompressed && flags['data-file'] === true) {
    throw usage('--compression and --data-file exclude each other: a data file is raw')
  }
  if (isCompressed && isPreallocated) {
    throw usage('--compression and --preallocate exclude each other', [
      'how much room a compressed cluster takes is known only when it is written',
    ])
  }
  if (flags.format === 'raw' && flags.preallocate === 'metadata') {
    throw usage('a raw image has no metadata to preallocate', ['--preallocate falloc reserves its space'])
  }
}

function newerFlag(flags: RestoreFlags): string | undefined {
  const name = (['lazy-refcounts', 'extended-l2', 'data-file'] as const).find(one => flags[one] === true)
  return name === undefined ? undefined : `--${name}`
}

function parseMode(text: string): number {
  if (/^0?[0-7]{3}$/.test(text)) return Number.parseInt(text, 8)
  throw usage(`"${text}" is no file mode`, ['write it in octal: 0640'])
}

function domainOf(flags: RestoreFlags, destination: WantedPlace): WantedDomain | undefined {
  if (flags.define !== true && flags.start !== true) {
    const idle = flags.name ?? flags['new-uuid'] ?? flags['keep-uuid'] ?? flags.network
    if (idle !== undefined)
      throw usage('--name, --new-uuid, --keep-uuid and --network are for a domain that is defined', ['add --define'])
    return undefined
  }
  if (destination.kind === 'stream') throw usage('a domain cannot be defined on what goes to standard output')
  return {
    name: flags.name,
    uuid: flags['new-uuid'] === true ? 'new' : flags['keep-uuid'] === true ? 'keep' : undefined,
    network: networkOf(flags.network),
    then: flags.start === true ? 'start' : 'define',
  }
}

function networkOf(text: string | undefined): RestoredNetwork {
  if (text === undefined || text === 'keep') return { kind: 'keep' }
  return text === 'none' ? { kind: 'none' } : { kind: 'network', name: text }
}

function usage(message: string, hints: readonly string[] = []): BackupError {
  return new BackupError('E_USAGE', message, { hints })
}
