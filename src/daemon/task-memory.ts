import type { RunStatus } from './task.js'

/** What is known of a task's past; survives the daemon. */
export interface TaskMemory {
  /** Scheduled times up to here are accounted for. */
  readonly accountedUntil: number
  readonly firstSeen: number
  /** The latest attempt that ended. */
  readonly last?: LastRun | undefined
  /** Start of the latest attempt that was a success, partial ones included. */
  readonly lastSuccess?: number | undefined
  /** Start of the latest that was not to be made, which is fine too. */
  readonly lastSkip?: number | undefined
  /** The scheduled time for which staleness was told. */
  readonly toldStale?: number | undefined
}

export interface LastRun {
  readonly id: string
  readonly started: number
  readonly ended: number
  readonly due: number | undefined
  readonly status: RunStatus
  readonly attempt: number
}
