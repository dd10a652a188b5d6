/**
 * Every error code a user can meet. A code is contract, a message is for
 * people. `docs/errors.md` explains each; a test compares the two.
 */
export const ERROR_CODES = [
  // usage and configuration
  'E_USAGE',
  'E_CONFIG',
  'E_REFUSED',
  'E_EXISTS',
  'E_NOT_FOUND',
  'E_UNSUPPORTED',
  // hypervisor
  'E_LIBVIRT',
  'E_LIBVIRT_CONNECT',
  'E_LIBVIRT_DENIED',
  'E_LIBVIRT_STUCK',
  // domain
  'E_DOMAIN_STATE',
  'E_DOMAIN_BUSY',
  'E_NO_DISK',
  'E_AGENT',
  'E_SOURCE_GONE',
  'E_CHAIN_BROKEN',
  'E_BITMAP_MISMATCH',
  // NBD
  'E_NBD',
  'E_NBD_PROTOCOL',
  'E_NBD_READ',
  // store
  'E_NO_STORE',
  'E_STORE_FORMAT',
  'E_DAMAGED',
  'E_LOCKED',
  'E_KEY',
  // the machine
  'E_NO_SPACE',
  'E_IO',
  'E_UNREACHABLE',
  'E_TIMEOUT',
  'E_TOOL_MISSING',
  'E_HOOK',
  'E_INTERRUPTED',
  'E_INTERNAL',
] as const

export type ErrorCode = (typeof ERROR_CODES)[number]

/** Degradations that do not stop a job but must reach the user, the recovery point and the exit code. */
export const WARNING_CODES = [
  'W_CHAIN',
  'W_NOT_QUIESCED',
  'W_DISK_SKIPPED',
  'W_NEW_DISK',
  'W_DISK_CHANGED',
  'W_FULL_ONLY',
  'W_FILE_SKIPPED',
  'W_CLOCK',
  'W_CLEANUP',
  'W_RECOVERED',
  'W_SCRATCH',
  'W_INDEX_REBUILT',
  'W_DAMAGE_HEALED',
  'W_BITMAP',
  'W_CONFIG_FILE',
  'W_HOOK',
  'W_NOTIFY',
] as const

export type WarningCode = (typeof WARNING_CODES)[number]

export interface Warning {
  readonly code: WarningCode
  readonly message: string
}

export interface ErrorDetails {
  /** What led to it, in the user's words. */
  readonly why?: string | undefined
  /** What to do, one command or sentence each. */
  readonly hints?: readonly string[] | undefined
  readonly cause?: unknown
}

/**
 * The one error class: `code` for programs, `message` (what happened, to which
 * thing), `why` and `hints` for people. A bug is not a BackupError: it is
 * `invariant(…)`.
 */
export class BackupError extends Error {
  readonly code: ErrorCode
  readonly why: string | undefined
  readonly hints: readonly string[]

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause })
    this.name = 'BackupError'
    this.code = code
    this.why = details.why
    this.hints = details.hints ?? []
  }
}

/** What the addon rejects with: an Error whose `code` is an ErrorCode. */
export interface NativeFailure extends Error {
  readonly code: ErrorCode
  readonly errno?: number
  readonly libvirtCode?: number
  readonly libvirtDomain?: number
}

export function isNativeFailure(error: unknown): error is NativeFailure {
  return error instanceof Error && 'code' in error && isErrorCode(error.code)
}

export function isErrorCode(code: unknown): code is ErrorCode {
  return ERROR_CODES.some(known => known === code)
}

/** The code of any error: its own where it has one of ours, E_NO_SPACE for a full disk, else E_INTERNAL. */
export function errorCodeOf(error: unknown): ErrorCode {
  if (!(error instanceof Error) || !('code' in error)) return 'E_INTERNAL'
  if (isErrorCode(error.code)) return error.code
  if (error.code === 'ENOSPC' || error.code === 'EDQUOT') return 'E_NO_SPACE'
  if (error.code === 'ABORT_ERR') return 'E_INTERRUPTED'
  return 'syscall' in error ? 'E_IO' : 'E_INTERNAL'
}

export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
