import type { Period } from './calendar.js'
import type { KeepCount } from './retention.js'

/**
 * The settings of a backup job, as every place that can give them does: the
 * configuration's default, groups and host entries, a domain's own metadata,
 * flags and the environment. Absent means: asked for elsewhere.
 */
export interface JobSettings extends Partial<Readonly<Record<Period | 'last', KeepCount | undefined>>> {
  /** Names of stores in the configuration, or paths and URLs of stores. */
  readonly targets?: readonly string[] | undefined

  /** As written; `parseSchedule` reads it. */
  readonly schedule?: string | undefined
  readonly timeZone?: string | undefined
  /** Milliseconds; the most that a start is put off. */
  readonly jitter?: number | undefined
  readonly catchUp?: boolean | undefined
  /** As written; `parseWindow` reads it. */
  readonly window?: string | undefined
  /** Part of `backup pull` without a selector. */
  readonly autostart?: boolean | undefined
  readonly paused?: boolean | undefined
  /** Higher runs first among what is due. */
  readonly priority?: number | undefined

  /** Disk targets as `vda`, or paths of images; all disks when absent. */
  readonly disks?: readonly string[] | undefined
  readonly excludeDisks?: readonly string[] | undefined
  /** How many images of a backing chain to read; 0 all, -1 all but the base. */
  readonly depth?: number | undefined
  readonly disableIfPoweredOff?: boolean | undefined
  readonly startPaused?: boolean | undefined
  readonly quiesce?: Quiesce | undefined
  readonly freezeMounts?: readonly string[] | undefined
  readonly onBrokenChain?: BrokenChainPolicy | undefined

  /** NBD connections and readers for one domain. */
  readonly connections?: number | undefined
  /** Bytes per second. */
  readonly bwlimit?: number | undefined
  /** Bytes; below it a run is skipped. */
  readonly minChange?: number | undefined
  readonly scratchDir?: string | undefined
  /** As written, `vda=/dev/vg/scratch`; `parseScratchDevices` reads it. */
  readonly scratchDevices?: readonly string[] | undefined

  /** Milliseconds. */
  readonly within?: number | undefined
  readonly keepTags?: readonly string[] | undefined
  /** Put on each point. */
  readonly tags?: readonly string[] | undefined
  /** Whether a pull is followed by a prune. */
  readonly prune?: boolean | undefined
}

/** `true` freezes if the guest can, `required` fails if it cannot. */
export type Quiesce = boolean | 'required'

export const BROKEN_CHAIN_POLICIES = ['full_read', 'fail'] as const

export type BrokenChainPolicy = (typeof BROKEN_CHAIN_POLICIES)[number]

/** One job in a domain's own metadata; a domain may have several. */
export interface DomainJob {
  /** Unique within the domain. */
  readonly id: string
  /** The group of the configuration that it belongs to and inherits from. */
  readonly group?: string | undefined
  readonly description?: string | undefined
  readonly settings: JobSettings
}

/** The id of a domain's job that was given none. */
export const DEFAULT_JOB_ID = 'default'

const JOB_ID = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/

/** Letters, digits, dots, dashes and underscores, at most 64, so that it can stand in file names and labels. */
export function isJobId(id: string): boolean {
  return JOB_ID.test(id)
}
