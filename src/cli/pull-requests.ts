import { availableParallelism } from 'node:os'

import type { LoadedConfig } from '../config/load.js'
import { autostartGroups, groupSelectors, type ResolvedJob, resolveJob, resolveJobs } from '../config/resolve.js'
import type { PullRequest } from '../jobs/pull-ports.js'
import type { DomainJob, JobSettings } from '../model/domain-job.js'
import type { DomainRef } from '../model/recovery-point.js'
import type { RemoteWish } from '../model/remote-way.js'
import { parseScratchDevices } from '../model/scratch-device.js'
import { type Selection, selectDomains } from '../model/selector.js'
import { localTimeZone } from './points.js'

const AGENT_TIMEOUT_SECONDS = 10
const SCRATCH_POLL_MS = 1000
/** Room that must stay on the scratch's file system, or the backup is given up before the guest is paused. */
const SCRATCH_MIN_FREE_BYTES = 512 * 1024 ** 2
const CONNECTIONS = 4

/** What the command line says about a pull. */
export interface PullWishes {
  readonly selectors: readonly string[]
  readonly groups: readonly string[]
  readonly all: boolean
  readonly mode: 'auto' | 'full' | 'incremental'
  /** Flags that stand above the configuration. */
  readonly settings: JobSettings
  readonly scratchLimitBytes: number | undefined
  readonly comment: string | undefined
  /** Flags that stand above `remote` of the configuration. */
  readonly remote?: RemoteWish | undefined
}

/** A pull with what its job is made of. */
export interface PreparedPull {
  readonly request: PullRequest
  readonly connections: number
  readonly scratchDir: string | undefined
  /** By disk target. */
  readonly scratchDevices: ReadonlyMap<string, string>
  readonly remote?: RemoteWish | undefined
}

/**
 * The domains that are meant: selectors and groups, all, or the groups that
 * start by themselves. Throws E_NOT_FOUND and E_USAGE as selectDomains().
 */
export function choosePulled(domains: readonly DomainRef[], wishes: PullWishes, loaded: LoadedConfig): Selection {
  const { selectors, all } = wishes
  const isNothing = selectors.length === 0 && wishes.groups.length === 0 && !all
  const groups = isNothing ? autostartGroups(loaded.config) : wishes.groups
  return selectDomains(domains, { selectors, groups, all }, groupSelectors(loaded.config))
}

/**
 * What holds for one domain: flags, then environment, its own metadata, then
 * configuration. Of several jobs the one of a group that was asked for.
 */
export function jobForPull(
  domain: DomainRef,
  wishes: Pick<PullWishes, 'groups' | 'settings'>,
  { loaded, metadata }: { readonly loaded: LoadedConfig; readonly metadata: readonly DomainJob[] },
): ResolvedJob {
  const context = { timeZone: localTimeZone(), env: process.env, flags: wishes.settings, metadata }
  const meant = resolveJobs(loaded, domain, context).find(({ group }) => wishes.groups.includes(group ?? ''))
  return meant ?? resolveJob(loaded, domain, context)
}

/** The pull that `settings` ask for. */
export function pullFor(
  domain: DomainRef,
  settings: ResolvedJob['settings'],
  wishes: Pick<PullWishes, 'mode' | 'scratchLimitBytes' | 'comment' | 'remote'>,
): PreparedPull {
  const mode = wishes.mode === 'auto' && settings.onBrokenChain === 'fail' ? 'incremental' : wishes.mode
  const freeze = settings.quiesce === 'required' ? 'required' : settings.quiesce ? 'auto' : 'off'
  return {
    connections: settings.connections === undefined ? CONNECTIONS : orAllCores(settings.connections),
    scratchDir: settings.scratchDir,
    scratchDevices: parseScratchDevices(settings.scratchDevices ?? []),
    remote: wishes.remote,
    request: {
      domain,
      wish: { mode, only: settings.disks ?? [], except: settings.excludeDisks ?? [], depth: settings.depth },
      freeze: { mode: freeze, mountpoints: settings.freezeMounts, timeoutSeconds: AGENT_TIMEOUT_SECONDS },
      scratchLimits: {
        minFreeBytes: SCRATCH_MIN_FREE_BYTES,
        maxUsedBytes: wishes.scratchLimitBytes,
        intervalMs: SCRATCH_POLL_MS,
      },
      tags: settings.tags,
      comment: wishes.comment,
      startPaused: settings.startPaused,
      minChangeBytes: settings.minChange,
    },
  }
}

/** Domains at once: the flag, else `threads` of the configuration, else half the cores. */
export function parallelPulls(flag: number | undefined, loaded: LoadedConfig): number {
  const cores = availableParallelism()
  return orAllCores(flag ?? loaded.config.threads ?? Math.max(1, Math.min(4, Math.floor(cores / 2))))
}

function orAllCores(count: number): number {
  return count === 0 ? availableParallelism() : count
}
