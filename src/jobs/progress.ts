import type { ErrorCode, Warning } from '../base/errors.js'

/**
 * What jobs tell the outside while they run. Only `cli/` and `daemon/` show
 * it; jobs never print.
 */
export interface Progress {
  /**
   * Takes note of an event and returns at once. Never throws, never waits, so
   * a job may call it as often as it likes: showing it at a bearable rate is
   * the receiver's business.
   */
  report(event: ProgressEvent): void
}

/**
 * `subject` is what the job works on: a domain's name, or the store's for
 * jobs on the whole store. Names are passed as they are; the receiver escapes.
 */
export type ProgressEvent = StartedEvent | PhaseEvent | DiskEvent | WarningEvent | LogEvent | FinishedEvent

/** The job knows what it will do with `subject`. */
export interface StartedEvent {
  readonly kind: 'started'
  readonly subject: string
  /** `pull`, `restore`, `verify`, `gc`, ... */
  readonly verb: string
  /** Shown as `name=value` in this order, e.g. mode, since, disks. */
  readonly facts?: readonly (readonly [name: string, value: string])[] | undefined
}

/** What happens between transfers: `freeze`, `checkpoint`, `thaw`, `commit`, `clean-up`, ... */
export interface PhaseEvent {
  readonly kind: 'phase'
  readonly subject: string
  readonly phase: string
  readonly detail?: string | undefined
}

/** How far one disk is. Every number is a running total, none ever shrinks. */
export interface DiskEvent {
  readonly kind: 'disk'
  readonly subject: string
  readonly target: string
  /** Bytes to transfer as known by now; grows while extents still come in. */
  readonly totalBytes: number
  readonly doneBytes: number
  /** Plain bytes that the receiving side did not have. */
  readonly newBytes: number
}

export interface WarningEvent {
  readonly kind: 'warning'
  readonly subject: string
  readonly warning: Warning
}

/** For `-v` and log files; never needed to understand the result. */
export interface LogEvent {
  readonly kind: 'log'
  readonly level: 'info' | 'debug'
  readonly subject?: string | undefined
  readonly message: string
}

/** The last event of a subject. */
export interface FinishedEvent {
  readonly kind: 'finished'
  readonly subject: string
  readonly status: 'success' | 'partial' | 'failed' | 'skipped'
  readonly readBytes?: number | undefined
  readonly newBytes?: number | undefined
  readonly storedBytes?: number | undefined
  /** Id of the recovery point that was made or used. */
  readonly point?: string | undefined
  readonly error?: { readonly code: ErrorCode; readonly message: string } | undefined
}

/** For jobs that nobody watches. */
export const SILENT_PROGRESS: Progress = { report: () => {} }
